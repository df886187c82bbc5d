"""A family with the numbers of one config.json: from names to parts, and from the numbers to every tensor expected."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gates.errors import UsageError
from registry.families.arithmetic import Numbers
from registry.families.parts import SCALE_SUFFIX, Part, Spec, scale_shape
from registry.families.schema import PLACES, Family
from registry.families.sites import Places, Site, key_of, sites_of

_MOST_LAYERS = 10_000
"""A config.json that states more is damaged; what follows would be as long as the number is large."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Architecture:
    """What a checkpoint with this config.json holds.

    config: the whole config.json; text: its section with the text model's numbers, or the whole.
    groups: n_group, the groups that the router chooses among; 1 without.
    layers: num_hidden_layers, the MTP head not counted.
    expert_layers: the layers with experts, ascending; neither dense ones nor the MTP head's.
    mtp_layers: numbered from `layers` up, as many as config.json states; the checkpoint says whether they are there.
    layer_types: the type of each layer, where the family has several; None where it has one.
    """

    family: Family
    config: dict[str, Any]
    text: dict[str, Any]
    experts: int
    top_k: int
    groups: int
    layers: int
    expert_layers: list[int]
    mtp_layers: list[int]
    layer_types: list[str] | None
    numbers: Numbers = field(repr=False)
    _sites: Mapping[str, list[Site]] = field(repr=False)

    def part(self, name: str) -> Part | None:
        """What the tensor `name` is; None if it is no tensor of this family with this config.json."""
        spec = self.spec(name)
        return spec.part if spec else None

    def spec(self, name: str) -> Spec | None:
        """The tensor `name` as this config.json wants it; None as in `part`. The expert's number is not judged."""
        key, numbers = key_of(name)
        for site in self._sites.get(key, ()):
            if site.numbers is None or numbers[0] in site.numbers:
                return site.of(name, numbers)
        return None

    def elsewhere(self, name: str) -> Part | None:
        """What the tensor `name` would be, were its layer like others: of experts in a dense layer, say."""
        key, numbers = key_of(name)
        sites = self._sites.get(key)
        return sites[0].of(name, numbers).part if sites else None

    def tensors(
        self,
        *,
        fused: bool,
        mtp: bool,
        vision: bool = True,
        mtp_fused: bool | None = None,
        experts: bool = True,
        block: tuple[int, int] | None = None,
    ) -> Iterator[Spec]:
        """What a whole checkpoint holds.

        Args:
            fused: whether the experts of a layer lie in 3D tensors, or every matrix by itself.
            mtp: whether with the MTP head; nothing where config.json states none.
            vision: whether with the vision tower; nothing where there is none.
            mtp_fused: as `fused`, for the experts of the MTP head, whose layout some publishers choose apart.
            experts: whether with the experts' matrices.
            block: rows and columns of the blocks of block FP8, if it is quantised so.
        """
        for sites in self._sites.values():
            for site in sites:
                in_3d = fused if mtp_fused is None or not site.mtp else mtp_fused
                unwanted = "expert" if in_3d else "experts"
                if site.template.kind == unwanted or site.template.need == "rare":
                    continue
                if site.template.projection and not experts:
                    continue
                if (site.mtp and not mtp) or (site.vision and not vision):
                    continue
                members = range(self.experts) if site.template.kind == "expert" else (None,)
                for number in (None,) if site.numbers is None else site.numbers:
                    for expert in members:
                        name = site.name.format(number=number, expert=expert)
                        yield from _with_scales(site.spec(name, number, expert), block)

    @property
    def full_attention_layers(self) -> int:
        """How many layers keep something of every token; the MTP head's not counted."""
        return self.layers if self.layer_types is None else self.layer_types.count("full_attention")

    def cache_of_token(self) -> int:
        """Bytes that a server keeps of each token in one layer with full attention, in 16 bits."""
        (numbers,) = self.numbers.sizes(self.family.cache["token"])
        return 2 * numbers

    def cache_of_sequence(self) -> int:
        """Bytes that a server keeps of each sequence, however long it is: the states of linear attention."""
        linear = self.layer_types.count("linear_attention") if self.layer_types else 0
        widths = {"convolution": 2, "state": 4}
        return linear * sum(
            widths[kind] * self.numbers.sizes(sizes)[0] for kind, sizes in self.family.cache.items() if kind in widths
        )

    def layer_prefix(self, layer: int) -> str:
        """What the names of a layer's tensors begin with; MTP layers count from `layers` up."""
        prefix = self.family.mtp if layer >= self.layers else self.family.layer
        return prefix.format(layer=layer, mtp=layer - self.layers)

    def count_changes(self, experts: int) -> dict[tuple[str, ...], int]:
        """Where config.json states the number of experts, with the number: the path of every key that it has."""
        return dict.fromkeys(self._counts(), experts)

    def mtp_changes(self, layers: int) -> dict[tuple[str, ...], int]:
        """Where config.json states the number of MTP layers, with the number, or would have to: where it says nothing,
        engines take one layer for granted."""
        section = (self.family.text,) if self.text is not self.config else ()
        keys = self.family.keys.mtp_layers
        stated = [key for key in keys if key in self.text] or (keys[:1] if self.mtp_layers else [])
        return {(*section, key): layers for key in stated}

    def stated_counts(self) -> dict[str, Any]:
        """Every number of experts that config.json states, by its path with dots."""
        return {".".join(path): value for path, value in self._counts().items()}

    def _counts(self) -> dict[tuple[str, ...], Any]:
        sections: dict[tuple[str, ...], dict[str, Any]] = {(): self.config}
        if self.text is not self.config:
            sections[self.family.text,] = self.text
        keys = self.family.keys.experts
        return {(*path, key): section[key] for path, section in sections.items() for key in keys if key in section}


def architecture(family: Family, config: dict[str, Any], *, where: str | None = None) -> Architecture:
    """`family` with the numbers of `config`.

    Raises:
        UsageError: a number is missing or absurd, or config.json states what is not known of this family.
    """
    text, vision = _section(config, family.text, where), _section(config, "vision_config", where)
    for key, value in family.must.items():
        if text.get(key) not in (None, value):
            raise UsageError(
                f"config.json: {key} is {text[key]!r:.40}, and of {family.model_type} only {value!r} is known",
                where=where,
            )
    keys = family.keys
    experts = next((key for key in keys.experts if type(text.get(key)) is int), keys.experts[0])
    plain = Numbers(text=text, vision=vision, defaults=family.defaults, computed={}, where=where)
    numbers = Numbers(
        text=text, vision=vision, defaults=family.defaults, computed={"experts": plain.number(experts)}, where=where
    )
    layers = _few(numbers.number("num_hidden_layers"), "num_hidden_layers", where)
    types = _layer_types(family, numbers, layers)
    dense = _dense_layers(family, numbers, layers)
    mtp_key = next((key for key in keys.mtp_layers if text.get(key) is not None), None)
    mtp = _few(numbers.number(mtp_key, least=0), mtp_key, where) if mtp_key else family.mtp_layers_unless_stated
    places = Places(
        layers=range(layers),
        dense=dense,
        types=types,
        mtp=range(layers, layers + mtp),
        vision_blocks=_few(numbers.sizes("vision.depth")[0], "vision depth", where) if family.vision and vision else 0,
    )
    sites: dict[str, list[Site]] = defaultdict(list)
    for template in family.templates:
        if all(_holds(when, config, text, family) for when in template.when):
            for site in sites_of(family, template, places, numbers):
                sites[key_of(site.name.format(number=0, expert=0))[0]].append(site)
    return Architecture(
        family=family,
        config=config,
        text=text,
        experts=numbers.number("experts"),
        top_k=numbers.number(keys.top_k),
        groups=numbers.number(keys.groups) if keys.groups and text.get(keys.groups) is not None else 1,
        layers=layers,
        expert_layers=[layer for layer in range(layers) if layer not in dense],
        mtp_layers=list(places.mtp),
        layer_types=types,
        numbers=numbers,
        _sites=dict(sites),
    )


def _with_scales(spec: Spec, block: tuple[int, int] | None) -> Iterator[Spec]:
    """The tensor, and its scales where block FP8 quantises it."""
    if block is None or spec.part is None or not spec.part.quantized:
        yield spec
        return
    yield Spec(spec.name, spec.shape, "F8_E4M3", spec.part)
    yield Spec(spec.name + SCALE_SUFFIX, scale_shape(spec.shape, block), "F32", None)


def _section(config: dict[str, Any], key: str, where: str | None) -> dict[str, Any]:
    """The section `key` of config.json; the whole without a key, nothing without a section."""
    if not key:
        return config
    section = config.get(key)
    if section is not None and not isinstance(section, dict):
        raise UsageError(f"config.json: {key} is not an object", where=where)
    return section or {}


def _holds(when: str, config: dict[str, Any], text: dict[str, Any], family: Family) -> bool:
    key = when.removeprefix("!")
    return bool(config[key] if key in config else text.get(key, key in family.defaults)) != when.startswith("!")


def _layer_types(family: Family, numbers: Numbers, layers: int) -> list[str] | None:
    key, interval = family.keys.layer_types, family.keys.full_attention_interval
    if key is None:
        return None
    types = numbers.text.get(key)
    if types is None and interval is not None:
        every = numbers.number(interval)
        types = ["linear_attention" if (layer + 1) % every else "full_attention" for layer in range(layers)]
    known = {template.place for template in family.templates} - PLACES
    if not isinstance(types, list) or len(types) != layers or not all(isinstance(t, str) and t in known for t in types):
        raise UsageError(f"config.json: {key} does not give each of {layers} layers a known type", where=numbers.where)
    return types


def _dense_layers(family: Family, numbers: Numbers, layers: int) -> frozenset[int]:
    """The layers without experts."""
    keys = family.keys
    listed = numbers.text.get(keys.dense_layers) if keys.dense_layers else None
    listed = [] if listed is None else listed
    if not isinstance(listed, list) or not all(type(layer) is int for layer in listed):
        raise UsageError(f"config.json: {keys.dense_layers} is not a list of layers", where=numbers.where)
    first = numbers.number(keys.dense_first, least=0) if keys.dense_first else 0
    step = numbers.number(keys.sparse_step) if keys.sparse_step else 1
    return frozenset(layer for layer in range(layers) if layer in listed or layer < first or (layer + 1) % step != 0)


def _few(count: int, key: str, where: str | None) -> int:
    if count > _MOST_LAYERS:
        raise UsageError(f"config.json: {key} is {count}, more than any model has", where=where)
    return count
