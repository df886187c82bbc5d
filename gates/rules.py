"""One rule, judged on pooled evidence: passed, failed, or not judged and why.

A rule is judged under every set of conditions that there is (a comparison: that both candidates share), and the worst
result counts. Comparisons are exact; only what is shown is rounded, and never across the limit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor
from typing import Literal

from gates.evidence import Pool, Tally
from gates.policy import Drop, Floor, Gain, Rule, plain
from gates.records import RuleResult

Status = Literal["passed", "failed", "not judged"]

WORST_FIRST: tuple[Status, ...] = ("failed", "not judged", "passed")

Pools = Mapping[str, Mapping[str, Pool]]
"""Pack → key of the conditions → everything known there."""


def results(rule: Rule, ours: Pools, theirs: Pools, *, no_comparison: str | None) -> list[RuleResult]:
    """Judges one rule: one result for each pack; of a gain, one for all of them.

    Args:
        ours: the candidate's evidence; `theirs` the baseline's.
        no_comparison: why nothing can be compared with a baseline, if nothing can.
    """
    demand = rule.demand
    if no_comparison is not None and not isinstance(demand, Floor):
        return [_not_judged(demand, demand.names, no_comparison)]
    if isinstance(demand, Gain):
        return [_gain(demand, ours, theirs)]
    if isinstance(demand, Drop):
        return [_drop(demand, pack, ours.get(pack, {}), theirs.get(pack, {})) for pack in demand.names]
    return [_floor(demand, pack, ours.get(pack, {})) for pack in demand.names]


@dataclass(frozen=True, slots=True)
class _Judged:
    """A rule, judged under one set of conditions.

    `room` is what is left before the limit is crossed, in points; below 0 it is crossed.
    """

    status: Status
    detail: str
    value: Fraction | None = None
    room: Fraction = Fraction()


def _floor(demand: Floor, pack: str, mine: Mapping[str, Pool]) -> RuleResult:
    limit = Fraction(demand.at_least)

    def under(pool: Pool) -> _Judged:
        tally = _part(pool, demand.category)
        if lacking := _lacking(pack, "the candidate", pool, tally, demand.category):
            return lacking
        assert tally is not None
        value = tally.percent
        detail = (
            f"{_called(pack, demand)}: {_points(value, limit)} (at least {plain(demand.at_least)}); "
            f"{_decided(value - limit, tally.items, Fraction(100, tally.items))}, {_runs(pool)}"
        )
        return _decide(value - limit, value, detail)

    return _result(
        demand, pack, [under(pool) for pool in mine.values()], f"no evidence of the candidate on {pack}", limit
    )


def _drop(demand: Drop, pack: str, mine: Mapping[str, Pool], other: Mapping[str, Pool]) -> RuleResult:
    limit = Fraction(demand.at_most)

    def under(key: str) -> _Judged:
        tally, base = _part(mine[key], demand.category), _part(other[key], demand.category)
        lacking = _lacking(pack, "the candidate", mine[key], tally, demand.category)
        lacking = lacking or _lacking(pack, "the baseline", other[key], base, demand.category)
        if lacking:
            return lacking
        assert tally is not None
        assert base is not None
        value = base.percent - tally.percent
        decided = _decided(limit - value, tally.items, Fraction(100, tally.items))
        if base.percent <= limit:
            decided = f"the baseline is so low that no score would fail here, {_count(tally.items, 'item')}"
        detail = (
            f"{_called(pack, demand)}: {_points(tally.percent)} against {_points(base.percent)}, "
            f"{_moved(-value, -limit)} (may drop at most {plain(demand.at_most)}); "
            f"{decided}, {_runs(mine[key], other[key])}"
        )
        return _decide(limit - value, value, detail)

    shared = sorted(mine.keys() & other.keys())
    return _result(demand, pack, [under(key) for key in shared], _nothing(pack, mine, other), limit)


def _gain(demand: Gain, ours: Pools, theirs: Pools) -> RuleResult:
    """The mean of the packs' differences; of a pack with several sets of conditions the least difference counts."""
    limit, gains, items, words = Fraction(demand.at_least), [], [], []
    for pack in demand.names:
        mine, other = ours.get(pack, {}), theirs.get(pack, {})
        shared = sorted(mine.keys() & other.keys())
        if not shared:
            return _not_judged(demand, demand.names, _nothing(pack, mine, other))
        for key in shared:
            lacking = _lacking(pack, "the candidate", mine[key], mine[key].overall, None)
            lacking = lacking or _lacking(pack, "the baseline", other[key], other[key].overall, None)
            if lacking:
                return _not_judged(demand, demand.names, lacking.detail)
        least = min((mine[key].overall.percent - other[key].overall.percent, key) for key in shared)
        gains.append(least[0])
        items.append(mine[least[1]].overall.items)
        words.append(
            f"{pack} {_moved(least[0])} ({_count(items[-1], 'item')}, {_runs(mine[least[1]], other[least[1]])})"
        )
    value = sum(gains, Fraction()) / len(gains)
    weight = Fraction(100, min(items) * len(gains))
    on_average = " on average" if len(gains) > 1 else ""
    detail = (
        f"{_moved(value, limit)}{on_average} (must gain at least {plain(demand.at_least)}): "
        f"{', '.join(words)}; {_decided(value - limit, sum(items), weight)}"
    )
    return _result(demand, demand.names[0], [_decide(value - limit, value, detail)], "", limit)


def _part(pool: Pool, category: str | None) -> Tally | None:
    return pool.overall if category is None else pool.categories.get(category)


def _lacking(pack: str, whose: str, pool: Pool, tally: Tally | None, category: str | None) -> _Judged | None:
    """Why a score cannot be judged, if it cannot: answers that never came, or nothing of that category."""
    if pool.missing:
        return _Judged(
            "not judged",
            f"{pack}: {_count(pool.missing, 'answer')} of {whose} never came (infra); evaluate it again to have all",
        )
    if tally is None or tally.items == 0:
        known = ", ".join(pool.categories) or "none"
        return _Judged("not judged", f"{pack}: no category {category} in what is known of {whose} (known: {known})")
    return None


def _decide(room: Fraction, value: Fraction, detail: str) -> _Judged:
    return _Judged("passed" if room >= 0 else "failed", detail, value, room)


def _result(
    demand: Floor | Drop | Gain, pack: str, judged: list[_Judged], otherwise: str, limit: Fraction
) -> RuleResult:
    """The worst of what was judged, or why nothing was."""
    if not judged:
        return _not_judged(demand, (pack,), otherwise)
    worst = min(judged, key=lambda each: (WORST_FIRST.index(each.status), each.room))
    several = f" (the worst of {len(judged)} sets of conditions)" if len(judged) > 1 else ""
    return RuleResult(
        rule=_sentence(demand, (pack,)),
        status=worst.status,
        detail=worst.detail + several,
        value=None if worst.value is None else float(worst.value),
        limit=float(limit),
    )


def _not_judged(demand: Floor | Drop | Gain, packs: tuple[str, ...], why: str) -> RuleResult:
    return RuleResult(rule=_sentence(demand, packs), status="not judged", detail=why, value=None, limit=None)


def _sentence(demand: Floor | Drop | Gain, packs: tuple[str, ...]) -> str:
    """The rule in words; of a rule that holds for each pack by itself, the part about these packs."""
    if isinstance(demand, Gain):
        return demand.sentence()
    return demand.model_copy(update={"pack": None, "packs": packs}).sentence()


def _nothing(pack: str, mine: Mapping[str, Pool], other: Mapping[str, Pool]) -> str:
    whose = [name for name, there in (("the candidate", mine), ("the baseline", other)) if not there]
    return f"no evidence of {' or of '.join(whose)} on {pack}"


def _called(pack: str, demand: Floor | Drop) -> str:
    return pack if demand.category is None else f"{pack}, {demand.category}"


def _decided(room: Fraction, items: int, weight: Fraction) -> str:
    """The least number of items that would have made it otherwise, had each gone wholly the other way.

    Args:
        room: points to the limit (below 0: beyond it). A result that just holds turns with the next item.
        weight: points that one item of average weight moves the value by.
    """
    turning = floor(room / weight) + 1 if room >= 0 else ceil(-room / weight)
    return f"decided by {turning} of {_count(items, 'item')}"


def _runs(pool: Pool, baseline: Pool | None = None) -> str:
    against = f" against {baseline.runs}" if baseline is not None and baseline.runs != pool.runs else ""
    return _count(pool.runs, "run") + against


def _moved(difference: Fraction, limit: Fraction | None = None) -> str:
    if difference == 0:
        return "unchanged"
    amount = _points(abs(difference), None if limit is None else abs(limit))
    return f"{'up' if difference > 0 else 'down'} {amount}"


def _points(value: Fraction, limit: Fraction | None = None) -> str:
    """One decimal, and more where one would hide on which side of the limit the value is."""
    for digits in range(1, 10):
        shown = round(value, digits)
        if limit is None or (shown < limit, shown > limit) == (value < limit, value > limit):
            return f"{float(shown):.{digits}f}"
    return f"{float(value)!r}"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"
