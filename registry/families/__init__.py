"""The model families that Sluice knows, as data: one TOML file each, and nothing of torch.

A family says what its tensors are called on disk, so that every tensor of a checkpoint can be accounted for.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from gates.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What a checkpoint of this `model_type` looks like. Patterns match whole tensor names.

    `expert` has the groups `layer`, `expert` and `projection`; `router` has `layer`. `linear` are the projections
    outside the experts that a quantised checkpoint quantises too; `other` is what stays as it is. A tensor that none of
    the four matches does not belong to the family.
    """

    model_type: str
    count_key: str
    """The key in config.json that holds the number of experts."""
    count_aliases: tuple[str, ...]
    """What writers other than the publisher call it: read, kept in step, never added."""
    top_k_key: str
    expert: re.Pattern[str]
    projections: tuple[str, ...]
    router: re.Pattern[str]
    linear: re.Pattern[str]
    other: re.Pattern[str]
    required: tuple[str, ...]
    """What every checkpoint has besides experts and routers; `{layer}` stands for each layer."""
    dense: tuple[str, ...]
    """What a layer without experts has in their place."""
    head: str
    """The output layer; missing exactly where `tie_word_embeddings` says that the embedding serves as one."""
    dense_layers_key: str | None
    """The key in config.json that lists the layers without experts."""
    sparse_step_key: str | None
    """The key in config.json for n, where only every n-th layer has experts (the n-th, the 2n-th, …)."""

    def experts(self, config: dict[str, Any], *, where: str | None = None) -> int:
        """The number of experts that `config` states."""
        return self._integer(config, (self.count_key, *self.count_aliases), where)

    def top_k(self, config: dict[str, Any], *, where: str | None = None) -> int:
        return self._integer(config, (self.top_k_key,), where)

    def layers(self, config: dict[str, Any], *, where: str | None = None) -> int:
        return self._integer(config, ("num_hidden_layers",), where)

    def expert_layers(self, config: dict[str, Any], *, where: str | None = None) -> list[int]:
        """The layers that have experts; the others are dense."""
        dense = (config.get(self.dense_layers_key) or []) if self.dense_layers_key else []
        if not isinstance(dense, list):
            raise UsageError(f"config.json: {self.dense_layers_key} is not a list of layers", where=where)
        key = self.sparse_step_key
        step = self._integer({key: 1} | config, (key,), where) if key else 1
        layers = range(self.layers(config, where=where))
        return [layer for layer in layers if layer not in dense and (layer + 1) % step == 0]

    def _integer(self, config: dict[str, Any], keys: tuple[str, ...], where: str | None) -> int:
        for key in keys:
            value = config.get(key)
            if isinstance(value, int) and not isinstance(value, bool) and value > 0:
                return value
        raise UsageError(f"config.json states no {keys[0]}", where=where, remedy="is the checkpoint complete?")


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


@cache
def families() -> dict[str, Family]:
    entries = (item for item in resources.files(__name__).iterdir() if item.name.endswith(".toml"))
    found = (_read(tomllib.loads(item.read_text(encoding="utf-8"))) for item in entries)
    return {family.model_type: family for family in found}


def _read(entry: dict[str, Any]) -> Family:
    return Family(
        model_type=entry["model_type"],
        count_key=entry["count_key"],
        count_aliases=tuple(entry.get("count_aliases", ())),
        top_k_key=entry["top_k_key"],
        expert=re.compile(entry["expert"]),
        projections=tuple(entry["projections"]),
        router=re.compile(entry["router"]),
        linear=re.compile(entry["linear"]),
        other=re.compile(entry["other"]),
        required=tuple(entry["required"]),
        dense=tuple(entry["dense"]),
        head=entry["head"],
        dense_layers_key=entry.get("dense_layers_key"),
        sparse_step_key=entry.get("sparse_step_key"),
    )
