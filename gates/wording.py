"""How results are said: numbers rounded for people, never across a limit."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from math import ceil, floor

from gates.comparisons import Comparison
from gates.evidence import Pool
from gates.policy import Drop, Floor
from gates.statistics import Interval


def between(interval: Interval) -> str:
    return f"between {interval.low:+.1f} and {interval.high:+.1f}"


def changed(found: Comparison) -> str:
    chance = "" if found.difference.p_worse is None else f", p = {found.difference.p_worse:.3g}"
    test = " (exact McNemar)" if found.single and chance else ""
    return f"{len(found.worse)} items worse, {len(found.better)} better{chance}{test}"


def nothing(pack: str, mine: Mapping[str, Pool], other: Mapping[str, Pool]) -> str:
    whose = [name for name, there in (("the candidate", mine), ("the baseline", other)) if not there]
    return f"no evidence of {' or of '.join(whose)} on {pack}"


def called(pack: str, demand: Floor | Drop) -> str:
    return pack if demand.category is None else f"{pack}, {demand.category}"


def decided(room: Fraction, items: int, weight: Fraction) -> str:
    """The least number of items that would have made it otherwise, had each gone wholly the other way.

    Args:
        room: points to the limit (below 0: beyond it). A result that just holds turns with the next item.
        weight: points that one item of average weight moves the value by.
    """
    turning = floor(room / weight) + 1 if room >= 0 else ceil(-room / weight)
    return f"decided by {turning} of {count(items, 'item')}"


def runs(pool: Pool, baseline: Pool | None = None) -> str:
    against = f" against {baseline.runs}" if baseline is not None and baseline.runs != pool.runs else ""
    return count(pool.runs, "run") + against


def moved(difference: Fraction, limit: Fraction | None = None) -> str:
    if difference == 0:
        return "unchanged"
    amount = points(abs(difference), None if limit is None else abs(limit))
    return f"{'up' if difference > 0 else 'down'} {amount}"


def points(value: Fraction, limit: Fraction | None = None) -> str:
    """One decimal, and more where one would hide on which side of the limit the value is."""
    for digits in range(1, 10):
        shown = round(value, digits)
        if limit is None or (shown < limit, shown > limit) == (value < limit, value > limit):
            return f"{float(shown):.{digits}f}"
    return f"{float(value)!r}"


def count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
