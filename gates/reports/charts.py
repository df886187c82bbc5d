"""Where things lie in the charts. Pure geometry: all places are percent of a chart's width, so that a chart is as wide
as its page and its words stay words; the templates draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from gates.reports.overview import Made


@dataclass(frozen=True, slots=True)
class Scale:
    """An axis from `low` to `high` with `ticks`, all in points."""

    low: float
    high: float
    ticks: tuple[float, ...]

    def at(self, value: float) -> str:
        """The place of a value, in percent of the width; beyond an end, at the end."""
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return f"{100 * share:.2f}%"

    def width(self, low: float, high: float) -> str:
        """The width between two values, in percent."""
        ends = (min(max(value, self.low), self.high) for value in (low, high))
        low, high = sorted(ends)
        return f"{100 * (high - low) / (self.high - self.low):.2f}%"


_ENDS = (2, 4, 6, 10, 20, 30, 40, 60, 80, 100)
"""Where an axis of differences may end, so that its half is a number to read."""

SCORES = Scale(0, 100, (0, 25, 50, 75, 100))


def around_zero(values: Iterable[float | None]) -> Scale:
    """An axis that holds all values and has 0 in its middle, so that losses lie left and gains right on every chart."""
    furthest = max((abs(value) for value in values if value is not None), default=0.0)
    end = next((end for end in _ENDS if furthest <= end), _ENDS[-1])
    return Scale(-end, end, (-end, -end / 2, 0, end / 2, end))


def heat(score: float) -> int:
    """The shade of a score from 0 to 100: 0 to 10."""
    return min(10, max(0, int(score // 10)))


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the lineage's drawing.

    `through` are the columns in which a branch of an ancestor goes on below; `last` says that no sibling follows.
    """

    made: Made
    depth: int
    through: tuple[int, ...]
    last: bool
    has_children: bool


def tree(lineage: Sequence[Made]) -> list[Row]:
    """The drawing, a row for each manifest, a parent above its children. One whose parent is not there is a root."""
    there = {each.digest for each in lineage}
    children: dict[str | None, list[Made]] = {}
    for each in lineage:
        children.setdefault(each.parent if each.parent in there else None, []).append(each)
    rows: list[Row] = []
    # no recursion: a chain of steps may be long

    open_rows: list[tuple[Made, int, tuple[int, ...], bool]] = [
        (root, 0, (), True) for root in reversed(children.get(None, []))
    ]
    while open_rows:
        made, depth, through, last = open_rows.pop()
        below = children.get(made.digest, [])
        rows.append(Row(made, depth, through, last, bool(below)))
        goes_on = through if last or depth == 0 else (*through, depth)
        for number, child in reversed(list(enumerate(below, 1))):
            open_rows.append((child, depth + 1, goes_on, number == len(below)))
    return rows
