"""What a prune asks of the machine: the disk exactly, memory and time by arithmetic over the tensors.

    products   of a layer, for each token: 2 for each number of a matrix that every token goes through, and of the top-k
               experts, which are run twice (once to score them, once to go on through those that stay); and those of
               attention with all earlier tokens, 2·L·heads·width for a sequence of L tokens
    time       products / rate + (source + spool's traffic + candidate) / speed of the disk
    memory     the largest layer, and what the batches in work hold

Rates are those of `stages.common.rates`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain

import torch

from registry import plan
from registry.recipes import Prune
from stages.common import rates
from stages.common.checkpoint import Checkpoint
from stages.common.experts import ANSWER_BYTES
from stages.common.machine import used_memory
from stages.common.preflight import Demand, Reading
from stages.common.spool import AHEAD
from stages.common.streaming import dtype_of
from stages.prune import layers

Matrices = Mapping[int, Sequence[tuple[str, int]]]


def demand_of(checkpoint: Checkpoint, settings: Prune, keep: int, reading: Reading, device: torch.device) -> Demand:
    """What it takes to prune `checkpoint` to `keep` experts in each layer."""
    written = _output(checkpoint, settings, keep)
    if not reading.batches:
        return Demand(
            output=written,
            spool=0,
            host=used_memory() + max((tensor.size for tensor in checkpoint.tensors.values()), default=0),
            device=0,
            seconds=2 * written / rates.DISK_RATE,
            basis=f"no data are looked at; a disk of {rates.said(rates.DISK_RATE, 'B')} is assumed",
        )
    asked = layers.cost(checkpoint, device, settings, reading.batches)
    slots = min(layers.slots_of(device), len(reading.batches))
    architecture, each = checkpoint.architecture, reading.amount.padded // len(reading.batches)
    at_once = each * architecture.top_k // architecture.experts
    rate, told = rates.compute_rate(checkpoint, tokens=at_once, threads=slots, device=device)
    moved = checkpoint.size + asked.traffic + written
    matrices = _matrices(checkpoint, layers.visited(checkpoint, settings))
    host, on_device = _memory(checkpoint, matrices, reading, device)
    return Demand(
        output=written,
        spool=asked.size,
        host=host,
        device=on_device,
        seconds=_products(checkpoint, matrices, reading) / rate + moved / rates.DISK_RATE,
        basis=f"{told}; a disk of {rates.said(rates.DISK_RATE, 'B')} is assumed",
    )


def _output(checkpoint: Checkpoint, settings: Prune, keep: int) -> int:
    """Bytes of the candidate: its tensors, and all else as it is; of headers it has a little less."""
    model = plan.of_tensors(checkpoint.architecture, checkpoint.tensors)
    terms = plan.Terms(format="bf16", mtp=settings.mtp == "prune")
    files = sum(path.stat().st_size for path in checkpoint.files.values())
    return sum(plan.weights(model, terms, experts=keep).values()) + files - checkpoint.size


def _matrices(checkpoint: Checkpoint, visited: Sequence[int]) -> Matrices:
    """By layer: of each matrix what kind it is of and how many numbers it has."""
    found: dict[int, list[tuple[str, int]]] = {layer: [] for layer in visited}
    for name, tensor in checkpoint.tensors.items():
        part = checkpoint.architecture.part(name)
        if part is not None and part.layer in found and len(tensor.shape) > 1 and not part.vision:
            found[part.layer].append((part.kind, math.prod(tensor.shape)))
    return found


def _products(checkpoint: Checkpoint, matrices: Matrices, reading: Reading) -> float:
    """Multiplications and additions of the whole run."""
    architecture, text = checkpoint.architecture, checkpoint.architecture.text
    of_token = 0.0
    for kind, numbers in chain.from_iterable(matrices.values()):
        routed = kind in ("expert", "experts")
        of_token += 2 * numbers * (2 * architecture.top_k / architecture.experts if routed else 1)
    heads = text.get("num_attention_heads") or 0
    width = text.get("v_head_dim") or text.get("head_dim") or text["hidden_size"] // max(1, heads)
    with_earlier = 2 * architecture.full_attention_layers * heads * width
    shapes = [batch.input_ids.shape for batch in reading.batches]
    return sum(rows * length * (of_token + with_earlier * length) for rows, length in shapes)


def _memory(checkpoint: Checkpoint, matrices: Matrices, reading: Reading, device: torch.device) -> tuple[int, int]:
    """Bytes at the peak, of the host and of the device."""
    width, slots = dtype_of(device).itemsize, layers.slots_of(device)
    weights = max(sum(numbers for _, numbers in found) for found in matrices.values()) * width
    largest = max(tensor.size for tensor in checkpoint.tensors.values())  # as it is read, beside its copy
    tokens = max(batch.input_ids.numel() for batch in reading.batches)
    longest = max(batch.input_ids.shape[1] for batch in reading.batches)
    text, architecture = checkpoint.architecture.text, checkpoint.architecture
    states = tokens * text["hidden_size"] * width
    answers = min(states * architecture.top_k, ANSWER_BYTES)
    # in a slot: the states before, between and behind the halves and what attention makes of them (twice as much),
    # the answers of the experts before and after they are weighted, the mask of a padded batch, the router's logits
    working = slots * (8 * states + 2 * answers + tokens * longest + 4 * 4 * tokens * architecture.experts)
    waiting = (slots + AHEAD) * 2 * states
    copied = weights // 2  # the experts that stay, while both are there
    held = reading.amount.padded * 16  # ids and mask
    if device.type == "cpu":
        return used_memory() + held + waiting + largest + weights + max(working, copied), 0
    return used_memory() + held + waiting + largest, rates.CUDA_CONTEXT + weights + max(working, copied)
