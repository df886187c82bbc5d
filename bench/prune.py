"""How fast experts are scored and pruned, and in how much memory, against the plain forward pass and llm-compressor.

    python bench/prune.py [--small] [--threads N] [--without-peer]

Every row is a process of its own over the same layer and tokens: a decoder layer of Qwen3.6-35B-A3B (256 experts,
top-8, H 2048, I 512) with random weights, in float32 on the CPU and in BF16 on CUDA. It is one with full attention,
because the linear attention of the other three in four is computed by a slow reference on a CPU, which would hide what
the experts cost. Loading the layer is counted on no side: in use it is shared by thousands of times as many tokens.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from measuring import Aim, Measured, end, machine, measure, peer, table

if TYPE_CHECKING:
    import torch

REAL = {"experts": 256, "top_k": 8, "hidden": 2048, "intermediate": 512, "rows": 8, "length": 1024, "batch": 8}
SMALL = {"experts": 64, "top_k": 8, "hidden": 512, "intermediate": 256, "rows": 16, "length": 512, "batch": 8}
NARROW = {"experts": 32, "top_k": 2, "hidden": 512, "intermediate": 64, "rows": 32, "length": 128, "batch": 8}
"""Of a layer and its tokens; `batch` is rows at a time. REAL has as many tokens in a batch as the stage takes."""
GROWTH = ((4, 1), (10, 1), (40, 1), (4, 4), (4, 16))
SMALL_GROWTH = ((4, 1), (16, 1), (4, 8))
"""How many layers, and how many times the tokens, the memory is measured at; the first is what the rest is held to."""
COMPRESSION = Decimal("0.289")


def main() -> None:
    options = _options()
    if options.worker:
        print("\n" + json.dumps(_WORKERS[options.worker](options)))
        return
    size = SMALL if options.small else REAL
    if options.device == "cuda":
        size = size | {"rows": 16 * size["rows"]}  # so that batches are read and written beside the work
    print(f"{machine()}; {options.threads} threads; {options.device}\n")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-prune-") as folder:
        aims = _speed(options, size, Path(folder)) + _memory(options, Path(folder))
    end(aims, small=options.small)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="How fast experts are scored and pruned, and in how much memory.")
    parser.add_argument("--small", action="store_true", help="a reduced size, and no peer")
    parser.add_argument("--threads", type=int, default=1, help="of each row, on a CPU")
    parser.add_argument("--repeats", type=int, default=2, help="how often; the fastest counts")
    parser.add_argument("--without-peer", action="store_true", help="leave llm-compressor out")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="for checkpoints and spool")
    for name in ("worker", "model", "experts", "size"):
        parser.add_argument(f"--{name}", help=argparse.SUPPRESS)
    for name in ("rows", "length", "batch"):
        parser.add_argument(f"--{name}", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.device == "auto":
        options.device = "cuda" if Path("/dev/nvidiactl").exists() else "cpu"
    return options


# ------------------------------------------------------------------------------------------------------------- speed


def _speed(options: argparse.Namespace, size: dict[str, int], folder: Path) -> list[Aim]:
    model = _written(folder / "layer", size, layers=1)
    plain = {experts: _best(options, "plain", model, size, experts=experts) for experts in ("grouped_mm", "eager")}
    ours = _best(options, "prune", model, size)
    clock = _clock(options)
    reference = min(row[clock] for row in plain.values())
    rows = [(f"plain forward pass ({experts})", row, "") for experts, row in plain.items()]
    rows += [("scoring", ours, "scoring "), ("scoring, pruning and propagating", ours, "")]
    if not (options.small or options.without_peer):
        row = _best(options, "peer", model, size, once=True)
        rows.append((f"llm-compressor {row['version']}, routed tokens only", row, ""))
    tokens = size["rows"] * size["length"]
    shape = "{experts} experts, top-{top_k}, H {hidden}, I {intermediate}".format(**size)
    print(f"{shape}; {tokens} tokens\n")
    print(
        table(
            ("", "s", "CPU s", "tokens/s", "of the plain pass", "peak memory, GiB"),
            [
                (
                    label,
                    f"{row[part + 'seconds']:.1f}",
                    f"{row[part + 'cpu']:.1f}",
                    f"{tokens / row[part + 'seconds']:.0f}",
                    f"{row[part + clock] / reference:.2f}",
                    _gib(row["peak"]),
                )
                for label, row, part in rows
            ],
        )
    )
    print(f"\nThe device waited for the spool {100 * ours['waiting']:.1f} % of the time.\n")
    return [
        Aim("scoring / plain forward pass", ours["scoring " + clock] / reference, 1.15),
        Aim("scoring, pruning and propagating / plain forward pass", ours[clock] / reference, 2.0),
    ]


def _best(
    options: argparse.Namespace,
    worker: str,
    model: Path,
    size: dict[str, int],
    *,
    experts: str = "",
    once: bool = False,
) -> dict[str, Any]:
    """The fastest of some runs of a worker: what it says, and its peak memory (of the device, where that is one)."""
    runs = [_run(options, worker, model, size, experts=experts) for _ in range(1 if once else options.repeats)]
    return min(runs, key=lambda run: run[_clock(options)])


def _written(folder: Path, size: dict[str, int], *, layers: int) -> Path:
    """A checkpoint, written by a process of its own: what begins a process counts into that one's peak memory."""
    measure(
        "write",
        [
            sys.executable,
            __file__,
            "--worker",
            "write",
            "--model",
            folder,
            "--size",
            json.dumps(size | {"layers": layers}),
        ],
    )
    return folder


def _clock(options: argparse.Namespace) -> str:
    """Other work on the machine stretches the wall's seconds, and not those of a single thread on the CPU."""
    return "cpu" if options.device == "cpu" and options.threads == 1 else "seconds"


def _run(
    options: argparse.Namespace, worker: str, model: Path, size: dict[str, int], *, experts: str = ""
) -> dict[str, Any]:
    python = peer("llmcompressor") if worker.startswith("peer") else Path(sys.executable)
    command = [python, __file__, "--worker", worker, "--model", model, "--threads", options.threads]
    command += ["--device", options.device, "--rows", size["rows"], "--length", size["length"]]
    command += ["--batch", size["batch"], "--experts", experts]
    # Threads beyond the cores that are free make a layer several times slower (docs/experiments.md).
    measured: Measured = measure(worker, [str(word) for word in command], env={"OMP_NUM_THREADS": str(options.threads)})
    said: dict[str, Any] = json.loads(measured.output.strip().splitlines()[-1])
    return {"peak": measured.peak} | said


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f}"


# ------------------------------------------------------------------------------------------------------------ memory


def _memory(options: argparse.Namespace, folder: Path) -> list[Aim]:
    """The peak while layers and tokens become more. The layers are narrow, so that the disk holds forty of them."""
    rows, aims, least = [], [], 0
    for layers, times in SMALL_GROWTH if options.small else GROWTH:
        model = folder / f"{layers}-layers"
        if not model.exists():
            _written(model, NARROW, layers=layers)
        run = _run(options, "prune", model, NARROW | {"rows": times * NARROW["rows"]})
        least = least or run["peak"]
        tokens = times * NARROW["rows"] * NARROW["length"]
        weights = 2 * sum(path.stat().st_size for path in model.glob("*.safetensors"))
        states = 4 * tokens * NARROW["hidden"]
        rows.append((layers, tokens, _gib(weights), _gib(states), _gib(run["peak"]), f"{run['peak'] / least:.2f}"))
        aims.append(Aim(f"peak memory, {layers} layers and {times} x the tokens", run["peak"] / least, 1.1))
    print(table(("layers", "tokens", "all weights, GiB", "all states, GiB", "peak memory, GiB", "of the first"), rows))
    print()
    return aims[1:]


# ----------------------------------------------------------------------------------------------------------- workers


def _plain(options: argparse.Namespace) -> dict[str, Any]:
    """transformers' own forward pass over the layer (and an embedding and a norm, which cost nothing beside it)."""
    import torch
    from transformers import AutoModel

    torch.set_num_threads(options.threads)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    model = AutoModel.from_pretrained(options.model, dtype=dtype, experts_implementation=options.experts)
    model = model.eval().to(options.device)
    batches = _batches(options)
    with torch.no_grad():
        model(input_ids=batches[0][:1, :64].to(options.device), use_cache=False)  # what is set up once is not counted
        begun = _now(options)
        for batch in batches:
            model(input_ids=batch.to(options.device), use_cache=False)
        took = _now(options) - begun
    return _told(took) | _device_peak(options)


def _prune(options: argparse.Namespace) -> dict[str, Any]:
    """The stage's own loop, spool and all."""
    import torch

    from registry.recipes import Prune, experts_kept
    from stages.common.calibration import Batch
    from stages.common.checkpoint import Checkpoint
    from stages.common.streaming import Block, LayerStream
    from stages.prune import layers

    torch.set_num_threads(1)
    loading, scoring, working = np.zeros(2), np.zeros(2), [0.0]

    def timed(work: Any) -> Any:
        begun = time.perf_counter()
        made = work()
        _now(options)
        working.append(time.perf_counter() - begun)
        return made

    class Watched(Block):
        def attend(self, batch: Batch, state: torch.Tensor) -> torch.Tensor:
            return timed(lambda: Block.attend(self, batch, state))

        def routing(self, attended: torch.Tensor) -> Any:
            return timed(lambda: Block.routing(self, attended))

        def answer(self, attended: torch.Tensor) -> torch.Tensor:
            return timed(lambda: Block.answer(self, attended))

        def keep(self, kept: Any) -> None:
            scoring[:] += _now(options) - loaded[0]
            Block.keep(self, kept)

    class Timed(LayerStream):
        @contextmanager
        def loaded(self, layer: int) -> Iterator[Block]:
            begun = _now(options)
            with super().loaded(layer) as block:
                loaded[:] = [_now(options)]
                loading[:] += loaded[0] - begun
                yield Watched(block.module, block.layer, block.entry, block.stream)

    loaded = [np.zeros(2)]
    checkpoint = Checkpoint(Path(options.model))
    stream = Timed(checkpoint, torch.device(options.device))
    settings = Prune(compression=COMPRESSION, mix="random tokens")
    keep = experts_kept(checkpoint.architecture.experts, COMPRESSION, top_k=checkpoint.architecture.top_k)
    batches = [Batch(ids, torch.ones_like(ids)) for ids in _batches(options)]
    slots = options.threads if options.device == "cpu" else 1
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        begun = _now(options)
        for _ in layers.choices(stream, settings, keep, batches, Path(folder), slots=slots):
            pass
        took = _now(options) - begun - loading
    waiting = 1 - sum(working) / slots / took[0]
    return _told(took) | _told(scoring, "scoring ") | {"waiting": waiting} | _device_peak(options)


def _peer(options: argparse.Namespace) -> dict[str, Any]:
    """llm-compressor's REAP over the same tokens in the same batches, from its first hook to its last.

    It is told to run no expert on tokens that are not routed to it, which is faster than its default.
    """
    import llmcompressor
    import torch
    from llmcompressor import oneshot
    from llmcompressor.modifiers.pruning import REAPPruningModifier
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from torch.utils.data import DataLoader
    from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

    torch.set_num_threads(options.threads)
    dtype = torch.bfloat16 if options.device == "cuda" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=dtype).eval().to(options.device)
    times: dict[str, np.ndarray] = {}

    class Timed(REAPPruningModifier):  # type: ignore[misc]
        def on_calibration_start(self, *arguments: Any, **keywords: Any) -> None:
            super().on_calibration_start(*arguments, **keywords)
            times["begun"] = _now(options)

        def on_calibration_end(self, *arguments: Any, **keywords: Any) -> None:
            times["ended"] = _now(options)
            super().on_calibration_end(*arguments, **keywords)

    batches = [{"input_ids": ids, "attention_mask": torch.ones_like(ids)} for ids in _batches(options)]
    oneshot(
        model=model,
        # It asks for a tokenizer, and has no use for it here.
        processor=PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}))),
        dataset=DataLoader(batches, batch_size=None),
        recipe=[Timed(sparsity=float(COMPRESSION))],
        num_calibration_samples=options.rows,
        moe_calibrate_all_experts=False,
        pipeline="sequential",
    )
    return _told(times["ended"] - times["begun"]) | {"version": llmcompressor.__version__} | _device_peak(options)


def _batches(options: argparse.Namespace) -> list[torch.Tensor]:
    """Random tokens, [batch, length] each."""
    import torch

    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(0, _VOCABULARY, (options.rows, options.length), generator=draw)
    return list(ids.split(options.batch))


def _now(options: argparse.Namespace) -> np.ndarray:
    """The seconds of the wall and of the CPU, once the device has done what it was asked."""
    if options.device == "cuda":
        import torch

        torch.cuda.synchronize()
    return np.array([time.perf_counter(), time.process_time()])


def _told(took: np.ndarray, part: str = "") -> dict[str, Any]:
    return {f"{part}seconds": took[0], f"{part}cpu": took[1]}


def _device_peak(options: argparse.Namespace) -> dict[str, int]:
    if options.device != "cuda":
        return {}
    import torch

    return {"peak": torch.cuda.max_memory_allocated()}


# -------------------------------------------------------------------------------------------------------- checkpoint

_VOCABULARY = 1024


def _write(options: argparse.Namespace) -> dict[str, Any]:
    """A random checkpoint of Qwen3.6's text model, all layers with full attention, a shard for each."""
    import torch
    from safetensors.torch import save_file

    from registry.families import architecture_of

    folder, size = Path(options.model), json.loads(options.size)
    layers = size["layers"]
    config = {
        "architectures": ["Qwen3_5MoeForCausalLM"],
        "model_type": "qwen3_5_moe_text",
        "dtype": "bfloat16",
        "vocab_size": _VOCABULARY,
        "hidden_size": size["hidden"],
        "num_hidden_layers": layers,
        "layer_types": ["full_attention"] * layers,
        "num_attention_heads": max(2, size["hidden"] // 128),
        "num_key_value_heads": 2,
        "head_dim": 256,
        "moe_intermediate_size": size["intermediate"],
        "shared_expert_intermediate_size": size["intermediate"],
        "num_experts": size["experts"],
        "num_experts_per_tok": size["top_k"],
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_value_head_dim": 128,
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
        "tie_word_embeddings": True,
    }
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    draw = torch.Generator().manual_seed(0)
    shards: dict[int, dict[str, torch.Tensor]] = {}
    for spec in architecture_of(config).tensors(fused=True, mtp=False):
        weight = torch.empty(spec.shape).normal_(std=0.02, generator=draw).bfloat16()
        shards.setdefault(-1 if spec.part.layer is None else spec.part.layer, {})[spec.name] = weight
    names = {}
    for number, weights in enumerate(shards.values(), 1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(weights, folder / file, {"format": "pt"})
        names |= dict.fromkeys(weights, file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return {}


_WORKERS = {"write": _write, "plain": _plain, "prune": _prune, "peer": _peer}


if __name__ == "__main__":
    main()
