"""What a candidate was made from, and in which of its settings two candidates differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from registry.manifests import Manifest
from registry.store import Candidate, Store


@dataclass(frozen=True, slots=True)
class Difference:
    """A setting, such as prune.compression, and what it is in each of two candidates (None: it has none)."""

    field: str
    left: Any
    right: Any


def ancestry(store: Store, digest: str) -> Iterator[tuple[str, Manifest]]:
    """The manifest called `digest` and those it was made from, newest first."""
    next_digest: str | None = digest
    while next_digest is not None:
        manifest = store.manifest(next_digest)
        yield next_digest, manifest
        next_digest = manifest.inputs.parent


def settings(store: Store, candidate: Candidate) -> dict[str, Any]:
    """Everything that made the candidate what it is, flat: the base model, then each step's settings.

    A mix counts by its rows, so that two names for the same rows are no difference.
    """
    found: dict[str, Any] = {}
    for digest, manifest in ancestry(store, candidate.digest):
        inputs = manifest.inputs
        if inputs.parent is None:
            found["base"] = digest
            continue
        found |= {f"{inputs.op}.{key}": value for key, value in inputs.settings.items()}
        if inputs.seed is not None:
            found[f"{inputs.op}.seed"] = inputs.seed
        if inputs.mix is not None:
            found[f"{inputs.op}.mix"] = inputs.mix.rows
    return dict(sorted(found.items()))


def compare(store: Store, left: Candidate, right: Candidate) -> list[Difference]:
    """The settings in which two candidates differ."""
    ours, theirs = settings(store, left), settings(store, right)
    return [
        Difference(
            field, readable(store, left, field, ours.get(field)), readable(store, right, field, theirs.get(field))
        )
        for field in sorted(ours.keys() | theirs.keys())
        if ours.get(field) != theirs.get(field)
    ]


def pruned_with(store: Store, candidate: Candidate) -> tuple[str | None, str | None]:
    """The calibration mix's name and the compression (decimal text) of the newest prune in a candidate's ancestry."""
    for _, manifest in ancestry(store, candidate.digest):
        if manifest.inputs.op == "prune":
            mix = manifest.inputs.mix
            return (mix.name if mix else None), manifest.inputs.settings.get("compression")
    return None, None


def readable(store: Store, candidate: Candidate, field: str, value: Any) -> Any:
    """A setting for people: a mix's rows with the name that the mix had, everything else as it is."""
    if not field.endswith(".mix") or value is None:
        return value
    for _, manifest in ancestry(store, candidate.digest):
        mix = manifest.inputs.mix
        if mix is not None and mix.rows == value:
            return f"{mix.name} ({value[:12]})"
    return value
