"""Where the templates of a family have tensors, once config.json says how many layers there are and of which type."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from registry.families.arithmetic import Numbers
from registry.families.parts import Part, Spec
from registry.families.schema import Family, Template

_NUMBER = re.compile(r"0|[1-9][0-9]{0,8}")
"""A layer or an expert in a name: expert 3 is neither 03 nor ٣."""


def sites_of(family: Family, template: Template, places: Places, numbers: Numbers) -> Iterator[Site]:
    """Where a template has tensors. The layers of an MTP head are layers with experts, of the type that it has."""
    place, name = template.place, template.name.replace("{root}", family.root)
    if place == "model":
        yield Site(name=name, template=template, shape=numbers.sizes(template.sizes))
        return
    if place in ("vision", "vision blocks"):
        if places.vision_blocks:
            blocks = frozenset(range(places.vision_blocks)) if place == "vision blocks" else None
            yield Site(
                name=family.vision + name.replace("{block}", "{number}"),
                template=template,
                shape=numbers.sizes(template.sizes),
                numbers=blocks,
                vision=True,
            )
        return
    if place == "mtp head":
        if places.mtp:
            yield Site(name=name, template=template, shape=numbers.sizes(template.sizes), mtp=True)
        return
    main = places.of(place) if place != "mtp layers" else []
    if main:
        prefix = family.layer.replace("{layer}", "{number}")
        yield Site(name=prefix + name, template=template, shape=numbers.sizes(template.sizes), numbers=frozenset(main))
    if places.mtp and place in ("layers", "sparse", "mtp layers", family.mtp_layer_type):
        offset = len(places.layers) if "{mtp}" in family.mtp else 0
        prefix = family.mtp.replace("{mtp}", "{number}").replace("{layer}", "{number}")
        yield Site(
            name=prefix + name,
            template=template,
            shape=numbers.sizes(template.sizes),
            numbers=frozenset(layer - offset for layer in places.mtp),
            offset=offset,
            mtp=True,
        )


def key_of(name: str) -> tuple[str, list[int]]:
    """A tensor's name with # for its numbers, and the numbers."""
    if "#" in name:
        return name.replace("#", "?"), []
    parts = name.split(".")
    numbers = [index for index, part in enumerate(parts) if _NUMBER.fullmatch(part)]
    found = [int(parts[index]) for index in numbers]
    for index in numbers:
        parts[index] = "#"
    return ".".join(parts), found


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Which layers and blocks there are."""

    layers: range
    dense: frozenset[int]
    types: list[str] | None
    mtp: range
    vision_blocks: int

    def of(self, place: str) -> list[int]:
        """The layers of a place that is not the MTP head's alone."""
        if place == "layers":
            return list(self.layers)
        if place in ("dense", "sparse"):
            return [layer for layer in self.layers if (layer in self.dense) == (place == "dense")]
        assert self.types is not None, f"the family has no layer types, but tensors in {place}"
        return [layer for layer, kind in enumerate(self.types) if kind == place]


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """A template at a place, with its shape.

    name: with {number} and {expert}; numbers: what {number} can be, None where the name has none;
    offset: what makes the number a layer.
    """

    name: str
    template: Template
    shape: tuple[int, ...]
    numbers: frozenset[int] | None = None
    offset: int = 0
    mtp: bool = False
    vision: bool = False

    def of(self, name: str, numbers: list[int]) -> Spec:
        """The tensor `name`, which has these numbers in it."""
        number = numbers[0] if self.numbers is not None else None
        return self.spec(name, number, numbers[-1] if self.template.kind == "expert" else None)

    def spec(self, name: str, number: int | None, expert: int | None) -> Spec:
        template = self.template
        part = Part(
            kind=template.kind,
            role=template.role,
            layer=None if number is None or self.vision else number + self.offset,
            expert=expert,
            projection=template.projection,
            quantized=template.quantized,
            listed=template.listed,
            mtp=self.mtp,
            vision=self.vision,
            need=template.need,
        )
        return Spec(name, self.shape, template.dtype, part)
