"""What becomes of each tensor of a checkpoint in block FP8: the family's table says which are quantised.

Experts are written one matrix each, whatever the source has: engines that load them in 3D tensors are newer, and some
older ones fail where a checkpoint mixes the two.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch

from gates.errors import UsageError
from registry import plan
from registry.families import Architecture, Part, scale_shape
from registry.families.parts import SCALE_SUFFIX, in_whole_blocks
from stages.common.checkpoint import Checkpoint
from stages.common.rewriting import Change, Product, Span, kept
from stages.quantize.fp8 import BLOCK, Noise, quantize_block

BLOCKS = (BLOCK, BLOCK)

MEASURED_EVERY = 4
"""What a cast loses is measured on one row of blocks in four: every matrix is looked at, and casting stays the longer
part of the work."""


def refuse_uneven(source: Checkpoint) -> None:
    """
    Raises:
        UsageError: a tensor to be quantised does not consist of whole blocks; named with its shape.
    """
    for name, part in _quantized(source):
        if not in_whole_blocks(name, source.tensors[name].shape, part, BLOCKS):
            shape = " x ".join(map(str, source.tensors[name].shape))
            raise UsageError(
                f"block FP8 needs dimensions that divide by {BLOCK}; {name} is {shape}",
                where=str(source.tensors[name].file),
                remedy="serve this model in BF16",
            )


def fp8_changes(source: Checkpoint, noise: dict[str, Noise], device: torch.device) -> list[Change]:
    """The changes that quantise `source`; casting measures what is lost into `noise`, by the name of the new tensor."""
    changes = []
    for name in source.tensors:
        part = source.architecture.part(name)
        if part is None or not part.quantized:
            changes.append(kept(source, name))
        elif part.kind == "experts":
            changes += _one_by_one(source, name, part, noise, device)
        else:
            changes.append(_cast(name, name, source.tensors[name].shape, None, noise, device))
    return changes


def quantization_config(source: Checkpoint) -> dict[str, Any]:
    """What config.json says of the quantised checkpoint. Modules are named exactly, since loaders compare names so."""
    left = [
        name.removesuffix(".weight")
        for name, tensor in source.tensors.items()
        if name.endswith(".weight") and len(tensor.shape) > 1 and not _is_quantized(source.architecture, name)
    ]
    return {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": list(BLOCKS),
        "modules_to_not_convert": sorted(left),
    }


def predicted_bytes(source: Checkpoint) -> int:
    """Bytes of all tensors of the quantised checkpoint, as `registry plan` adds them up."""
    model = plan.of_tensors(source.architecture, source.tensors)
    return sum(plan.weights(model, plan.Terms(format="fp8-block", mtp=True)).values())


def _quantized(source: Checkpoint) -> Iterator[tuple[str, Part]]:
    for name in source.tensors:
        part = source.architecture.part(name)
        if part is not None and part.quantized:
            yield name, part


def _is_quantized(architecture: Architecture, name: str) -> bool:
    part = architecture.part(name)
    return part is not None and part.quantized


def _one_by_one(
    source: Checkpoint, name: str, part: Part, noise: dict[str, Noise], device: torch.device
) -> Iterator[Change]:
    """The matrices of a 3D tensor [E, out, in]; of gate_up_proj the upper half of the rows is the gate's."""
    experts, rows, columns = source.tensors[name].shape
    projections = ("gate_proj", "up_proj") if part.projection == "gate_up_proj" else ("down_proj",)
    shape = (rows // len(projections), columns)
    size = math.prod(shape)
    for expert in range(experts):
        for half, projection in enumerate(projections):
            begin = (expert * len(projections) + half) * size
            made = _expert_name(source.architecture, part, projection, expert)
            yield _cast(name, made, shape, (Span(begin=begin, end=begin + size),), noise, device)


def _expert_name(architecture: Architecture, part: Part, projection: str, expert: int) -> str:
    """What the family calls one matrix of one expert."""
    assert part.layer is not None
    template = next(
        each for each in architecture.family.templates if each.kind == "expert" and each.projection == projection
    )
    return architecture.layer_prefix(part.layer) + template.name.format(expert=expert)


def _cast(
    name: str,
    made: str,
    shape: tuple[int, ...],
    spans: tuple[Span, ...] | None,
    noise: dict[str, Noise],
    device: torch.device,
) -> Change:
    noise[made] = Noise()
    products = (Product(made, "F8_E4M3", shape), Product(made + SCALE_SUFFIX, "F32", scale_shape(shape, BLOCKS)))
    make: Callable[[torch.Tensor], Sequence[torch.Tensor]] = partial(_quantize, made, noise[made], device)
    return Change(name, products, make, spans=spans, rows=BLOCK)


def _quantize(name: str, noise: Noise, device: torch.device, weight: torch.Tensor) -> list[torch.Tensor]:
    codes, scales = quantize_block(weight.to(device), name=name, noise=noise, every=MEASURED_EVERY)
    return [codes.cpu(), scales.cpu()]
