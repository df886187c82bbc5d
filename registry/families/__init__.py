"""The model families that Sluice knows, as data: one TOML file each, and nothing of torch.

    architecture = architecture_of(config)             the family of its model_type, with that config.json's numbers
    architecture.part("model.layers.3.mlp.gate.weight")    what a tensor is, by its name
    architecture.tensors(fused=False, mtp=True)        every tensor of a whole checkpoint, with its shape

A family is one table of tensor templates: each with its name, its shape as arithmetic over the numbers of config.json,
whether block FP8 quantises it, and where it exists. `schema` reads the table, `arithmetic` computes, `architecture`
joins the table with the numbers.
"""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Any

from gates.errors import UsageError
from registry.families.architecture import Architecture, architecture
from registry.families.parts import Part, Spec, scale_shape
from registry.families.schema import Family, read_family

__all__ = [
    "Architecture",
    "Family",
    "Part",
    "Spec",
    "architecture",
    "architecture_of",
    "families",
    "family_of",
    "scale_shape",
]


def family_of(config: dict[str, Any], *, where: str | None = None) -> Family:
    """The family of the checkpoint that `config` (its config.json) belongs to.

    Raises:
        UsageError: no family is called so; the message names those that are.
    """
    model_type = config.get("model_type")
    known = families()
    if not isinstance(model_type, str) or model_type not in known:
        raise UsageError(
            f"model_type {model_type!r} is not a family that Sluice knows",
            where=where,
            remedy=f"known are {', '.join(sorted(known))}; CONTRIBUTING.md says how to add one",
        )
    return known[model_type]


def architecture_of(config: dict[str, Any], *, where: str | None = None) -> Architecture:
    """The architecture that `config` (a config.json) states.

    Raises:
        UsageError: no family is called so, or config.json lacks a number or states an absurd one.
    """
    return architecture(family_of(config, where=where), config, where=where)


@cache
def families() -> dict[str, Family]:
    """Every family by its model_type."""
    entries = (item for item in resources.files(__name__).iterdir() if item.name.endswith(".toml"))
    tables = {table["model_type"]: table for table in (tomllib.loads(item.read_text("utf-8")) for item in entries)}
    return {model_type: read_family(_inherited(table, tables)) for model_type, table in tables.items()}


def _inherited(table: dict[str, Any], tables: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """`table` over the one that it is `like`, whose tensors it has too, but for those that it is `without`."""
    if "like" not in table:
        return table
    base, without = tables[table["like"]], set(table.get("without", ()))
    unknown = without.difference(*(group["shapes"] for group in base["tensors"]))
    assert not unknown, f"{table['model_type']}: {table['like']} has no {', '.join(sorted(unknown))}"
    inherited = (
        group | {"shapes": {name: sizes for name, sizes in group["shapes"].items() if name not in without}}
        for group in base["tensors"]
    )
    return {**base, **table, "tensors": [*inherited, *table.get("tensors", ())]}
