"""How a family's TOML file reads.

model_type = "…"                    as config.json states it
like = "…"                          another family, whose entries hold where this file has none; and its tensors, all of
without = ["name", …]               them but these
text = "text_config"                the section of config.json with the text model's numbers; the whole, if left out
root, layer, mtp, vision            what names begin with: the text model's, its layers', an MTP head's layers', …
mtp_layer_type                      what an MTP head's layers are, where layers have types
mtp_layers_unless_stated            how many layers an MTP head has where config.json does not say; 0 if left out
[keys]                              what config.json calls the number of experts, top_k, groups, …: see `Keys`
[defaults]                          numbers that a config.json may leave out, as arithmetic
[must]                              what these keys say, if config.json has them: where engines and transformers would
                                    compute different things, or transformers another thing than the file says
[cache]                             how many numbers a server keeps of a token or a sequence: see `Family.cache`
[projections]                       what the matrices of an expert are called: gate_proj = "w1"
[[tensors]]                         a group of tensors:
    in = "model"                        one of each; the other places: "layers", "dense" and "sparse" layers, a layer
                                        type, "mtp head", "mtp layers", "vision", "vision blocks"
    role, kind, quantized, listed, dtype, need      as in `parts.Part` and `parts.Spec`
    when = "key"                        only where config.json sets the key to something, "!key" only where it does not;
                                        [defaults] has a key that holds where it says nothing
    shapes = { "name" = "sizes" }       names below the prefix of the place, sizes as in `arithmetic`
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from registry.families.parts import Kind, Need, Role

PLACES = frozenset(("model", "layers", "dense", "sparse", "mtp head", "mtp layers", "vision", "vision blocks"))
"""Where tensors can be in every family. Other places are types of layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """A tensor of a family before any numbers: `name` may hold {root}, {block} and {expert}."""

    name: str
    place: str
    sizes: str
    kind: Kind
    role: Role
    projection: str | None
    quantized: bool
    listed: bool
    dtype: str
    need: Need
    when: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Keys:
    """What config.json calls the numbers that decide which tensors there are. The publisher's name comes first."""

    experts: tuple[str, ...]
    top_k: str
    groups: str | None
    dense_layers: str | None
    """Lists the layers without experts."""
    dense_first: str | None
    """The number of layers without experts, the first ones."""
    sparse_step: str | None
    """n, where only every n-th layer has experts (the n-th, the 2n-th, …)."""
    layer_types: str | None
    """Lists the type of each layer."""
    full_attention_interval: str | None
    """n, where every n-th layer has full attention and the others linear, if the types are not listed."""
    mtp_layers: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What checkpoints of one `model_type` look like."""

    model_type: str
    text: str
    root: str
    layer: str
    mtp: str
    mtp_layer_type: str | None
    mtp_layers_unless_stated: int
    vision: str
    keys: Keys
    defaults: dict[str, str]
    must: dict[str, Any]
    cache: dict[str, str]
    """What a server keeps, as arithmetic: `token` of each token in a layer with full attention; of each sequence in one
    with linear attention, `convolution` (16 bits) and `state` (32 bits)."""
    templates: tuple[Template, ...]

    @property
    def trainable(self) -> bool:
        """Whether the train stage takes it: its routers choose by a softmax of their logits, with nothing beside them
        that would have to follow when an adapter moves the logits."""
        return not any(template.kind == "router" and template.name.endswith("bias") for template in self.templates)


def read_family(table: dict[str, Any]) -> Family:
    keys = table["keys"]
    return Family(
        model_type=table["model_type"],
        text=table.get("text", ""),
        root=table["root"],
        layer=table["layer"],
        mtp=table.get("mtp", ""),
        mtp_layer_type=table.get("mtp_layer_type"),
        mtp_layers_unless_stated=table.get("mtp_layers_unless_stated", 0),
        vision=table.get("vision", ""),
        keys=Keys(
            experts=tuple(keys["experts"]),
            top_k=keys["top_k"],
            groups=keys.get("groups"),
            dense_layers=keys.get("dense_layers"),
            dense_first=keys.get("dense_first"),
            sparse_step=keys.get("sparse_step"),
            layer_types=keys.get("layer_types"),
            full_attention_interval=keys.get("full_attention_interval"),
            mtp_layers=tuple(keys.get("mtp_layers", ())),
        ),
        defaults=table.get("defaults", {}),
        must=table.get("must", {}),
        cache=table["cache"],
        templates=tuple(
            template for group in table["tensors"] for template in _templates(group, table.get("projections", {}))
        ),
    )


def _templates(group: dict[str, Any], projections: dict[str, str]) -> list[Template]:
    kind = group.get("kind", "other")
    canonical = {name: projection for projection, name in projections.items()}
    return [
        Template(
            name=name,
            place=group["in"],
            sizes=sizes,
            kind=kind,
            role=group["role"],
            projection=_projection(name, canonical) if kind in ("expert", "experts") else None,
            quantized=group.get("quantized", False),
            listed=group.get("listed", False),
            dtype=group.get("dtype", "BF16"),
            need=group.get("need", "always"),
            when=_several(group.get("when", ())),
        )
        for name, sizes in group["shapes"].items()
    ]


def _projection(name: str, canonical: dict[str, str]) -> str:
    last = name.removesuffix(".weight").rpartition(".")[2]
    return canonical.get(last, last)


def _several(value: str | list[str]) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)
