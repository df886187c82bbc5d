"""The rules of a whole checkpoint: what config.json states and what the headers hold must agree, tensor by tensor.

Pure: nothing here touches a disk. Each rule is a function from the facts to the problems it finds; `problems_of` asks
them all.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from gates.errors import UsageError
from registry.families import Family
from registry.manifests import Shape
from registry.tensors import Tensor

FP8_BLOCK = "fp8-block"
SCALE_SUFFIX = "_scale_inv"
"""A block FP8 weight `x.weight` has its scales in `x.weight_scale_inv`."""

_LAYER = re.compile(r"(?:^|\.)layers\.(\d+)\.")


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a file, or with one tensor in it, and what should be there instead."""

    file: str
    what: str
    expected: str | None = None

    def __str__(self) -> str:
        return f"{self.file}: {self.what}" + (f" (expected: {self.expected})" if self.expected else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What config.json states beside what the headers hold. `block` is None for a checkpoint that is not quantised."""

    config: dict[str, Any]
    family: Family
    tensors: dict[str, Tensor]
    block: tuple[int, int] | None
    experts: int
    top_k: int
    layers: int
    expert_layers: frozenset[int]

    def shape(self) -> Shape:
        return Shape(
            family=self.family.model_type,
            layers=self.layers,
            experts=self.experts,
            top_k=self.top_k,
            quantization=FP8_BLOCK if self.block else None,
            tensor_bytes=sum(tensor.size for tensor in self.tensors.values()),
        )

    def weights(self) -> Iterator[tuple[str, Tensor]]:
        """Every tensor but the scales of quantised ones."""
        return ((name, tensor) for name, tensor in self.tensors.items() if not (self.block and is_scale(name)))

    def problem(self, name: str, what: str, expected: str | None = None) -> Problem:
        return Problem(self.tensors[name].file.name, f"tensor {name}: {what}", expected)


def facts_of(
    config: dict[str, Any], family: Family, tensors: dict[str, Tensor], block: tuple[int, int] | None
) -> Facts:
    """
    Raises:
        UsageError: config.json lacks a number, or states an absurd one.
    """
    layers = family.layers(config)
    if layers > len(tensors):  # what follows would be as long as the number is large
        raise UsageError(f"num_hidden_layers is {layers}, but there are only {len(tensors)} tensors")
    return Facts(
        config=config,
        family=family,
        tensors=tensors,
        block=block,
        experts=family.experts(config),
        top_k=family.top_k(config),
        layers=layers,
        expert_layers=frozenset(family.expert_layers(config)),
    )


def problems_of(facts: Facts) -> list[Problem]:
    """Everything that is wrong, rule by rule."""
    return [problem for rule in _RULES for problem in rule(facts)]


def quantized(family: Family, name: str) -> bool:
    """Whether a quantised checkpoint of this family has the tensor `name` in FP8."""
    return bool(family.expert.fullmatch(name) or family.linear.fullmatch(name))


def is_scale(name: str) -> bool:
    return name.endswith(".weight" + SCALE_SUFFIX)


def scale_shape(shape: tuple[int, ...], block: tuple[int, int]) -> tuple[int, ...]:
    """The shape of the scales of a weight [out, in]: ⌈out/rows⌉ x ⌈in/columns⌉ of the blocks."""
    return tuple(-(-size // side) for size, side in zip(shape, block, strict=True))


def _counts_agree(facts: Facts) -> Iterator[Problem]:
    keys = (facts.family.count_key, *facts.family.count_aliases)
    stated = {key: facts.config[key] for key in keys if key in facts.config}
    if any(value != facts.experts for value in stated.values()):
        yield Problem("config.json", " but ".join(f"{key} is {value}" for key, value in stated.items()), "one number")
    if facts.top_k > facts.experts:
        yield Problem("config.json", f"each token is routed to {facts.top_k} of only {facts.experts} experts")


def _layers_agree(facts: Facts) -> Iterator[Problem]:
    found = {int(match[1]) for name in facts.tensors if (match := _LAYER.search(name))}
    stated = f"num_hidden_layers is {facts.layers}"
    if missing := sorted(set(range(facts.layers)) - found):
        yield Problem("config.json", f"{stated}, but there are no tensors of layer {_some(missing)}")
    if extra := sorted(found - set(range(facts.layers))):
        yield Problem("config.json", f"{stated}, but there are tensors of layer {_some(extra)}")


def _experts_are_complete(facts: Facts) -> Iterator[Problem]:
    """Each layer with experts has every projection of experts 0 … n-1 and no others; the other layers have none."""
    held: dict[int, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name, _ in facts.weights():
        if match := facts.family.expert.fullmatch(name):
            held[int(match["layer"])][int(match["expert"])].add(match["projection"])
    for layer in sorted(facts.expert_layers | held.keys()):
        experts = held[layer]
        if layer not in facts.expert_layers:
            yield Problem(
                "config.json", f"layer {layer} is stated to have no experts, but there are tensors of {len(experts)}"
            )
            continue
        expected = f"experts 0 to {facts.experts - 1}"
        if missing := list(islice((number for number in range(facts.experts) if number not in experts), 9)):
            yield Problem("config.json", f"layer {layer} has no expert {_some(missing)}", expected)
        if extra := sorted(number for number in experts if number >= facts.experts):
            yield Problem("config.json", f"layer {layer} has an expert {_some(extra)}", expected)
        for number, projections in sorted(experts.items()):
            for projection in facts.family.projections:
                if projection not in projections:
                    yield Problem("config.json", f"layer {layer}, expert {number}: there is no {projection}")


def _routers_agree(facts: Facts) -> Iterator[Problem]:
    """Each layer with experts has one router of a row an expert."""
    layers = set()
    for name, tensor in facts.weights():
        if match := facts.family.router.fullmatch(name):
            layers.add(int(match["layer"]))
            if len(tensor.shape) != 2 or tensor.shape[0] != facts.experts:
                yield facts.problem(name, f"the router has the shape {list(tensor.shape)}", f"{facts.experts} rows")
            if tensor.dtype.startswith("F8"):
                yield facts.problem(name, "the router is quantised", "BF16, F16 or F32")
    if missing := sorted(facts.expert_layers - layers):
        yield Problem("config.json", f"layer {_some(missing)} has no router")


def _nothing_is_missing(facts: Facts) -> Iterator[Problem]:
    family = facts.family
    required = {name.format(layer=layer) for name in family.required for layer in range(facts.layers)}
    dense = set(range(facts.layers)) - facts.expert_layers
    required |= {name.format(layer=layer) for name in family.dense for layer in dense}
    if not facts.config.get("tie_word_embeddings"):
        required.add(family.head)
    for name in sorted(required - facts.tensors.keys()):
        yield Problem("config.json", f"there is no tensor {name}, which every {family.model_type} has")


def _nothing_is_too_much(facts: Facts) -> Iterator[Problem]:
    """Every tensor belongs to the family, written as the family writes it (expert 3 is neither 03 nor ٣)."""
    for name, _ in facts.weights():
        plain = all(part == str(int(part)) for part in name.split(".") if part.isdecimal())
        if not plain or not any(pattern.fullmatch(name) for pattern in _patterns(facts.family)):
            yield facts.problem(name, f"not a tensor of a {facts.family.model_type}")


def _peers_agree(facts: Facts) -> Iterator[Problem]:
    """The same tensor of every layer and expert has one shape and one dtype."""
    peers: dict[str, list[str]] = defaultdict(list)
    for name in facts.tensors:
        peers[re.sub(r"(?<=\.)\d+(?=\.)", "N", name)].append(name)
    for names in peers.values():
        forms = Counter((facts.tensors[name].dtype, facts.tensors[name].shape) for name in names)
        (usual_dtype, usual_shape), _ = forms.most_common(1)[0]
        for name in names:
            tensor = facts.tensors[name]
            if (tensor.dtype, tensor.shape) != (usual_dtype, usual_shape):
                yield facts.problem(
                    name,
                    f"{tensor.dtype} {list(tensor.shape)}, unlike its peers in other layers and experts",
                    f"{usual_dtype} {list(usual_shape)}",
                )


def _quantization_is_complete(facts: Facts) -> Iterator[Problem]:
    """Every expert and linear is in FP8 with its scales, nothing else is, and config.json says just that."""
    if facts.block is None:
        for name, tensor in facts.tensors.items():
            if tensor.dtype.startswith("F8"):
                yield facts.problem(name, f"{tensor.dtype}, but config.json has no quantization_config")
        return
    kept = facts.config["quantization_config"].get("modules_to_not_convert") or []
    for name, tensor in facts.weights():
        scale = facts.tensors.get(name + SCALE_SUFFIX)
        module = name.removesuffix(".weight")
        if not quantized(facts.family, name):
            if tensor.dtype.startswith("F8"):
                yield facts.problem(name, f"{tensor.dtype}, but this tensor is never quantised")
            if facts.family.router.fullmatch(name) and module not in kept:
                yield Problem("config.json", f"modules_to_not_convert does not name {module}")
            continue
        if module in kept:
            yield Problem("config.json", f"modules_to_not_convert names {module}, which is quantised")
        if tensor.dtype != "F8_E4M3" or len(tensor.shape) != 2:
            yield facts.problem(name, f"{tensor.dtype} {list(tensor.shape)} was not quantised", "a matrix in F8_E4M3")
        elif scale is None:
            yield facts.problem(name, "its scales are missing", name + SCALE_SUFFIX)
        elif scale.dtype != "F32" or scale.shape != scale_shape(tensor.shape, facts.block):
            yield facts.problem(
                name + SCALE_SUFFIX,
                f"{scale.dtype} {list(scale.shape)}",
                f"F32 {list(scale_shape(tensor.shape, facts.block))}",
            )
    for name in facts.tensors:
        weight = name.removesuffix(SCALE_SUFFIX)
        if is_scale(name) and not (weight in facts.tensors and quantized(facts.family, weight)):
            yield facts.problem(name, "scales of nothing that is quantised")


def _patterns(family: Family) -> tuple[re.Pattern[str], ...]:
    return family.expert, family.router, family.linear, family.other


def _some(numbers: Iterable[int]) -> str:
    shown = [str(number) for number in islice(numbers, 9)]
    return ", ".join(shown[:8]) + (", …" if shown[8:] else "")


_RULES: tuple[Callable[[Facts], Iterator[Problem]], ...] = (
    _counts_agree,
    _layers_agree,
    _quantization_is_complete,
    _experts_are_complete,
    _routers_agree,
    _nothing_is_missing,
    _nothing_is_too_much,
    _peers_agree,
)
