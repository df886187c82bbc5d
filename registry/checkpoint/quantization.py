"""The rules of block FP8: experts and linear layers are in E4M3 with their scales, or config.json says they are not.

Engines load what breaks these rules without a word: an expert without scales, a linear layer in BF16 that they take for
a quantised one. The layout is that of the official Qwen checkpoints: FineGrainedFP8 in transformers, `fp8` in vLLM.
"""

from __future__ import annotations

from collections.abc import Iterator

from registry.checkpoint.facts import Facts, Problem, is_scale
from registry.families import Part, scale_shape
from registry.families.parts import SCALE_SUFFIX
from registry.tensors import Tensor

_MERGED = (
    ("q_proj", "k_proj", "v_proj"),
    ("gate_proj", "up_proj"),
    ("q_a_proj", "kv_a_proj_with_mqa"),
    ("in_proj_qkv", "in_proj_z"),
    ("in_proj_a", "in_proj_b"),
)
"""What vLLM computes as one layer: quantised together or not at all."""

_SCALES = ("F32", "BF16", "F16")
"""What scales are written in: F32 by DeepSeek and by Sluice, BF16 by Qwen. Engines make F32 of them."""


def quantization_agrees(facts: Facts) -> Iterator[Problem]:
    if facts.block is None:
        for name, tensor in facts.tensors.items():
            if tensor.dtype.startswith("F8"):
                yield facts.problem(name, f"{tensor.dtype}, but config.json has no quantization_config")
        return
    kept = frozenset(facts.kept)
    for name, part in facts.parts.items():
        if part is not None:
            yield from _weight(facts, name, part, kept)
    yield from _scales_of_nothing(facts)
    yield from _mtp_is_one(facts)
    yield from _merged_agree(facts, kept)


def _weight(facts: Facts, name: str, part: Part, kept: frozenset[str]) -> Iterator[Problem]:
    """One tensor: quantised with its scales and not listed, or as it was and, if an engine must be told, listed."""
    tensor, module = facts.tensors[name], name.removesuffix(".weight")
    if not part.quantized:
        if tensor.dtype.startswith("F8"):
            yield facts.problem(name, f"{tensor.dtype}, but this tensor is never quantised", "BF16, F16 or F32")
        elif part.listed and module not in kept:
            yield Problem("config.json", f"modules_to_not_convert does not name {module}, which is not quantised")
        return
    listed = module in kept or (part.projection is not None and _experts_module(module) in kept)
    if tensor.dtype.startswith("F8"):
        if listed:
            yield Problem("config.json", f"modules_to_not_convert names {module}, which is quantised")
        yield from _scale(facts, name, tensor)
    elif part.projection and not part.mtp:
        yield facts.problem(name, f"{tensor.dtype} {list(tensor.shape)} was not quantised", "an expert in F8_E4M3")
    elif not listed:
        yield facts.problem(
            name,
            f"{tensor.dtype} {list(tensor.shape)} was not quantised",
            f"a matrix in F8_E4M3, or {_module_to_list(module, part)} in modules_to_not_convert",
        )


def _scale(facts: Facts, name: str, tensor: Tensor) -> Iterator[Problem]:
    assert facts.block is not None
    scale = facts.tensors.get(name + SCALE_SUFFIX)
    if tensor.dtype != "F8_E4M3" or len(tensor.shape) < 2:
        yield facts.problem(name, f"{tensor.dtype} {list(tensor.shape)}", "a matrix in F8_E4M3")
    elif scale is None:
        yield facts.problem(name, "its scales are missing", name + SCALE_SUFFIX)
    else:
        expected = scale_shape(tensor.shape, facts.block)
        if scale.dtype not in _SCALES or scale.shape != expected:
            yield facts.problem(
                name + SCALE_SUFFIX, f"{scale.dtype} {list(scale.shape)}", f"{' or '.join(_SCALES)} {list(expected)}"
            )


def _scales_of_nothing(facts: Facts) -> Iterator[Problem]:
    for name in facts.tensors:
        if is_scale(name):
            weight = facts.tensors.get(name.removesuffix(SCALE_SUFFIX))
            if weight is None or not weight.dtype.startswith("F8"):
                yield facts.problem(name, "scales of nothing that is quantised")


def _mtp_is_one(facts: Facts) -> Iterator[Problem]:
    """An MTP head is quantised, or it is not."""
    parts = {name: part for name, part in facts.parts.items() if part and part.mtp and part.quantized}
    quantized = [name for name in parts if facts.tensors[name].dtype.startswith("F8")]
    left = [name for name in parts if name not in frozenset(quantized)]
    if quantized and left:
        yield facts.problem(left[0], f"was not quantised, but {len(quantized)} other tensors of the MTP head were")


def _merged_agree(facts: Facts, kept: frozenset[str]) -> Iterator[Problem]:
    merged = {name: group for group in _MERGED for name in group}
    linears = {name.removesuffix(".weight") for name, part in facts.parts.items() if part and not part.projection}
    for module in sorted(linears):
        parent, _, last = module.rpartition(".")
        for other in merged.get(last, ()):
            peer = f"{parent}.{other}"
            if module in kept and peer in linears and peer not in kept:
                yield Problem("config.json", f"modules_to_not_convert names {module} but not {peer}", "both or neither")


def _module_to_list(module: str, part: Part) -> str:
    return _experts_module(module) if part.projection else module


def _experts_module(module: str) -> str:
    """What stands for all experts of a layer, which vLLM leaves as they are together or not at all."""
    return module.partition(".experts.")[0] + ".experts"
