"""What training asks of the machine: the disk and the frozen weights by arithmetic, the rest estimated.

    device        the frozen weights; the adapters with their gradients and the optimiser's state; and the larger of the
                  activations and what measuring takes, which reads one layer in BF16
    activations   with checkpoints at every layer: the states before each, and the larger of what one layer makes of it
                  and what the head does
    head          the states that go in, with gradients in float32, and the logits of one tile, of at most 4096 tokens
                  and 32768 words: trl has no more at a time (TOKEN_CHUNK_SIZE in trl/kernels/chunked_logprob.py,
                  _CHUNKED_LOGPROB_CHUNK_SIZE in trl/trainer/utils.py; trl 1.16). On CUDA a kernel folds them where they
                  are; on a CPU ten numbers are held for each (10.4 were measured, for 1024 tokens)
    products      of a step, for each token and each number of a matrix that it goes through: 2 to go forward, 2 to do
                  so again, 2 to go back; nothing is summed for frozen weights

Rates are those of `stages.common.rates`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import torch

from registry import plan
from registry.recipes import Train
from stages.common import rates
from stages.common.checkpoint import Checkpoint
from stages.common.machine import used_memory
from stages.common.preflight import Amount, Demand
from stages.common.streaming import dtype_of
from stages.train.answers import Answers

TILE = (4096, 32768)
"""Tokens and words whose logits trl's head makes at a time. A device gives room for all the words, be there fewer."""
_AGAIN = 3
"""How often the products of a forward pass are computed in a step."""


def demand_of(
    checkpoint: Checkpoint,
    settings: Train,
    *,
    steps: int,
    amount: Amount,
    reference: Sequence[Answers],
    device: torch.device,
) -> Demand:
    """What it takes to train `checkpoint`.

    Args:
        amount: what goes through the model in all steps.
        reference: what it is measured on.
    """
    tokens, longest = amount.padded, amount.largest
    held = frozen(checkpoint, settings, device)
    training = plan.training(_model(checkpoint), _terms(settings), rank=settings.lora.rank)
    adapters = training.adapters // plan.LEARNING * 4
    architecture, width = checkpoint.architecture, dtype_of(device).itemsize
    hidden = int(architecture.text["hidden_size"])
    inner = max(tensor.shape[-1] for name, tensor in checkpoint.tensors.items() if _is_down(checkpoint, name))
    in_layer = 12 * hidden + architecture.top_k * (3 * inner + 2 * hidden)
    behind = longest * hidden * (2 * width + 4) + _tile(longest, int(architecture.text["vocab_size"]), device)
    activations = longest * width * architecture.layers * hidden + max(longest * width * in_layer, behind)
    measured = max((batch.input_ids.numel() for batch in reference), default=0)
    states = sum(batch.input_ids.numel() for batch in reference) * hidden * width
    working = max(activations, training.streamed * width // 2 + measured * width * in_layer)
    rate, told = _rate(checkpoint, longest, device)
    looks = 2 + steps // settings.evaluate_every
    products = _products_of_token(checkpoint) * (
        tokens * _AGAIN + 2 * looks * sum(int(batch.attention_mask.sum()) for batch in reference)
    )
    on_device = held + training.adapters + working
    files = sum(path.stat().st_size for path in checkpoint.files.values())
    host = used_memory() + states + max(tensor.size for tensor in checkpoint.tensors.values()) + 4 * adapters
    return Demand(
        output=files,
        spool=0,
        kept=8 * adapters,  # adapters, their moments and the best of them, twice while they are written
        host=host + (on_device if device.type == "cpu" else 0),
        device=0 if device.type == "cpu" else on_device + rates.CUDA_CONTEXT,
        seconds=products / rate + (looks + 2) * checkpoint.size / rates.DISK_RATE,
        basis=f"{told}, and what it takes to make numbers of 4 bits is not counted; a disk of "
        f"{rates.said(rates.DISK_RATE, 'B')} is assumed",
    )


def _tile(tokens: int, vocabulary: int, device: torch.device) -> int:
    """Bytes of the logits that the head has at a time."""
    rows, columns = min(tokens, TILE[0]), TILE[1]
    if device.type == "cpu":
        return rows * min(vocabulary, columns) * 4 * 10
    return rows * columns * dtype_of(device).itemsize


def frozen(checkpoint: Checkpoint, settings: Train, device: torch.device) -> int:
    """Bytes that the frozen weights take where they are trained: this much is known."""
    parts = plan.weights(_model(checkpoint), _terms(settings))
    wide = dtype_of(device).itemsize // 2
    small = ("experts", "scales") if settings.experts == "nf4" else ()
    return sum(size if part in small else size * wide for part, size in parts.items() if part != "vision")


def _model(checkpoint: Checkpoint) -> plan.Model:
    return plan.of_tensors(checkpoint.architecture, checkpoint.tensors)


def _terms(settings: Train) -> plan.Terms:
    form: plan.Format = "bf16"
    if settings.experts == "nf4":
        form = "nf4-double" if settings.double_quantization else "nf4"
    return plan.Terms(format=form, mtp=False, vision=False)


def _products_of_token(checkpoint: Checkpoint) -> float:
    """Multiplications and additions of a forward pass for a token; attention to earlier tokens is left out."""
    architecture = checkpoint.architecture
    share = Fraction(architecture.top_k, architecture.experts)
    found = Fraction(0)
    for name, tensor in checkpoint.tensors.items():
        part = architecture.part(name)
        if part is None or len(tensor.shape) < 2 or part.vision or part.mtp:
            continue
        found += 2 * math.prod(tensor.shape) * (share if part.kind in ("expert", "experts") else 1)
    return float(found)


def _is_down(checkpoint: Checkpoint, name: str) -> bool:
    part = checkpoint.architecture.part(name)
    return part is not None and part.projection == "down_proj"


def _rate(checkpoint: Checkpoint, longest: int, device: torch.device) -> tuple[float, str]:
    architecture = checkpoint.architecture
    at_once = longest * architecture.top_k // max(1, architecture.experts)
    return rates.compute_rate(checkpoint, tokens=at_once, threads=1, device=device)
