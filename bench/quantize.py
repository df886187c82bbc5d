"""How fast a checkpoint becomes block FP8, against the disk's own speed and llm-compressor's model_free_ptq.

    python bench/quantize.py [--small] [--peer | --no-peer] [--folder FOLDER]

The checkpoint has the widths of Qwen3.6-35B-A3B (256 experts, H 2048, I 512, fused 3D experts, linear and full
attention, an MTP head) with fewer layers and random weights. Every row is a process of its own over the same files,
timed without the start of Python and torch:

- floor: reads every byte of the input and writes as many as ours writes, by one thread each, and fsyncs;
- ours: `stages.quantize.write_fp8`, what it lost measured, every shard durable at the end;
- model_free_ptq: FP8_BLOCK with the same layers left out; it does not wait until its output is durable.

Before each row the input is dropped from the page cache and all else is written out, so each reads from the disk;
outputs are removed as soon as they are measured. The codes of both are compared on a layer's experts: from the same
numbers in F32, where both compute in F32, and from BF16, where model_free_ptq computes in BF16.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from measuring import Aim, Measured, end, machine, measure, peer, table

if TYPE_CHECKING:
    import torch

REAL = {"layers": 3, "experts": 256, "vocabulary": 248_320}
SMALL = {"layers": 3, "experts": 32, "vocabulary": 32_768}
SHARD = 3 << 30
CHUNK = 16 << 20
LEFT_OUT = (
    "re:.*mlp.gate$",
    "re:.*pre_fc_norm_.*",
    "re:.*shared_expert_gate$",
    "re:.*in_proj_[ab]$",
    "re:.*conv1d$",
    "re:.*embed_tokens$",
)
"""With lm_head and mtp.fc, what the official FP8 checkpoints leave as it is."""


def main() -> None:
    options = _options()
    if options.worker:
        _WORKERS[options.worker](options)
        return
    print(f"{machine()}\n")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-quantize-") as name:
        folder = Path(name)
        rows = _rows(options, folder)
        if options.peer:
            _compare_codes(folder)
    floor, ours = rows["floor"], rows["ours"]
    shown = [
        (row.label, f"{row.seconds:.1f}", f"{row.seconds / floor.seconds:.2f}", f"{row.peak / 2**30:.2f}")
        for row in rows.values()
    ]
    print(table(("", "s", "of the floor", "peak GiB"), shown) + "\n")
    aims = [
        Aim("time, of the floor", ours.seconds / floor.seconds, 1.25),
        Aim("peak memory, of 1.5 GB", ours.peak / 1.5e9, 1.0),
    ]
    if "model_free_ptq" in rows:
        aims.append(
            Aim("times faster than model_free_ptq", rows["model_free_ptq"].seconds / ours.seconds, 8, at_least=True)
        )
    end(aims, small=options.small)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How fast a checkpoint becomes block FP8.")
    parser.add_argument("--small", action="store_true", help="about 1 GB, and no peer unless --peer")
    parser.add_argument(
        "--peer", action=argparse.BooleanOptionalAction, help="with llm-compressor, or without; without if --small"
    )
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to be measured")
    parser.add_argument(
        "--repeats", type=int, default=3, help="how often floor and ours run, in turn; the fastest counts"
    )
    for name in ("worker", "source", "target", "bytes"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.peer = not options.small if options.peer is None else options.peer
    return options


def _rows(options: argparse.Namespace, folder: Path) -> dict[str, Measured]:
    source, target = folder / "source", folder / "target"
    made = _run("make", sys.executable, target=source, bytes="small" if options.small else "real")
    read, written = made.output.split()[-2:]
    print(f"{int(read) / 1e9:.2f} GB in, {int(written) / 1e9:.2f} GB out\n")
    rows: dict[str, Measured] = {}

    def timed(worker: str, python: Any) -> None:
        _settle(source)
        row = _run(worker, python, source=source, target=target, bytes=written)
        row = replace(row, seconds=float(row.output.split()[-1]))
        print(f"{worker}: {row.seconds:.1f} s", file=sys.stderr, flush=True)
        rows[worker] = min(row, rows.get(worker, row), key=lambda each: each.seconds)
        shutil.rmtree(target)

    for _ in range(options.repeats):
        timed("floor", sys.executable)
        timed("ours", sys.executable)
    if options.peer:
        timed("model_free_ptq", peer("llmcompressor"))
    return rows


def _run(worker: str, python: Any, **options: Any) -> Measured:
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    command = [python, "bench/quantize.py", "--worker", worker, *words]
    return measure(worker, command, env={"OMP_NUM_THREADS": "1"} if worker != "model_free_ptq" else None)


def _settle(source: Path) -> None:
    """Nothing is left to be written, and the input is on the disk alone."""
    os.sync()
    for file in source.iterdir():
        descriptor = os.open(file, os.O_RDONLY)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


# ── what runs in processes of its own ──


def _make(options: argparse.Namespace) -> None:
    """The checkpoint: its tensors are those that the family's table gives, cut from one pool of random numbers."""
    import torch

    from registry.families import architecture_of
    from stages.common.shards import Layout, Product, index_of, packed

    config = _config(SMALL if options.bytes == "small" else REAL)
    folder = Path(options.source or options.target)
    folder.mkdir(parents=True)
    architecture = architecture_of(config)
    specs = list(architecture.tensors(fused=True, mtp=True))
    products = [Product(spec.name, spec.dtype, spec.shape) for spec in specs]
    shards: dict[str, list[Product]] = {}
    for product, shard in zip(products, packed(((each,) for each in products), SHARD), strict=True):
        shards.setdefault(shard, []).append(product)
    pool = torch.randn(1 << 25, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(torch.bfloat16)
    data = memoryview(pool.view(torch.uint8).numpy())
    layouts = {name: Layout({"format": "pt"}, group) for name, group in shards.items()}
    for name, layout in layouts.items():
        with (folder / name).open("wb") as file:
            file.write(layout.header)
            left, number = layout.size - len(layout.header), 0
            while left:
                number += 1
                part = data[2 * 4099 * number % 65536 :][: min(left, len(data) - 65536)]
                left -= file.write(part)
    (folder / "model.safetensors.index.json").write_bytes(index_of(layouts, {}))
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    written = architecture.tensors(fused=False, mtp=True, block=(128, 128))
    print(sum(spec.size for spec in specs), sum(spec.size for spec in written))


def _config(size: dict[str, int]) -> dict[str, Any]:
    return {
        "model_type": "qwen3_5_moe_text",
        "architectures": ["Qwen3_5MoeForCausalLM"],
        "vocab_size": size["vocabulary"],
        "hidden_size": 2048,
        "num_hidden_layers": size["layers"],
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "full_attention_interval": 3,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "moe_intermediate_size": 512,
        "shared_expert_intermediate_size": 512,
        "num_experts": size["experts"],
        "num_experts_per_tok": 8,
        "mtp_num_hidden_layers": 1,
        "tie_word_embeddings": False,
    }


@contextmanager
def _clocked() -> Iterator[None]:
    """Prints how long the work itself took, last of all: Python and torch start in seconds, whatever the size."""
    begun = time.perf_counter()
    yield
    print(time.perf_counter() - begun)


def _floor(options: argparse.Namespace) -> None:
    with _clocked():
        _read_and_write(options)


def _read_and_write(options: argparse.Namespace) -> None:
    """Reads everything in one thread, writes and fsyncs in another."""
    Path(options.target).mkdir()
    filled: queue.Queue[int] = queue.Queue(maxsize=4)
    left = int(options.bytes)
    files = sorted(Path(options.source).glob("*.safetensors"))
    total = sum(file.stat().st_size for file in files)
    block = bytearray(CHUNK)

    def write() -> None:
        written = 0
        with open(Path(options.target) / "floor.safetensors", "wb", buffering=0) as file:  # noqa: PTH123 - unbuffered
            while (count := filled.get()) > 0:
                written += file.write(memoryview(block)[:count])
            while written < left:
                written += file.write(memoryview(block)[: min(CHUNK, left - written)])
            os.fsync(file.fileno())

    writer = threading.Thread(target=write)
    writer.start()
    done, buffer = 0, bytearray(CHUNK)
    for path in files:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - unbuffered
            while count := file.readinto(buffer):
                before, done = done, done + count
                filled.put(min(CHUNK, done * left // total - before * left // total))
    filled.put(0)
    writer.join()


def _ours(options: argparse.Namespace) -> None:
    import torch  # noqa: F401 - what is imported while it works would count

    from stages.quantize import write_fp8

    with _clocked():
        write_fp8(Path(options.source), Path(options.target), what="quantize", shard_size=4 << 30)


def _peer(options: argparse.Namespace) -> None:
    from llmcompressor import model_free_ptq

    ignore = ["lm_head", "mtp.fc", *LEFT_OUT]
    with _clocked():
        model_free_ptq(
            options.source, options.target, scheme="FP8_BLOCK", ignore=ignore, max_workers=os.cpu_count() or 1
        )


_WORKERS = {"make": _make, "floor": _floor, "ours": _ours, "model_free_ptq": _peer}


# ── the same codes? ──


def _compare_codes(folder: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    from stages.quantize.fp8 import quantize_block

    generator = torch.Generator().manual_seed(1)
    weights = {
        f"model.layers.0.mlp.experts.{expert}.{projection}.weight": torch.randn(shape, generator=generator)
        .mul_(0.02)
        .to(torch.bfloat16)
        for expert in range(16)
        for projection, shape in (("gate_proj", (512, 2048)), ("up_proj", (512, 2048)), ("down_proj", (2048, 512)))
    }
    shown = []
    for dtype in (torch.float32, torch.bfloat16):
        source, target = folder / f"codes-{dtype}", folder / f"codes-{dtype}-fp8"
        source.mkdir()
        save_file({name: weight.to(dtype) for name, weight in weights.items()}, source / "model.safetensors")
        (source / "config.json").write_text(json.dumps({"model_type": "qwen3_moe"}))
        _run("model_free_ptq", peer("llmcompressor"), source=source, target=target)
        theirs = load_file(target / "model.safetensors")
        differ = error = mine = total = 0.0
        for name, weight in weights.items():
            codes, scales = quantize_block(weight, name=name)
            other = theirs[name]
            differ += float((codes.view(torch.uint8) != other.view(torch.uint8)).sum())
            mine += _lost(weight, codes, scales)
            error += _lost(weight, other, theirs[f"{name}_scale"].float())
            total += float(weight.double().square().sum())
        count = sum(weight.numel() for weight in weights.values())
        shown.append(
            (
                str(dtype).removeprefix("torch."),
                f"{100 * differ / count:.4f} %",
                f"{(mine / total) ** 0.5:.5f}",
                f"{(error / total) ** 0.5:.5f}",
            )
        )
    print(table(("model_free_ptq computes in", "codes that differ", "our error", "its error"), shown) + "\n")


def _lost(weight: torch.Tensor, codes: torch.Tensor, scales: torch.Tensor) -> float:
    from stages.quantize.fp8 import dequantize_block

    return float((weight.double() - dequantize_block(codes, scales).double()).square().sum())


if __name__ == "__main__":
    main()
