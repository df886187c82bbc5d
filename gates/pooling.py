"""Which evidence is added up together, and what it adds up to.

Plain values in and out: `gates.evidence.pools` brings them from records, and `registry ls`, which must feel instant,
from JSON. All arithmetic is exact: a number counts as the decimal that is written, so 84.9 is 849/10 and a sum does not
depend on its order.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple, Protocol

from gates import canonical

CONDITIONS = frozenset(
    {
        "engine",
        "engine_version",
        "server_flags",
        "reasoning_parser",
        "tool_parser",
        "chat_template",
        "tokenizer",
        "sampling",
        "thinking",
        "pack",
        "grader",
        "dataset",
        "max_tokens",
        "max_length",
    }
)
"""The fields of `gates.records.Conditions`. One that evidence leaves out is unknown."""


class Scored(Protocol):
    """Points out of points, over so many items."""

    @property
    def points(self) -> float: ...
    @property
    def of(self) -> float: ...
    @property
    def items(self) -> int: ...


class Points(NamedTuple):
    """A score as plain numbers."""

    points: float
    of: float
    items: int


@dataclass(frozen=True, slots=True)
class Run:
    """Of one evidence what decides with which other it is added up, and its total. `conditions` are JSON values."""

    pack: str
    rows: str | None
    conditions: Mapping[str, Any]
    missing: int
    overall: Scored


@dataclass(frozen=True, slots=True)
class Group:
    """The digests of evidence under equal conditions, and of those the ones that are added up."""

    every: tuple[str, ...]
    counted: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tally:
    """Points out of points, exactly. `items` are distinct: an item that was asked three times counts once."""

    points: Fraction
    of: Fraction
    items: int

    @property
    def percent(self) -> Fraction:
        """The score, from 0 to 100. There must be something to score (`of` above 0)."""
        return 100 * self.points / self.of


def scores(runs: Mapping[str, Run]) -> dict[str, tuple[float, ...]]:
    """By pack the scores (0 to 100), one for each set of conditions.

    Args:
        runs: all evidence of one candidate that counts, by digest.
    """
    found: dict[str, list[float]] = defaultdict(list)
    for (pack, _), group in groups(runs).items():
        overall = tally(runs[digest].overall for digest in group.counted)
        if overall.of:
            found[pack].append(float(overall.percent))
    return {pack: tuple(values) for pack, values in found.items()}


def groups(runs: Mapping[str, Run]) -> dict[tuple[str, str], Group]:
    """The evidence that is added up: pack and key of the conditions → group, sorted.

    The same rows, recorded twice, count once. A run that lacks answers is left out of the sums where a complete one is
    there, since that may hold the same answers.
    """
    found: dict[tuple[str, str], list[str]] = defaultdict(list)
    for digest in sorted(runs):
        run = runs[digest]
        group = found[run.pack, key(digest, run)]
        if run.rows is None or all(run.rows != runs[other].rows for other in group):
            group.append(digest)
    return {each: _counted(found[each], runs) for each in sorted(found)}


def key(digest: str, run: Run) -> str:
    """Equal for evidence that may be compared. Rows under conditions that are not all known stand alone."""
    known = {field: value for field, value in run.conditions.items() if value is not None}
    if run.rows is not None and not (len(known) == len(run.conditions) and known.keys() >= CONDITIONS):
        return digest
    return canonical.digest(canonical.dumps(known))


def tally(scores: Iterable[Scored]) -> Tally:
    """The exact sum of at least one score."""
    every = list(scores)
    return Tally(
        points=sum((exact(score.points) for score in every), Fraction()),
        of=sum((exact(score.of) for score in every), Fraction()),
        items=max(score.items for score in every),
    )


def exact(number: float) -> Fraction:
    """The decimal that a float is written as: 84.9 is 849/10."""
    return Fraction(Decimal(repr(number)))


def _counted(digests: list[str], runs: Mapping[str, Run]) -> Group:
    whole = tuple(digest for digest in digests if runs[digest].missing == 0)
    return Group(every=tuple(digests), counted=whole or tuple(digests))
