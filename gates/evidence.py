"""Evidence: rows become totals, are held against what the header says, and are pooled under equal conditions.

What is added up with what, and how, says `gates.pooling`.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from gates import canonical, pooling
from gates.errors import IntegrityError
from gates.pooling import Group, Run, Tally, exact, tally
from gates.records import Conditions, Evidence, Row, Score, Totals


@dataclass(frozen=True, slots=True)
class Item:
    """One item of a pack and what it got in each run: shares of its points, 0 to 1, where an answer came."""

    category: str
    of: float
    shares: tuple[float, ...]

    @property
    def mean(self) -> float:
        return math.fsum(self.shares) / len(self.shares)


@dataclass(frozen=True, slots=True)
class Checked:
    """The rows of one evidence, as far as they could be read, and everything that makes it untrustworthy."""

    rows: tuple[Row, ...]
    complaints: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Pool:
    """All evidence of one candidate on one pack under one set of conditions, added up.

    `items` is None where some of it is known by its totals alone.

    A run that lacks answers is unfinished: where a complete one is there it is left out of the sums, since that may
    hold the same answers. Where there is none, `missing` counts the answers that never came. `runs` counts repeats.
    """

    conditions: Conditions
    totals_alone: bool
    overall: Tally
    categories: Mapping[str, Tally]
    runs: int
    missing: int
    left_out: int
    items: Mapping[str, Item] | None = None


def totals(rows: Iterable[Row]) -> Totals:
    """The sums over `rows`: overall, by category, and how many rows are missing (`infra`)."""
    rows = list(rows)
    counted = [row for row in rows if row.outcome != "infra"]
    categories = {row.category for row in counted}
    return Totals(
        overall=_score(counted),
        categories={name: _score(row for row in counted if row.category == name) for name in sorted(categories)},
        missing=len(rows) - len(counted),
    )


def check(evidence: Evidence, rows: bytes | None) -> Checked:
    """Reads the rows of one evidence, and says what keeps it from being judged by.

    Args:
        rows: the blob that `evidence.rows` names, one Row in canonical JSON a line; None for totals alone.
    """
    complaints = check_header(evidence)
    if evidence.rows is None or rows is None:
        if evidence.rows is not None:
            complaints.append("its rows are not there")
        return Checked((), tuple(complaints))
    if canonical.digest(rows) != evidence.rows:
        edited = f"the rows are not those that it names: their digest is {canonical.digest(rows)[:12]}…"
        return Checked((), (*complaints, edited))
    parsed, unreadable = _parse(rows)
    complaints += unreadable + [f"{_called(row)}: {what}" for row in parsed for what in _row(row)]
    complaints += _repeats(parsed, evidence.repeats)
    if not complaints and not _adds_up(parsed, evidence.totals):
        complaints.append("the totals are not the sums of its rows")
    return Checked(tuple(parsed), tuple(complaints))


def check_header(evidence: Evidence) -> list[str]:
    """What can be seen to be wrong without the rows."""
    scores = {"overall": evidence.totals.overall} | evidence.totals.categories
    complaints = [f"totals, {name}: {what}" for name, score in scores.items() for what in _sum(score)]
    if evidence.totals.overall.items == 0 and evidence.totals.missing == 0:
        complaints.append("there are no items in it")
    return complaints


def incomparable(a: Conditions, b: Conditions, *, totals_alone: bool = False) -> list[str]:
    """The fields that keep two scores from being compared.

    A field that is unknown on either side is one of them, unless both scores are known by their totals alone
    (`totals_alone`): such scores can be compared as far as anybody knows, and the verdict says what is unknown.
    """
    mine, theirs = a.model_dump(mode="json"), b.model_dump(mode="json")

    def agree(field: str) -> bool:
        one, other = mine.get(field), theirs.get(field)
        if one is None and other is None:
            return totals_alone
        return canonical.dumps(one) == canonical.dumps(other)

    return [field for field in mine | theirs if not agree(field)]


def unknown(conditions: Conditions) -> list[str]:
    """The fields that nobody wrote down."""
    return [field for field, value in conditions.model_dump(mode="json").items() if value is None]


def pools(
    evidence: Mapping[str, Evidence], rows: Mapping[str, Sequence[Row]] | None = None
) -> dict[str, dict[str, Pool]]:
    """Adds up all evidence under equal conditions: pack → key of the conditions → pool.

    Two candidates' pools may be compared exactly when their keys are equal (`incomparable` then names no field). The
    same rows, recorded twice, count once.

    Args:
        evidence: by digest; of one candidate.
        rows: those of each evidence, by its digest; without them the pools know no items.
    """
    pooled: dict[str, dict[str, Pool]] = defaultdict(dict)
    for (pack, key), group in pooling.groups({digest: run(each) for digest, each in evidence.items()}).items():
        pooled[pack][key] = _pool(evidence, group, rows or {})
    return dict(pooled)


def conditions_key(digest: str, evidence: Evidence) -> str:
    """Equal for evidence that may be compared. Rows under conditions that are not all known stand alone."""
    return pooling.key(digest, run(evidence))


def run(evidence: Evidence) -> Run:
    """What of one evidence is added up."""
    return Run(
        pack=evidence.pack,
        rows=evidence.rows,
        conditions=evidence.conditions.model_dump(mode="json"),
        missing=evidence.totals.missing,
        overall=evidence.totals.overall,
    )


def _score(rows: Iterable[Row]) -> Score:
    rows = list(rows)
    points, of = _exact_sum(row.points or 0 for row in rows), _exact_sum(row.of for row in rows)
    return Score(points=float(points), of=float(of), items=len({row.item for row in rows}))


def _exact_sum(numbers: Iterable[float]) -> Fraction:
    """Many rows have the same few numbers, and fractions are slow: each number is added once, times how often."""
    return sum((exact(number) * times for number, times in Counter(numbers).items()), Fraction())


def _parse(rows: bytes) -> tuple[list[Row], list[str]]:
    parsed, complaints = [], []
    for number, line in enumerate(rows.splitlines(), 1):
        try:
            parsed.append(Row.from_bytes(line))
        except IntegrityError as error:
            complaints.append(f"row {number}: {error.what}")
    return parsed, complaints


def _adds_up(rows: list[Row], stated: Totals) -> bool:
    try:
        return totals(rows) == stated
    except OverflowError:  # more points than a number can hold
        return False


def _called(row: Row) -> str:
    return f"item {row.item!r}, repeat {row.repeat}"


def _row(row: Row) -> Iterable[str]:
    if row.outcome == "infra":
        if row.points is not None:
            yield "it has points, although no answer came (infra)"
    elif row.points is None:
        yield f"it has no points, although it ended as {row.outcome}"
    elif not 0 <= row.points <= row.of:
        yield f"{row.points:g} points of {row.of:g}"
    elif row.outcome != "scored" and row.points != 0:
        yield f"it has points, although it ended as {row.outcome}"


def _repeats(rows: list[Row], repeats: int) -> list[str]:
    """Each item is there exactly `repeats` times, and is the same item each time."""
    by_item: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        by_item[row.item].append(row)
    complaints = []
    for item, asked in by_item.items():
        found = sorted(row.repeat for row in asked)
        if len(set(found)) != len(found):
            complaints.append(f"item {item!r}: a repeat is there twice")
        elif found != list(range(repeats)):
            complaints.append(f"item {item!r}: {len(found)} of {repeats} repeats are there")
        if len({(row.category, row.of) for row in asked}) > 1:
            complaints.append(f"item {item!r}: its repeats differ in category or points")
    return complaints


def _sum(score: Score) -> Iterable[str]:
    if not (math.isfinite(score.points) and math.isfinite(score.of)):
        yield f"{score.points} of {score.of} is not a score"
    elif not 0 <= score.points <= score.of:
        yield f"{score.points:g} points of {score.of:g}"
    elif (score.of > 0) != (score.items > 0):
        yield f"{score.of:g} points over {score.items} items"


def _pool(evidence: Mapping[str, Evidence], group: Group, rows: Mapping[str, Sequence[Row]]) -> Pool:
    runs = [evidence[digest] for digest in group.counted]
    names = sorted({name for each in runs for name in each.totals.categories})
    empty = Score(points=0, of=0, items=0)
    return Pool(
        conditions=runs[0].conditions,
        totals_alone=all(evidence[digest].rows is None for digest in group.every),
        overall=tally(each.totals.overall for each in runs),
        categories={name: tally(each.totals.categories.get(name, empty) for each in runs) for name in names},
        runs=sum(each.repeats for each in runs),
        missing=sum(each.totals.missing for each in runs),
        left_out=len(group.every) - len(group.counted),
        items=_items([rows[digest] for digest in group.counted])
        if all(digest in rows for digest in group.counted)
        else None,
    )


def _items(runs: Sequence[Sequence[Row]]) -> dict[str, Item]:
    shares: dict[str, list[float]] = defaultdict(list)
    facts: dict[str, tuple[str, float]] = {}
    for row in (row for run in runs for row in run):
        if row.points is not None:
            facts[row.item] = row.category, row.of
            shares[row.item].append(row.points / row.of)
    return {item: Item(*facts[item], tuple(shares[item])) for item in sorted(shares)}


def flat(value: Any) -> str:
    """A condition's value as people read it, briefly."""
    if value is None:
        return "unknown"
    text = value if isinstance(value, str) else canonical.dumps(value).decode()
    return text if len(text) <= 40 else f"{text[:12]}…"
