"""Small pruned checkpoints for another engine, one of them with adapters folded in, and what transformers answers."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from registry.recipes import Prune
from stages.common.checkpoint import Checkpoint
from stages.common.rewriting import kept, rewrite
from stages.common.streaming import LayerStream
from stages.prune import layers, surgery
from stages.train import merging
from tests.support import tiny, whole

KEEP = 5


def write(base: str, widths: str, hybrid: str, prompt: str, tokens: str) -> None:
    """Writes qwen3_moe, merged (the same with adapters folded in), qwen3_5_moe_text with its head, and broken, whose
    head has more experts than is stated."""
    folder = Path(base)
    _prune(tiny.make(folder / "source", "qwen3_moe", fused=False, **json.loads(widths)), folder / "qwen3_moe")
    _merge(Checkpoint(folder / "qwen3_moe"), folder / "merged")
    source = tiny.make(folder / "source5", "qwen3_5_moe_text", fused=True, mtp=True, **json.loads(hybrid))
    _prune(source, folder / "qwen3_5_moe_text")
    _break(source, folder / "qwen3_5_moe_text", folder / "broken")
    answers = {name: _answer(folder / name, json.loads(prompt), int(tokens)) for name in ("qwen3_moe", "merged")}
    (folder / "answers.json").write_text(json.dumps(answers))


def _prune(source: Path, target: Path) -> None:
    checkpoint = Checkpoint(source)
    settings = Prune(compression="0.4", mix="mix.yaml")
    spool = target.with_name(f"{target.name}-spool")
    found = layers.choices(LayerStream(checkpoint), settings, KEEP, whole.batches_of(source), spool)
    surgery.write_pruned(checkpoint, {choice.layer: choice.kept for choice in found if choice}, target)


def _break(source: Path, pruned: Path, target: Path) -> None:
    """The pruned checkpoint with the unpruned head."""
    rewrite(Checkpoint(pruned), target, [kept(Checkpoint(pruned), n) for n in Checkpoint(pruned).tensors], config={})
    whole.replace_tensors(target, {n: Checkpoint(source).tensor(n) for n in Checkpoint(source).tensors if "mtp." in n})


def _merge(source: Checkpoint, target: Path) -> None:
    """The checkpoint with adapters of random numbers on attention and routers."""
    generator = torch.Generator().manual_seed(0)
    deltas = {}
    for name, tensor in source.tensors.items():
        part = source.architecture.part(name)
        if part is not None and part.role in ("attention", "router") and len(tensor.shape) == 2:
            out, into = tensor.shape
            drawn = torch.randn(4, into, generator=generator) / 10, torch.randn(out, 4, generator=generator) / 10
            deltas[name] = merging.Delta(*drawn, scale=2.0)
    merging.merge(source, deltas, target)


@torch.no_grad()
def _answer(folder: Path, prompt: list[int], tokens: int) -> list[int]:
    model, ids = whole.load(folder), torch.tensor([prompt])
    for _ in range(tokens):
        ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=-1)
    return ids[0, len(prompt) :].tolist()
