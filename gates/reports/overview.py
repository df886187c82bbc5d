"""All candidates of a registry, for one page: records that a registry fills, whatever it knows."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gates.records import Digest, Name, Record

FORMAT: Literal[1] = 1


class Entry(Record):
    """One candidate. `scores` are 0 to 100 by pack, one for each set of conditions; they are never averaged.

    `verdict` is what it stands under ("stale": its verdicts rest on other evidence than there is). `page` is the
    address of its own report. Of a damaged candidate, which `damage` says, only the name may be known.
    """

    name: Name
    channels: tuple[Name, ...] = ()
    digest: Digest | None = None
    verdict: str | None = None
    scores: dict[str, tuple[float, ...]] = Field(default_factory=dict)
    mix: str | None = None
    compression: str | None = None
    experts: int | None = None
    quantization: str | None = None
    size: int | None = None
    damage: str | None = None
    page: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._~-]*\.html$")] | None = None


class Made(Record):
    """One manifest in the drawing of the lineage, whether it has names or not. `op` is None where it is damaged."""

    digest: Digest
    parent: Digest | None
    names: tuple[Name, ...] = ()
    op: str | None = None
    about: str | None = None


class Overview(Record):
    """`lineage` has a parent before what was made from it."""

    format: Literal[1] = FORMAT
    candidates: tuple[Entry, ...]
    lineage: tuple[Made, ...] = ()
