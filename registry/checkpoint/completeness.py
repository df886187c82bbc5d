"""The rules of a whole checkpoint: what config.json states and what the headers hold must agree, tensor by tensor.

Pure: nothing here touches a disk. Each rule is a function from the facts to the problems it finds; `problems_of` asks
them all. The rules of block FP8 are in `registry.checkpoint.quantization`.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from registry.checkpoint.facts import Facts, Problem
from registry.checkpoint.quantization import quantization_agrees
from registry.families import Architecture

_FLOATS = ("BF16", "F16", "F32")


def problems_of(facts: Facts) -> list[Problem]:
    """Everything that is wrong, rule by rule."""
    return [problem for rule in _RULES for problem in rule(facts)]


def _counts_agree(facts: Facts) -> Iterator[Problem]:
    architecture = facts.architecture
    stated = architecture.stated_counts()
    if any(value != architecture.experts for value in stated.values()):
        yield Problem("config.json", " but ".join(f"{key} is {value}" for key, value in stated.items()), "one number")
    if architecture.top_k > architecture.experts:
        yield Problem(
            "config.json", f"each token is routed to {architecture.top_k} of only {architecture.experts} experts"
        )
    if architecture.experts % architecture.groups:
        yield Problem("config.json", f"{architecture.experts} experts do not divide into {architecture.groups} groups")


def _layers_agree(facts: Facts) -> Iterator[Problem]:
    architecture = facts.architecture
    found = {part.layer for part in facts.parts.values() if part and not part.mtp}
    stated = f"num_hidden_layers is {architecture.layers}"
    if missing := [layer for layer in range(architecture.layers) if layer not in found]:
        yield Problem("config.json", f"{stated}, but there are no tensors of layer {_some(missing)}")
    if extra := sorted({layer for name in facts.parts if (layer := _layer_beyond(architecture, name)) is not None}):
        yield Problem("config.json", f"{stated}, but there are tensors of layer {_some(extra)}")


def _experts_are_complete(facts: Facts) -> Iterator[Problem]:
    """Each layer with experts has every projection of experts 0 … n-1 and no others, all in one layout."""
    apart: dict[int, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    fused: dict[int, set[str]] = defaultdict(set)
    for part in facts.parts.values():
        if part and part.layer is not None and part.projection is not None:
            if part.expert is None:
                fused[part.layer].add(part.projection)
            else:
                apart[part.layer][part.expert].add(part.projection)
    architecture = facts.architecture
    mtp = architecture.mtp_layers if facts.has_mtp else []
    for layer in [*architecture.expert_layers, *mtp]:
        if layer in fused and layer in apart:
            yield Problem("config.json", f"layer {layer} has experts both in 3D tensors and one by one", "one layout")
        elif layer in fused:
            for projection in sorted({"gate_up_proj", "down_proj"} - fused[layer]):
                yield Problem("config.json", f"layer {layer} has no {projection} of its experts")
        else:
            yield from _one_by_one(layer, apart[layer], architecture.experts)
    layers = set(architecture.expert_layers)
    if (three_d := sorted(layers & fused.keys())) and (single := sorted(layers & apart.keys() - fused.keys())):
        yield Problem(
            "config.json",
            f"layer {_some(three_d)} has its experts in 3D tensors, layer {_some(single)} one by one",
            "one layout for all layers",
        )


def _one_by_one(layer: int, experts: dict[int, set[str]], count: int) -> Iterator[Problem]:
    expected = f"experts 0 to {count - 1}"
    if missing := list(islice((number for number in range(count) if number not in experts), 9)):
        yield Problem("config.json", f"layer {layer} has no expert {_some(missing)}", expected)
    if extra := sorted(number for number in experts if number >= count):
        yield Problem("config.json", f"layer {layer} has an expert {_some(extra)}", expected)
    for number, projections in sorted(experts.items()):
        for projection in ("gate_proj", "up_proj", "down_proj"):
            if projection not in projections:
                yield Problem("config.json", f"layer {layer}, expert {number}: there is no {projection}")


def _nothing_is_missing(facts: Facts) -> Iterator[Problem]:
    """Everything besides experts, which have a rule of their own, and an MTP head, which is whole or absent."""
    architecture = facts.architecture
    model_type = architecture.family.model_type
    for spec in architecture.tensors(fused=False, mtp=facts.has_mtp, experts=False):
        assert spec.part is not None
        if spec.name not in facts.tensors and spec.part.need == "always":
            why = (
                "the MTP head is not whole" if spec.part.mtp else f"which every {model_type} with this config.json has"
            )
            yield Problem("config.json", f"there is no tensor {spec.name}, {why}")


def _nothing_is_too_much(facts: Facts) -> Iterator[Problem]:
    architecture = facts.architecture
    misplaced: dict[int | None, set[int | None]] = defaultdict(set)
    for name, part in facts.parts.items():
        if part is None and _layer_beyond(architecture, name) is None:
            elsewhere = architecture.elsewhere(name)
            if elsewhere and elsewhere.projection:
                misplaced[elsewhere.layer].add(elsewhere.expert)
                continue
            of = "this layer" if elsewhere else f"a {architecture.family.model_type}"
            yield facts.problem(name, f"not a tensor of {of} with this config.json")
    for layer, experts in misplaced.items():
        yield Problem(
            "config.json", f"layer {layer} is stated to have no experts, but there are tensors of {len(experts)}"
        )


def _shapes_agree(facts: Facts) -> Iterator[Problem]:
    """Every tensor has the shape that the numbers of config.json give it."""
    for name, spec in facts.specs.items():
        if spec is not None and spec.part is not None and spec.part.need != "rare":
            shape = facts.tensors[name].shape
            if shape != spec.shape:
                yield facts.problem(name, f"its shape is {list(shape)}", f"{list(spec.shape)}, by config.json")


def _dtypes_agree(facts: Facts) -> Iterator[Problem]:
    """Weights are floats, and the same tensor of every layer has one dtype. What is quantised, others judge."""
    peers: dict[str, list[str]] = defaultdict(list)
    for name, part in facts.parts.items():
        if part is None or facts.tensors[name].dtype.startswith("F8"):
            continue
        if facts.tensors[name].dtype not in _FLOATS:
            yield facts.problem(name, f"{facts.tensors[name].dtype} is no dtype of weights", ", ".join(_FLOATS))
        elif not (facts.block and part.quantized):
            peers[("mtp " if part.mtp else "") + _NUMBER.sub("N", name)].append(name)
    for names in peers.values():
        (usual, _), *_ = Counter(facts.tensors[name].dtype for name in names).most_common(1)
        for name in names:
            if facts.tensors[name].dtype != usual:
                yield facts.problem(
                    name, f"{facts.tensors[name].dtype}, unlike its peers in other layers and experts", usual
                )


def _layer_beyond(architecture: Architecture, name: str) -> int | None:
    """The layer that the name states, if config.json states no such layer."""
    begin, _, _ = architecture.family.layer.partition("{layer}")
    match = _LAYER.match(name, len(begin)) if name.startswith(begin) else None
    layer = int(match[1]) if match else 0
    return layer if layer >= architecture.layers and layer not in architecture.mtp_layers else None


def _some(numbers: Iterable[int]) -> str:
    shown = [str(number) for number in islice(numbers, 9)]
    return ", ".join(shown[:8]) + (", …" if shown[8:] else "")


_LAYER = re.compile(r"(0|[1-9][0-9]{0,8})\.")
_NUMBER = re.compile(r"(?<=\.)[0-9]+(?=\.)")

_RULES: tuple[Callable[[Facts], Iterator[Problem]], ...] = (
    _counts_agree,
    _layers_agree,
    quantization_agrees,
    _experts_are_complete,
    _nothing_is_too_much,
    _nothing_is_missing,
    _shapes_agree,
    _dtypes_agree,
)
