"""Fold trained adapters into the checkpoint that they were trained on.

What ships is the original tensor plus the adapter's product, summed in float32 and rounded once to the tensor's own
dtype, under its own name and in its own layout. Nothing of the 4-bit weights goes into it, and every tensor without an
adapter keeps its bytes: experts, embeddings, a vision tower, multi-token prediction.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from gates.errors import IntegrityError
from stages.common.checkpoint import Checkpoint
from stages.common.rewriting import Change, Product, kept, rewrite
from stages.train.adapters import ROUTER

_MODULE = re.compile(r"(?:base_model\.model\.)?model\.layers\.([0-9]+)\.(.+)")
"""A module of a decoder layer in an adapted causal language model of transformers."""


@dataclass(frozen=True, slots=True)
class Delta:
    """What is added to a matrix [out, in]: scale · b · a.

    a: [rank, in], b: [out, rank], both in float32 and in memory of the host.
    """

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.b.shape[0], self.a.shape[1]

    def added_to(self, matrix: torch.Tensor) -> torch.Tensor:
        """The sum, in float32 and then rounded to the dtype of `matrix`."""
        added = torch.addmm(matrix.float(), self.b.to(matrix.device), self.a.to(matrix.device), alpha=self.scale)
        return added.to(matrix.dtype)


class OverflowsError(IntegrityError):
    """What was trained is more than the dtype of a tensor can hold."""


def deltas(model: nn.Module, checkpoint: Checkpoint) -> dict[str, Delta]:
    """What the adapters of `model` (of `adapters.attach`) add, by the names that `checkpoint` has on disk. They are
    copies: further training does not change them.

    Raises:
        IntegrityError: the checkpoint has no such tensor.
    """
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper

    found = {}
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            match = _MODULE.fullmatch(name)
            assert match is not None, f"an adapter on {name}, which is in no decoder layer"
            parameter = module.parameter_name if isinstance(module, ParamWrapper) else "weight"
            (adapter,) = module.lora_A
            found[_on_disk(checkpoint, int(match[1]), f"{match[2]}.{parameter}")] = Delta(
                *(part[adapter].weight.detach().float().cpu().clone() for part in (module.lora_A, module.lora_B)),
                scale=module.scaling[adapter],
            )
    return found


def merge(
    checkpoint: Checkpoint,
    deltas: Mapping[str, Delta],
    target: Path,
    *,
    advance: Callable[[float], object] = lambda _: None,
    shard_size: int | None = None,
) -> None:
    """Writes `checkpoint` with `deltas` folded in to the folder `target`.

    Args:
        deltas: by the names of the checkpoint's tensors.
        advance: is told how many bytes of the checkpoint's tensors are done.
        shard_size: bytes of tensors in a shard; None keeps the checkpoint's shards.

    Raises:
        IntegrityError: the checkpoint is damaged, or a delta is of no tensor or of another shape.
        OverflowsError: a delta makes a tensor NaN or infinity.
    """
    merged = Merged(checkpoint, deltas)
    changes = [merged.change(name) for name in checkpoint.tensors]
    rewrite(checkpoint, target, changes, config={}, advance=advance, shard_size=shard_size)


class Merged(Checkpoint):
    """`checkpoint` as `merge` would write it, without writing it: a tensor is folded when it is read.

    Raises:
        IntegrityError: a delta is of no tensor, or of another shape.
    """

    def __init__(self, checkpoint: Checkpoint, deltas: Mapping[str, Delta]) -> None:
        vars(self).update(vars(checkpoint))  # its headers are read already
        self.deltas = deltas
        for name, delta in deltas.items():
            entry = self._entry(name)
            if entry.shape != delta.shape:
                raise IntegrityError(
                    f"the adapter is of a matrix {list(delta.shape)}, the tensor is {list(entry.shape)}",
                    where=f"{self.folder}, {name}",
                )

    def tensor(self, name: str) -> torch.Tensor:
        """As `Checkpoint.tensor`, with what was trained."""
        return self._folded(name, super().tensor(name)) if name in self.deltas else super().tensor(name)

    def change(self, name: str) -> Change:
        """What becomes of a tensor of the checkpoint."""
        if name not in self.deltas:
            return kept(self, name)
        entry = self.tensors[name]
        return Change(name, (Product(name, entry.dtype, entry.shape),), lambda tensor: [self._folded(name, tensor)])

    def _folded(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        made = self.deltas[name].added_to(tensor)
        if not made.isfinite().all():
            raise OverflowsError(
                "with what was trained, the tensor holds NaN or infinity",
                where=f"{self.folder}, {name}",
                remedy="train with a lower learning rate",
            )
        return made


def _on_disk(checkpoint: Checkpoint, layer: int, short: str) -> str:
    """The name on disk of a parameter, called `short` below its decoder layer: families differ in their routers."""
    layers = checkpoint.architecture.layers
    if layer >= layers:
        raise IntegrityError(f"layer {layer} was trained, but there are {layers}", where=str(checkpoint.folder))
    prefix = checkpoint.architecture.layer_prefix(layer)
    if short != ROUTER:
        name = prefix + short
    else:
        parts = {each: checkpoint.architecture.part(each) for each in checkpoint.tensors if each.startswith(prefix)}
        routers = [each for each, part in parts.items() if part is not None and part.kind == "router"]
        name = routers[0] if len(routers) == 1 else prefix + short
    if name not in checkpoint.tensors:
        raise IntegrityError(f"there is no tensor {name}, which was trained", where=str(checkpoint.folder))
    return name
