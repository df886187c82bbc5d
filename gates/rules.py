"""One rule, judged on pooled evidence: passed, failed, or not judged and why.

A rule is judged under every set of conditions that there is (a comparison: that both candidates share), and the worst
result counts. Comparisons with a limit are exact; only what is shown is rounded, and never across the limit. Beside
each number stands how sure it is; only the rule `paired` decides by that.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import product
from typing import Any

from gates import statistics, wording
from gates.comparisons import Comparison, compare, score, tally_of
from gates.evidence import Pool
from gates.policy import Demand, Drop, Floor, Gain, Guard, Paired, Policy, Rule, compares, kind, plain
from gates.pooling import Tally, exact
from gates.records import RuleResult, Status
from gates.wording import count

WORST_FIRST: tuple[Status, ...] = ("failed", "not judged", "undecided", "waived", "passed")

LEVEL = 1 - statistics.CONFIDENCE
"""How often a policy may call candidates worse that are not."""

Pools = Mapping[str, Mapping[str, Pool]]
"""Pack → key of the conditions → everything known there."""


@dataclass(frozen=True, slots=True)
class Sides:
    """All that is known of the candidate (`ours`) and of its baseline (`theirs`).

    `nothing_to_compare` is why nothing can be compared with a baseline, if nothing can. `chances` are the comparisons
    that the policy's paired rules need, each with its `p_worse` adjusted for their number.
    """

    ours: Pools
    theirs: Pools
    nothing_to_compare: str | None = None
    chances: Mapping[tuple[tuple[str, str], ...], Comparison] = field(default_factory=dict)


def sides(policy: Policy, ours: Pools, theirs: Pools, nothing_to_compare: str | None) -> Sides:
    """Compares what the policy's paired rules compare, all at once: the more comparisons, the more false alarms.

    The p-values are Holm's, over all paired rules and all sets of conditions.
    """
    demands = [rule.demand for gate in policy.gates for rule in gate.rules if isinstance(rule.demand, Paired)]
    combinations = () if nothing_to_compare else [each for demand in demands for each in _shared(demand, ours, theirs)]
    found = {}
    for combination in combinations:
        pairs = [(ours[pack][key], theirs[pack][key]) for pack, key in combination]
        if all(not pool.missing and pool.items for pair in pairs for pool in pair):
            found[combination] = compare(pairs)
    adjusted = statistics.holm([each.difference.p_worse or 0.0 for each in found.values()])
    chances = {
        combination: replace(each, difference=replace(each.difference, p_worse=p))
        for (combination, each), p in zip(found.items(), adjusted, strict=True)
    }
    return Sides(ours, theirs, nothing_to_compare, chances)


def results(rule: Rule, sides: Sides) -> list[RuleResult]:
    """Judges one rule: one result for each pack; of a rule over the mean of several packs, one for all of them."""
    demand = rule.demand
    if sides.nothing_to_compare is not None and compares(demand):
        return [_not_judged(demand, demand.names, sides.nothing_to_compare)]
    if isinstance(demand, Gain):
        return [_gain(demand, sides.ours, sides.theirs)]
    if isinstance(demand, Paired):
        return [_paired(demand, sides)]
    if isinstance(demand, Guard):
        return [_guard(demand, demand.names[0], sides.ours.get(demand.names[0], {}))]
    if isinstance(demand, Drop):
        return [_drop(demand, pack, sides.ours.get(pack, {}), sides.theirs.get(pack, {})) for pack in demand.names]
    return [_floor(demand, pack, sides.ours.get(pack, {})) for pack in demand.names]


@dataclass(frozen=True, slots=True)
class _Judged:
    """A rule, judged under one set of conditions.

    `room` is what is left before the limit is crossed, in points; below 0 it is crossed. `sure` are the fields of the
    record that say how sure the value is.
    """

    status: Status
    detail: str
    value: Fraction | None = None
    room: Fraction = Fraction()
    sure: Mapping[str, Any] = field(default_factory=dict)


def _floor(demand: Floor, pack: str, mine: Mapping[str, Pool]) -> RuleResult:
    limit = Fraction(demand.at_least)

    def under(pool: Pool) -> _Judged:
        tally = tally_of(pool, demand.category)
        if lacking := _lacking(pack, "the candidate", pool, tally, demand.category):
            return lacking
        assert tally is not None
        value = tally.percent
        detail = (
            f"{wording.called(pack, demand)}: {wording.points(value, limit)} (at least {plain(demand.at_least)}); "
            f"{wording.decided(value - limit, tally.items, Fraction(100, tally.items))}, {wording.runs(pool)}"
        )
        interval = score(pool, demand.category)
        sure = {"interval": _ends(interval), "items": tally.items, "runs": pool.runs}
        return _decide(value - limit, value, detail, sure)

    return _result(
        demand, (pack,), [under(pool) for pool in mine.values()], f"no evidence of the candidate on {pack}", limit
    )


def _drop(demand: Drop, pack: str, mine: Mapping[str, Pool], other: Mapping[str, Pool]) -> RuleResult:
    limit = Fraction(demand.at_most)

    def under(key: str) -> _Judged:
        tally, base = tally_of(mine[key], demand.category), tally_of(other[key], demand.category)
        lacking = _lacking(pack, "the candidate", mine[key], tally, demand.category)
        lacking = lacking or _lacking(pack, "the baseline", other[key], base, demand.category)
        if lacking:
            return lacking
        assert tally is not None
        assert base is not None
        value = base.percent - tally.percent
        decided = wording.decided(limit - value, tally.items, Fraction(100, tally.items))
        if base.percent <= limit:
            decided = f"the baseline is so low that no score would fail here, {count(tally.items, 'item')}"
        detail = (
            f"{wording.called(pack, demand)}: {wording.points(tally.percent)} against {wording.points(base.percent)}, "
            f"{wording.moved(-value, -limit)} (may drop at most {plain(demand.at_most)}); "
            f"{decided}, {wording.runs(mine[key], other[key])}"
        )
        found = compare([(mine[key], other[key])], demand.category)
        return _decide(limit - value, value, detail, _fields(found, [mine[key], other[key]]))

    shared = sorted(mine.keys() & other.keys())
    return _result(demand, (pack,), [under(key) for key in shared], wording.nothing(pack, mine, other), limit)


def _gain(demand: Gain, ours: Pools, theirs: Pools) -> RuleResult:
    """The mean of the packs' differences; of a pack with several sets of conditions the least difference counts."""
    limit, gains, items, words = Fraction(demand.at_least), [], [], []
    pairs: list[tuple[Pool, Pool]] = []
    for pack in demand.names:
        mine, other = ours.get(pack, {}), theirs.get(pack, {})
        shared = sorted(mine.keys() & other.keys())
        if not shared:
            return _not_judged(demand, demand.names, wording.nothing(pack, mine, other))
        for key in shared:
            lacking = _lacking(pack, "the candidate", mine[key], mine[key].overall, None)
            lacking = lacking or _lacking(pack, "the baseline", other[key], other[key].overall, None)
            if lacking:
                return _not_judged(demand, demand.names, lacking.detail)
        least = min((mine[key].overall.percent - other[key].overall.percent, key) for key in shared)
        gains.append(least[0])
        pairs.append((mine[least[1]], other[least[1]]))
        items.append(mine[least[1]].overall.items)
        runs = wording.runs(*pairs[-1])
        words.append(f"{pack} {wording.moved(least[0])} ({count(items[-1], 'item')}, {runs})")
    value = sum(gains, Fraction()) / len(gains)
    weight = Fraction(100, min(items) * len(gains))
    on_average = " on average" if len(gains) > 1 else ""
    detail = (
        f"{wording.moved(value, limit)}{on_average} (must gain at least {plain(demand.at_least)}): "
        f"{', '.join(words)}; {wording.decided(value - limit, sum(items), weight)}"
    )
    found = compare(pairs)
    sure = _fields(found, [pool for pair in pairs for pool in pair])
    return _result(demand, demand.names, [_decide(value - limit, value, detail, sure)], "", limit)


def _paired(demand: Paired, sides: Sides) -> RuleResult:
    limit = Fraction(demand.margin)

    def under(combination: tuple[tuple[str, str], ...]) -> _Judged:
        pools = [(pack, known[pack][key]) for pack, key in combination for known in (sides.ours, sides.theirs)]
        for number, (pack, pool) in enumerate(pools):
            whose = "the baseline" if number % 2 else "the candidate"
            if lacking := _lacking(pack, whose, pool, pool.overall, None):
                return lacking
            if not pool.items:
                return _Judged(
                    "not judged", f"{pack}: of {whose} totals alone are known, and this rule needs the items"
                )
        found = sides.chances[combination]
        difference = found.difference
        drop = -exact(round(difference.mean, 9))
        status: Status = "undecided"
        if difference.interval.low >= -float(limit):
            status = "passed"
        elif (difference.p_worse or 0.0) <= LEVEL and drop > limit:
            status = "failed"
        seen = f"a difference of {difference.detectable:.1f} would mostly be seen"
        detail = (
            f"{' and '.join(demand.names)}: {wording.moved(-drop, -limit)}, {wording.between(difference.interval)} "
            f"(margin {plain(demand.margin)}); {wording.changed(found)}; {seen}, "
            f"{count(found.items, 'item')}, {wording.runs(pools[0][1], pools[1][1])}"
        )
        return _Judged(status, detail, drop, limit - drop, _fields(found, [pool for _, pool in pools]))

    judged = [under(combination) for combination in _shared(demand, sides.ours, sides.theirs)]
    lacking = next((pack for pack in demand.names if not _common(pack, sides.ours, sides.theirs)), demand.names[0])
    otherwise = wording.nothing(lacking, sides.ours.get(lacking, {}), sides.theirs.get(lacking, {}))
    return _result(demand, demand.names, judged, otherwise, limit)


def _guard(demand: Guard, pack: str, mine: Mapping[str, Pool]) -> RuleResult:
    limit = Fraction(demand.at_least)

    def under(pool: Pool) -> _Judged:
        if lacking := _lacking(pack, "the candidate", pool, pool.overall, None):
            return lacking
        if not pool.items:
            return _Judged("not judged", f"{pack}: totals alone are known, and this rule needs the items")
        if unknown := [name for name in demand.items if name not in pool.items]:
            return _Judged("not judged", f"{pack}: there is no item {', '.join(unknown)}")
        least = min(demand.items, key=lambda name: (pool.items or {})[name].mean)
        shares = pool.items[least].shares
        value = 100 * sum(map(exact, shares), Fraction()) / len(shares)
        full = sum(1 for share in shares if share == 1)
        detail = (
            f"{pack}, {least}: {wording.points(value, limit)} % of its points (at least {plain(demand.at_least)}), all "
            f"of them in {full} of {count(len(shares), 'run')}; the least of {count(len(demand.items), 'item')}"
        )
        return _decide(value - limit, value, detail, {"items": len(demand.items), "runs": pool.runs})

    return _result(
        demand, (pack,), [under(pool) for pool in mine.values()], f"no evidence of the candidate on {pack}", limit
    )


def _shared(demand: Paired, ours: Pools, theirs: Pools) -> Iterable[tuple[tuple[str, str], ...]]:
    """Every way to choose a set of conditions that both have, for each of the packs; none if a pack has none."""
    return product(*([(pack, key) for key in _common(pack, ours, theirs)] for pack in demand.names))


def _common(pack: str, ours: Pools, theirs: Pools) -> list[str]:
    return sorted(ours.get(pack, {}).keys() & theirs.get(pack, {}).keys())


def _lacking(pack: str, whose: str, pool: Pool, tally: Tally | None, category: str | None) -> _Judged | None:
    """Why a score cannot be judged, if it cannot: answers that never came, or nothing of that category."""
    if pool.missing:
        return _Judged(
            "not judged",
            f"{pack}: {count(pool.missing, 'answer')} of {whose} never came (infra); evaluate it again to have all",
        )
    if tally is None or tally.items == 0:
        known = ", ".join(pool.categories) or "none"
        return _Judged("not judged", f"{pack}: no category {category} in what is known of {whose} (known: {known})")
    return None


def _decide(room: Fraction, value: Fraction, detail: str, sure: Mapping[str, Any]) -> _Judged:
    return _Judged("passed" if room >= 0 else "failed", detail, value, room, sure)


def _result(
    demand: Demand, packs: tuple[str, ...], judged: Sequence[_Judged], otherwise: str, limit: Fraction
) -> RuleResult:
    """The worst of what was judged, or why nothing was."""
    if not judged:
        return _not_judged(demand, packs, otherwise)
    worst = min(judged, key=lambda each: (WORST_FIRST.index(each.status), each.room))
    several = f" (the worst of {len(judged)} sets of conditions)" if len(judged) > 1 else ""
    return RuleResult(
        **_rule(demand, packs),
        status=worst.status,
        detail=worst.detail + several,
        value=None if worst.value is None else float(worst.value),
        limit=float(limit),
        **worst.sure,
    )


def _not_judged(demand: Demand, packs: tuple[str, ...], why: str) -> RuleResult:
    return RuleResult(**_rule(demand, packs), status="not judged", detail=why, value=None, limit=None)


def _rule(demand: Demand, packs: tuple[str, ...]) -> dict[str, Any]:
    """Which rule it is, in words too; of a rule that holds for each pack by itself, the part about these packs."""
    if not isinstance(demand, Floor | Drop):
        return {"rule": demand.sentence(), "kind": kind(demand), "packs": packs}
    sentence = demand.model_copy(update={"pack": None, "packs": packs}).sentence()
    category = {} if demand.category is None else {"category": demand.category}
    return {"rule": sentence, "kind": kind(demand), "packs": packs, **category}


def _fields(found: Comparison, pools: Sequence[Pool]) -> dict[str, Any]:
    sure: dict[str, Any] = {
        "interval": _ends(found.difference.interval),
        "items": found.items,
        "runs": min(pool.runs for pool in pools),
        "detectable": round(found.difference.detectable, 6),
    }
    if found.difference.p_worse is not None:
        sure["p_worse"] = round(found.difference.p_worse, 6)
    return sure


def _ends(interval: statistics.Interval) -> tuple[float, float]:
    """Rounded, because the last digits are the machine's."""
    return round(interval.low, 6), round(interval.high, 6)
