"""The experts of one layer in four bits, each matrix a `Linear4bit` of bitsandbytes of its own.

bitsandbytes passes over experts that lie in 3D tensors without a word, and the layer would stay in BF16. Here the 3D
tensors never exist: one expert at a time is read, quantised and let go. Why one by one: docs/decisions/0028.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from copy import copy
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from gates.errors import IntegrityError
from stages.common import loading
from stages.common.checkpoint import Checkpoint

# On import it says that an optional kernel, which it would take from the network, is not there.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

QUANTISER = "nf4"
BLOCK = 64
"""How many numbers share a scale, as in QLoRA (https://arxiv.org/abs/2305.14314): of a matrix along its rows, and on
from one row into the next."""


class Experts4bit(nn.Module):
    """What stands in the place of an experts module of transformers: frozen, and called in the same way.

    Args:
        experts: that module; of its weights only the shapes are used.
    """

    def __init__(self, experts: nn.Module) -> None:
        super().__init__()
        self.num_experts: int = experts.num_experts
        self.shapes = {name: tuple(weight.shape[1:]) for name, weight in experts.named_parameters(recurse=False)}
        """By projection, the [out, in] of each expert's matrix: gate_up_proj (the gate's rows first) and down_proj."""
        self.act_fn = experts.act_fn
        self.gate_up_proj = nn.ModuleList()
        self.down_proj = nn.ModuleList()

    def fill(
        self, checkpoint: Checkpoint, layer: int, device: torch.device, dtype: torch.dtype, *, double: bool
    ) -> None:
        """Quantises the experts of the layer numbered `layer`.

        Args:
            dtype: in what products are computed.
            double: whether the scales are quantised too.

        Raises:
            IntegrityError: a matrix is missing, too much, of another shape, or holds NaN or infinity.
        """
        for gate_up, down in _matrices(checkpoint, layer, self.num_experts, self.shapes):
            self.gate_up_proj.append(quantised(gate_up.to(device, dtype), double=double))
            self.down_proj.append(quantised(down.to(device, dtype), double=double))

    def forward(self, states: torch.Tensor, index: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        """
        Args:
            states: [T, H].
            index, weights: [T, K], from the router.
        """
        chosen = index.flatten()
        by_expert = chosen.argsort(stable=True)
        counts = chosen.bincount(minlength=self.num_experts).tolist()
        asked = states[by_expert // index.shape[1]].split(counts)
        answers = torch.cat([self._answer(expert, some) for expert, some in enumerate(asked) if len(some)])
        answers = answers[by_expert.argsort()].view(*index.shape, -1)
        # Weighted, then summed over K: as stages.common.experts does it, so what differs from it are the four bits.
        return (answers * weights.unsqueeze(-1)).sum(dim=1).to(states.dtype)

    def _answer(self, expert: int, states: torch.Tensor) -> torch.Tensor:
        gate, up = _product(self.gate_up_proj[expert], states).chunk(2, dim=-1)
        return _product(self.down_proj[expert], self.act_fn(gate) * up)


def _product(linear: Any, states: torch.Tensor) -> torch.Tensor:
    """What `linear` (of `quantised`) makes of states [n, in]. Where its rows are not whole blocks, bitsandbytes 0.50.2
    reads them wrongly on a CPU, without a word, and warns on a GPU (docs/experiments.md)."""
    if linear.in_features % BLOCK == 0:
        answer: torch.Tensor = linear(states)
        return answer
    return _InNumbers.apply(states, linear.weight)


class _InNumbers(torch.autograd.Function):
    """states · Wᵀ, as `Linear4bit` computes it: W is in numbers only while it is used, for the backward pass too."""

    @staticmethod
    def forward(context: Any, states: torch.Tensor, weight: Any) -> torch.Tensor:
        context.weight = weight
        return functional.linear(states, numbers(weight))

    @staticmethod
    def backward(context: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient @ numbers(context.weight), None


def numbers(weight: Any) -> torch.Tensor:
    """The matrix [out, in] that the four bits of `weight` (of `quantised`) stand for, in the dtype that it had.

    They are read as one row: so a kernel of bitsandbytes that takes each row to begin a block reads any width rightly.
    """
    from bitsandbytes.functional import dequantize_4bit

    state = copy(weight.quant_state)
    shape, state.shape = state.shape, torch.Size((1, 2 * weight.numel()))
    row: torch.Tensor = dequantize_4bit(weight.data, state)
    return row.flatten()[: shape.numel()].view(shape)


def _matrices(
    checkpoint: Checkpoint, layer: int, experts: int, shapes: dict[str, tuple[int, ...]]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Of each expert in turn gate_up_proj [2·I, H] and down_proj [H, I], whichever way they lie on disk."""
    single: dict[tuple[str, int], str] = {}
    together: dict[str, str] = {}
    prefix = checkpoint.architecture.layer_prefix(layer)
    for name in checkpoint.tensors:
        part = checkpoint.architecture.part(name) if name.startswith(prefix) else None
        if part is not None and part.kind == "expert":
            single[str(part.projection), int(part.expert or 0)] = name
        elif part is not None and part.kind == "experts":
            together[str(part.projection)] = name
    for (_, expert), name in single.items():
        if together or expert >= experts:
            what = "the experts lie both one by one and together" if together else "config.json states fewer experts"
            raise IntegrityError(what, where=f"{checkpoint.folder}, {name}")
    rows, hidden = shapes["gate_up_proj"]
    for expert in range(experts):
        if together:
            gate_up, down = (_slice(checkpoint, layer, together, key, expert, experts, shapes[key]) for key in shapes)
        else:
            half = (rows // 2, hidden)
            gate, up = (_one(checkpoint, layer, single, key, expert, half) for key in ("gate_proj", "up_proj"))
            gate_up = torch.cat([gate, up])
            down = _one(checkpoint, layer, single, "down_proj", expert, shapes["down_proj"])
        for name, matrix in (("gate_up_proj", gate_up), ("down_proj", down)):
            if not matrix.isfinite().all():
                raise IntegrityError(
                    f"{name} of expert {expert} in layer {layer} holds NaN or infinity",
                    where=str(checkpoint.folder),
                    remedy="compare the files with their publisher's digests",
                )
        yield gate_up, down


def _one(
    checkpoint: Checkpoint,
    layer: int,
    names: dict[tuple[str, int], str],
    projection: str,
    expert: int,
    shape: tuple[int, ...],
) -> torch.Tensor:
    name = names.get((projection, expert))
    if name is None:
        raise IntegrityError(f"expert {expert} of layer {layer} has no {projection}", where=str(checkpoint.folder))
    return loading.checked(checkpoint, name, shape)


def _slice(
    checkpoint: Checkpoint,
    layer: int,
    names: dict[str, str],
    projection: str,
    expert: int,
    experts: int,
    shape: tuple[int, ...],
) -> torch.Tensor:
    name = names.get(projection)
    if name is None:
        raise IntegrityError(f"the experts of layer {layer} have no {projection}", where=str(checkpoint.folder))
    found, expected = list(checkpoint.tensors[name].shape), [experts, *shape]
    if found != expected:
        raise IntegrityError(
            f"the shape is {found}, but the model's is {expected}", where=f"{checkpoint.folder}, {name}"
        )
    size = shape[0] * shape[1]
    return checkpoint.numbers(name, expert * size, (expert + 1) * size).view(shape)


def quantised(matrix: torch.Tensor, *, double: bool) -> nn.Module:
    """`matrix` [out, in] as a linear layer that computes in its dtype.

    Args:
        double: whether the scales are quantised too.
    """
    import bitsandbytes

    out, into = matrix.shape
    linear = bitsandbytes.nn.Linear4bit(into, out, bias=False, compute_dtype=matrix.dtype, device="meta")
    # On a CPU that multiplies in BF16, bitsandbytes would pack the weights anew in place when the model is evaluated,
    # and compute in BF16: the numbers would change with the mode.
    linear.support_avx512bf16_for_cpu = False
    linear.weight = bitsandbytes.nn.Params4bit(
        matrix, requires_grad=False, quant_type=QUANTISER, blocksize=BLOCK, compress_statistics=double
    ).to(matrix.device)
    return linear
