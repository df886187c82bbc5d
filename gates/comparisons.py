"""Two candidates on the same packs: by how much one is worse or better, how sure that is, and which items changed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from gates import statistics
from gates.evidence import Item, Pool
from gates.pooling import Tally
from gates.statistics import Difference, Interval


@dataclass(frozen=True, slots=True)
class Comparison:
    """The candidate against its baseline on some packs, or on one category of each.

    `worse` and `better` name the items that got fewer or more of their points, as (pack, item); they are empty where
    the items are not known.
    """

    difference: Difference
    items: int
    paired: bool
    single: bool
    """Whether each item was asked once and is right or wrong: then the exact test says how likely the loss is."""
    worse: tuple[tuple[int, str], ...] = ()
    better: tuple[tuple[int, str], ...] = ()


def compare(pairs: Sequence[tuple[Pool, Pool]], category: str | None = None) -> Comparison:
    """Compares by items where both sides know them, and by totals where they do not.

    Args:
        pairs: for each pack the candidate's pool and the baseline's, taken under the same conditions. Every pool has
            something to score in `category`.
    """
    known = [(_items(mine, category), _items(other, category)) for mine, other in pairs]
    paired = [
        (mine, other) for mine, other in known if mine is not None and other is not None and mine.keys() == other.keys()
    ]
    if len(paired) < len(pairs):
        return _by_totals(pairs, category)
    strata = [_differences(mine, other) for mine, other in paired]
    single = all(_single(item) for sides in paired for side in sides for item in side.values())
    worse, better = tuple(_moved(paired, -1)), tuple(_moved(paired, 1))
    difference = statistics.paired(strata)
    if single:
        difference = replace(difference, p_worse=statistics.mcnemar(len(worse), len(better)))
    return Comparison(difference, sum(map(len, strata)), True, single, worse, better)


def score(pool: Pool, category: str | None = None) -> Interval:
    """The interval of one score: exact where each item was asked once and is right or wrong, Wilson's otherwise."""
    items, tally = _items(pool, category), tally_of(pool, category)
    assert tally is not None
    if items and all(_single(item) for item in items.values()):
        return statistics.exact(round(sum(item.mean for item in items.values())), len(items))
    return statistics.wilson(float(tally.percent) / 100, tally.items)


def tally_of(pool: Pool, category: str | None) -> Tally | None:
    """The sums over the pack, or over one category of it."""
    return pool.overall if category is None else pool.categories.get(category)


def flaky(pool: Pool) -> list[str]:
    """The items that did not get the same in every run."""
    return [name for name, item in (pool.items or {}).items() if len(set(item.shares)) > 1]


def _items(pool: Pool, category: str | None) -> Mapping[str, Item] | None:
    if pool.items is None or category is None:
        return pool.items
    return {name: item for name, item in pool.items.items() if item.category == category}


def _differences(mine: Mapping[str, Item], other: Mapping[str, Item]) -> list[float]:
    """Of each item, as shares; one with more points weighs more, so that their mean is the difference of the scores."""
    weight = len(mine) / math.fsum(item.of for item in mine.values())
    return [(item.mean - other[name].mean) * item.of * weight for name, item in mine.items()]


def _single(item: Item) -> bool:
    return len(item.shares) == 1 and item.shares[0] in (0.0, 1.0)


def _moved(paired: Sequence[tuple[Mapping[str, Item], Mapping[str, Item]]], sign: int) -> Iterator[tuple[int, str]]:
    for pack, (mine, other) in enumerate(paired):
        yield from ((pack, name) for name in mine if (mine[name].mean - other[name].mean) * sign > 0)


def _by_totals(pairs: Sequence[tuple[Pool, Pool]], category: str | None) -> Comparison:
    shares, counts = [], []
    for pair in pairs:
        tallies = [tally_of(pool, category) for pool in pair]
        ours, theirs = [float(tally.percent) / 100 for tally in tallies if tally is not None]
        shares.append((ours, theirs))
        counts.append(min(tally.items for tally in tallies if tally is not None))
    return Comparison(statistics.unpaired(shares, counts), sum(counts), False, False)
