"""How fast models come into the registry, how fast they are verified and listed, beside what people use now.

    python bench/store.py [--small] [--without-peers] [--folder FOLDER]

The model is a whole checkpoint of 16 shards with random weights. Every row is a command of its own over the same files,
begins with all earlier writes on the disk and with the model's files out of the page cache, and is removed afterwards:

- sha256: hashlib over every byte, one thread; on all cores: a thread for each;
- cp -r: which leaves much of what it wrote to be written later; sync: until all of it is on the disk;
- registry add: what it says is there is on the disk. Second version: 15 of 16 shards are those of the first;
- dvc add, mlflow log_artifacts: from PyPI, in an environment of their own; neither waits for the disk.

`registry ls` lists 500 candidates, half of them with evidence and a verdict, beside a Typer program that does nothing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from measuring import Aim, Measured, end, machine, measure, peer, table

SHARDS = 16
REAL, SMALL = 5120, 320
"""The experts' width, which makes 8 GB or 0.8 GB."""

CANDIDATES = 500
SCRATCH = 64 << 20


def main() -> None:
    options = _options()
    if options.worker:
        _WORKERS[options.worker](Path(options.source), Path(options.target))
        return
    print(f"{machine()}\n")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-store-") as name:
        folder = Path(name)
        rows = _rows(options, folder)
        size = _size(folder / "first")
    print(f"{size / 1e9:.2f} GB in {SHARDS} shards\n")
    floor = max(rows["cp -r"].seconds, rows["sha256"].seconds)
    durable = max(rows["cp -r, sync"].seconds, rows["sha256"].seconds)
    shown = [
        (
            row.label,
            f"{row.seconds:.1f}",
            f"{row.seconds / floor:.2f}",
            f"{row.seconds / durable:.2f}",
            row.output or "-",
        )
        for row in rows.values()
    ]
    head = ("", "s", "of max(cp -r, sha256)", "of max(cp -r + sync, sha256)", "GB on disk")
    print(table(head, shown) + "\n", flush=True)
    with tempfile.TemporaryDirectory(dir=_memory(), prefix="bench-store-") as name:
        listed = _listed(options.repeats, Path(name))
    print(table(("", "ms"), [(row.label, f"{row.seconds * 1000:.0f}") for row in listed]) + "\n")
    add, second = rows["registry add"], rows["registry add, second version"]
    end(
        [
            Aim("add, of max(cp -r, sha256)", add.seconds / floor, 1.15),
            Aim("add, of max(cp -r + sync, sha256)", add.seconds / durable, 1.15),
            Aim("second version, of sha256", second.seconds / rows["sha256"].seconds, 1.15),
            Aim("second version on disk, of one shard", float(second.output) * SHARDS * 1e9 / size, 1.05),
            Aim("verify, of sha256 on all cores", rows["verify"].seconds / rows["sha256, all cores"].seconds, 1.15),
            Aim("ls above Typer, of 100 ms", (listed[1].seconds - listed[0].seconds) / 0.1, 1.0),
        ],
        small=options.small,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How fast models come into the registry.")
    parser.add_argument("--small", action="store_true", help="0.8 GB, and no peers")
    parser.add_argument("--without-peers", action="store_true", help="leave dvc and mlflow out")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to be measured")
    parser.add_argument("--repeats", type=int, default=2, help="how often each row runs; the fastest counts")
    for name in ("worker", "source", "target"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.without_peers |= options.small
    return options


def _rows(options: argparse.Namespace, folder: Path) -> dict[str, Measured]:
    first, second = folder / "first", folder / "second"
    write_model(first, SMALL if options.small else REAL)
    write_second(first, second)
    rows: dict[str, Measured] = {}

    def row(label: str, prepare: Callable[[Path], object], work: Callable[[Path], Measured]) -> None:
        for _ in range(options.repeats):
            target = folder / "target"
            prepare(target)
            _settle(first, second)
            before = _size(target)
            found = work(target)
            gained = (_size(target) - before) / 1e9
            found = Measured(label, found.seconds, found.peak, f"{gained:.3f}" if gained > 0 else "")
            rows[label] = min(found, rows.get(label, found), key=lambda each: each.seconds)
            print(f"{label}: {found.seconds:.1f} s", file=sys.stderr, flush=True)
            shutil.rmtree(target, ignore_errors=True)

    def worker(name: str, source: Path = first, python: str | Path = sys.executable) -> Callable[[Path], Measured]:
        command = [python, "bench/store.py", "--worker", name, "--source", source, "--target"]
        return lambda target: measure(name, [*command, target])

    def copied(target: Path) -> Measured:
        copy = measure("cp", ["cp", "-r", first, target])
        rows["cp -r"] = min(copy, rows.get("cp -r", copy), key=lambda each: each.seconds)
        synced = measure("sync", ["sync", "-f", target])
        return Measured("", copy.seconds + synced.seconds, copy.peak)

    row("sha256", _nothing, worker("hash"))
    row("sha256, all cores", _nothing, worker("hash all"))
    row("cp -r, sync", _nothing, copied)
    rows["cp -r"] = Measured("cp -r", rows["cp -r"].seconds, rows["cp -r"].peak, rows["cp -r, sync"].output)
    row("registry add", _init, worker("add"))
    row("registry add, second version", lambda target: _init(target, first), worker("add", second))
    row("verify", lambda target: _init(target, first), worker("verify"))
    if not options.without_peers:
        python = peer("store")
        row("dvc add", _nothing, worker("dvc", first, python))
        row(
            "dvc add, second version",
            lambda target: worker("dvc", first, python)(target),
            worker("dvc", second, python),
        )
        row("mlflow log_artifacts", _nothing, worker("mlflow", first, python))
        row(
            "mlflow log_artifacts, second version",
            lambda target: worker("mlflow", first, python)(target),
            worker("mlflow", second, python),
        )
    return rows


def _listed(repeats: int, folder: Path) -> list[Measured]:
    """The empty program and `registry ls`, the fastest of several runs each, in turn."""
    empty = folder / "empty.py"
    empty.write_text("import typer\n\napp = typer.Typer()\n\n\n@app.command()\ndef main() -> None: ...\n\n\napp()\n")
    root = folder / "many"
    measure("fill", [sys.executable, "bench/store.py", "--worker", "fill", "--source", folder, "--target", root])
    ls = [sys.executable, "-m", "registry", "ls", "--root", root]
    fastest: dict[str, Measured] = {}
    for _ in range(repeats * 5):
        for label, command in (
            ("an empty Typer program", [sys.executable, empty]),
            ("registry ls, 500 candidates", ls),
        ):
            found = measure(label, command)
            fastest[label] = min(found, fastest.get(label, found), key=lambda each: each.seconds)
    return list(fastest.values())


def _memory() -> str | None:
    """Where a registry of many small files is made without waiting for a disk, if there is such a place."""
    shared = Path("/dev/shm")  # noqa: S108 - the folder in it gets a random name
    return str(shared) if os.access(shared, os.W_OK) else None


def _nothing(_: Path) -> None:
    """The row makes its own folder."""


def _init(target: Path, source: Path | None = None) -> None:
    from registry.store import Store

    store = Store.init(target)
    if source is not None:
        store.add("first", source)


def _settle(*sources: Path) -> None:
    """Everything written is on the disk, and the sources are not in memory."""
    os.sync()
    for path in (path for source in sources for path in source.iterdir()):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def _size(folder: Path) -> int:
    """Bytes on the disk, each file once however many names it has."""
    blocks = {}
    for base, _, names in os.walk(folder):
        for name in names:
            state = os.lstat(Path(base, name))
            blocks[state.st_ino] = state.st_blocks * 512
    return sum(blocks.values())


# The model


def write_model(folder: Path, width: int, *, hidden: int = 2048) -> None:
    """A Qwen3-MoE with a layer in each shard; the weights are random BF16, none of them NaN or infinite."""
    from registry.families import architecture_of

    config = {
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "vocab_size": 256,
        "hidden_size": hidden,
        "num_hidden_layers": SHARDS,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": hidden // 16,
        "intermediate_size": hidden,
        "moe_intermediate_size": width,
        "num_experts": 8,
        "num_experts_per_tok": 2,
        "norm_topk_prob": True,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    shards: dict[str, dict[str, tuple[int, ...]]] = {shard_name(number): {} for number in range(SHARDS)}
    for spec in architecture_of(config).tensors(fused=False, mtp=False):
        shards[shard_name(spec.part.layer or 0)][spec.name] = spec.shape
    weight_map = {name: shard for shard, names in shards.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for shard, shapes in shards.items():
        write_shard(folder / shard, shapes)


def shard_name(number: int) -> str:
    return f"model-{number + 1:05}-of-{SHARDS:05}.safetensors"


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]]) -> None:
    header, end_of_last = {}, 0
    for name, shape in shapes.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end_of_last, end_of_last + size]}
        end_of_last += size
    text = json.dumps(header).encode()
    below_infinity = bytes(number & 0x3F for number in range(256))
    scratch = os.urandom(min(SCRATCH, end_of_last)).translate(below_infinity)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for begin in range(0, end_of_last, SCRATCH):
            file.write(scratch[: end_of_last - begin])


def write_second(first: Path, second: Path) -> None:
    """The same model with one shard written anew; the other files are the same files."""
    second.mkdir()
    for path in first.iterdir():
        if path.name != shard_name(3):
            os.link(path, second / path.name)
    data = bytearray((first / shard_name(3)).read_bytes())
    for at in range(len(data) // 2, len(data), 4096):
        data[at] ^= 1
    (second / shard_name(3)).write_bytes(data)


# What the rows do, each in a process of its own


def _hash(source: Path, _: Path) -> None:
    for path in sorted(source.iterdir()):
        _digest(path)


def _hash_all(source: Path, _: Path) -> None:
    with ThreadPoolExecutor(os.cpu_count()) as workers:
        list(workers.map(_digest, sorted(source.iterdir())))


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _add(source: Path, target: Path) -> None:
    from registry.store import Store

    Store.open(target).add(source.name if source.name == "second" else "first", source)


def _verify(_: Path, target: Path) -> None:
    from registry.store import Store
    from registry.verify import verify

    problems = verify(Store.open(target), "first", full=True)
    if problems:
        sys.exit("\n".join(map(str, problems)))


def _dvc(source: Path, target: Path) -> None:
    fresh = not target.exists()
    target.mkdir(exist_ok=True)
    commands = [["init", "--no-scm", "-q"], ["config", "core.analytics", "false"]] if fresh else []
    shutil.copytree(source, target / source.name, copy_function=os.link)
    for words in (*commands, ["add", "-q", source.name]):
        subprocess.run([sys.executable, "-m", "dvc", *words], cwd=target, check=True)


def _mlflow(source: Path, target: Path) -> None:
    os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # its database needs a server's packages; artifacts go the same way
    import mlflow

    mlflow.set_tracking_uri(f"file://{target}")
    with mlflow.start_run():
        mlflow.log_artifacts(str(source))


def _fill(folder: Path, root: Path) -> None:
    """A registry of 500 candidates: an added model and prunes of it, every second one with evidence and a verdict."""
    from gates.policy import parse_policy
    from gates.records import Conditions, Evidence, Score, Totals
    from registry import commits, judging
    from registry.manifests import Inputs
    from registry.store import Store

    text = "name: floor\ngates:\n  - name: Toolcall\n    rules:\n      - floor: {pack: tool, at_least: 50}\n"
    policy = parse_policy(text, where="floor")
    write_model(folder / "tiny", 16, hidden=32)
    store = Store.init(root)
    base = store.add("base", folder / "tiny")
    for number in range(1, CANDIDATES):
        settings = {"compression": f"0.{number:03}", "criterion": "reap"}
        inputs = Inputs(op="prune", parent=base.digest, settings=settings, seed=0, code="bench")
        made = commits.assemble(store, f"v{number}", inputs, base.manifest.files)
        if number % 2:
            totals = Totals(overall=Score(points=number % 100, of=100, items=15), categories={}, missing=0)
            about = Conditions(engine="vllm", engine_version="0.32.0", temperature=0)
            evidence = Evidence(candidate=made.digest, pack="tool", repeats=1, conditions=about, totals=totals)
            store.add_evidence(evidence, rows=b"", responses=b"", timings={})
            judging.judge(store, made.name, policy=policy, baseline=None)


_WORKERS: dict[str, Callable[[Path, Path], None]] = {
    "hash": _hash,
    "hash all": _hash_all,
    "add": _add,
    "verify": _verify,
    "dvc": _dvc,
    "mlflow": _mlflow,
    "fill": _fill,
}

if __name__ == "__main__":
    main()
