"""What a tensor of a checkpoint is: `Part` says it of a name, `Spec` adds the shape that config.json gives it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from registry.tensors import DTYPES

Kind = Literal["expert", "experts", "router", "other"]
Role = Literal["experts", "router", "attention", "shared experts", "dense", "embeddings", "norms", "vision"]
Need = Literal["always", "usual", "rare"]

SCALE_SUFFIX = "_scale_inv"
"""A block FP8 weight `x.weight` has its scales in `x.weight_scale_inv`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What a tensor is, as its family says by its name.

    kind: "expert" is one matrix of one expert; "experts" those of all experts of a layer in one 3D tensor, whose axis 0
        counts experts; "router" has a row (weight) or a number (correction bias) for each expert on axis 0.
    role: what it serves, as `registry plan` counts it.
    layer: None outside decoder layers; those of an MTP head are numbered from num_hidden_layers up.
    projection: "gate_proj", "up_proj", "down_proj" or "gate_up_proj" of an expert, whatever the family calls it.
    quantized: a block FP8 checkpoint has it in E4M3.
    listed: it is a linear layer that block FP8 leaves as it is; modules_to_not_convert must say so, or an engine takes
        it for a quantised one.
    need: "always", "usual" (published checkpoints have it, and load without) or "rare" (some have it, to no effect).
    """

    kind: Kind
    role: Role
    layer: int | None
    expert: int | None
    projection: str | None
    quantized: bool
    listed: bool
    mtp: bool
    vision: bool
    need: Need


@dataclass(frozen=True, slots=True)
class Spec:
    """A tensor that a whole checkpoint holds. `part` is None for the scales of a quantised tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    part: Part | None

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype]


def in_whole_blocks(name: str, shape: tuple[int, ...], part: Part, block: tuple[int, int]) -> bool:
    """Whether block FP8 can hold a tensor: vLLM refuses experts whose dimensions do not divide by the block, and merges
    projections block by block. The last row of blocks of kv_a_proj_with_mqa may be partial: engines merge it behind
    q_a_proj, and DeepSeek-V3 is published so."""
    *_, rows, columns = (1, *shape)
    halves = 2 if part.projection == "gate_up_proj" else 1
    last = name.endswith("kv_a_proj_with_mqa.weight")
    return len(shape) > 1 and columns % block[1] == 0 and (rows % (halves * block[0]) == 0 or last)


def scale_shape(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    """The shape of the scales of a weight [out, in] or [experts, out, in]: ⌈out/rows⌉ x ⌈in/columns⌉ of the blocks."""
    *batch, out, into = shape
    return (*batch, -(-out // block[0]), -(-into // block[1]))
