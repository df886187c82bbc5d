"""What a policy could see with so many items: said before anything is evaluated.

It rests on one assumption, which every sentence states: between two runs of the same model one item in ten comes out
differently, as often better as worse (`CHANGING`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import reduce
from math import sqrt

from gates import statistics
from gates.policy import Demand, Drop, Paired, Policy

CHANGING = 0.10
"""The share of items that come out differently when the same model is asked again."""


@dataclass(frozen=True, slots=True)
class Foresight:
    """What one rule could see with so many items in each of its packs.

    `detectable` (points) and `needed` (items) are known of paired rules; `false_alarm` of the others: how often (0 to
    1) a candidate that is the baseline itself, asked again, would fail.
    """

    gate: str
    rule: str
    items: int
    detectable: float | None
    needed: int | None
    false_alarm: float | None

    @property
    def sentence(self) -> str:
        with_items = f"{self.gate}, with {self.items} items (if one in ten comes out differently by chance)"
        if self.false_alarm is not None:
            return f"{with_items}: a model no worse than its baseline fails {100 * self.false_alarm:.0f} % of the time"
        assert self.detectable is not None
        enough = "enough" if self.items >= (self.needed or 0) else f"it takes about {self.needed}"
        return (
            f"{with_items}: a drop of {self.detectable:.1f} would mostly be seen; "
            f"to show that there is none beyond the margin, {enough}"
        )


def foresee(policy: Policy, items: int) -> list[Foresight]:
    """For each rule that compares: what it could see with `items` items a pack, asked once."""
    return [
        found
        for gate in policy.gates
        for rule in gate.rules
        for found in _of(gate.name, rule.sentence(), rule.demand, items)
    ]


def _of(gate: str, sentence: str, demand: Demand, items: int) -> Iterator[Foresight]:
    packs = len(demand.names)
    if isinstance(demand, Paired):
        spread = 100 * sqrt(CHANGING / packs)  # the standard deviation of one item's difference is √CHANGING
        seen = statistics.detectable(spread / sqrt(items))
        yield Foresight(gate, sentence, items, seen, statistics.items_needed(spread, float(demand.margin)), None)
    elif isinstance(demand, Drop):
        alone = _lost_more_than(float(demand.at_most), items)
        yield Foresight(gate, sentence, items, None, None, 1 - (1 - alone) ** packs)


def _lost_more_than(points: float, items: int) -> float:
    """The probability (0 to 1) that chance alone loses more than `points` of 100 over so many items."""
    import numpy as np

    one = np.array([CHANGING / 2, 1 - CHANGING, CHANGING / 2])  # lost, as it was, won
    net = reduce(np.convolve, [one] * items)  # from all lost to all won
    lost = np.arange(items, -items - 1, -1)
    return float(net[100 * lost > points * items + 1e-9].sum())
