"""How the losses of a training run are drawn. Pure geometry: places across are percent of the width, places down are
pixels, so that a drawing is as wide as its page and its words stay words; the templates draw.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil, exp, floor, log, log10
from typing import Literal

from gates.reports import words
from gates.reports.training import Measured, Training

HEIGHT = 220
_LEAST, _MOST = 1e-6, 1e12
"""Nats a token: what is less, or more, is drawn as this."""
_MOST_MARKS = 40
_MOST_BATCHES = 300
"""Of more steps than these each place of the thin line is the mean of several."""

Kind = Literal["trained", "shipped"]


@dataclass(frozen=True, slots=True)
class Mark:
    """What was measured of one of the two models after some steps."""

    kind: Kind
    x: float
    y: float
    words: str


@dataclass(frozen=True, slots=True)
class Drawing:
    """The losses by step on a logarithmic axis: in a trap the one falls from far above to far above, and the other
    rises from next to nothing.

    down, across: where the axes have words. batches, trained, shipped, gap: the points of a line, or of the area
    between the two curves, for a drawing 100 wide and `height` high. tolerance: what ships may not lie above.
    """

    height: int
    down: tuple[tuple[float, str], ...]
    across: tuple[tuple[float, str], ...]
    batches: str
    trained: str
    shipped: str
    gap: str
    marks: tuple[Mark, ...]
    tolerance: float | None
    ships: Mark | None


def draw(training: Training) -> Drawing:
    points, last = training.points, max(training.points[-1].step, 1)
    start = points[0].shipped_loss
    limit = None if start is None else start + training.tolerance
    batches = list(_batches(training.losses[:last]))
    both = [loss for point in points for loss in (point.trained_loss, point.shipped_loss)]
    shown = [_logarithm(loss) for loss in (*both, limit, *(loss for _, loss in batches)) if loss is not None]
    low, high = min(shown, default=-1.0), max(shown, default=0.0)
    margin = max((high - low) * 0.06, 0.02)
    low, high = low - margin, high + margin

    def x(step: float) -> float:
        return round(100 * step / last, 2)

    def y(loss: float) -> float:
        return round(HEIGHT * (high - _logarithm(loss)) / (high - low), 1)

    def marks(kind: Kind) -> list[Mark]:
        return [
            Mark(kind, x(point.step), y(loss), _words(point, kind))
            for point in points
            if (loss := _loss(point, kind)) is not None
        ]

    trained, shipped = marks("trained"), marks("shipped")
    whole = [point for point in points if point.trained_loss is not None and point.shipped_loss is not None]
    above = [(x(point.step), y(point.shipped_loss or 0.0)) for point in whole]
    below = [(x(point.step), y(point.trained_loss or 0.0)) for point in reversed(whole)]
    ships = [mark for mark in shipped if mark.x == x(training.shipped_step)]
    few = len(points) <= _MOST_MARKS
    return Drawing(
        height=HEIGHT,
        down=tuple((y(tick), f"{tick:.6g}") for tick in ticks(exp(low), exp(high))),
        across=tuple((x(step), str(step)) for step in _steps(last)),
        batches=_line((x(step), y(loss)) for step, loss in batches),
        trained=_line((mark.x, mark.y) for mark in trained),
        shipped=_line((mark.x, mark.y) for mark in shipped),
        gap=_line([*above, *below]),
        marks=(*trained, *shipped) if few else (),
        tolerance=None if limit is None else y(limit),
        ships=ships[0] if ships else None,
    )


def ticks(low: float, high: float) -> list[float]:
    """From three to seven numbers to read between two ends above 0, on a logarithmic axis: powers of ten, or with those
    between them, or, where the ends are near each other, numbers at even distances."""
    first, last = floor(log10(low)), ceil(log10(high))
    for every in (1, 2, 3, 5):
        for digits in ((1,), (1, 3), (1, 2, 5)):
            found = [digit * 10.0**power for power in range(first, last + 1, every) for digit in digits]
            found = [each for each in found if low <= each <= high]
            if 3 <= len(found) <= 7:
                return found
    exact = (high - low) / 5
    power = 10.0 ** floor(log10(exact))
    step = next(power * digit for digit in (1, 2, 5, 10) if power * digit >= exact)
    return [number * step for number in range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)]


def _steps(last: int) -> Sequence[int]:
    return range(last + 1) if last <= 6 else [round(last * part / 4) for part in range(5)]


def _batches(losses: Sequence[float | None]) -> Iterator[tuple[float, float]]:
    """The losses of the steps, from step 1 on; of very many the means of as many as share a place."""
    together = max(1, ceil(len(losses) / _MOST_BATCHES))
    for begin in range(0, len(losses), together):
        found = [loss for loss in losses[begin : begin + together] if loss is not None]
        if found:
            yield begin + (1 + min(together, len(losses) - begin)) / 2, sum(found) / len(found)


def _loss(point: Measured, kind: Kind) -> float | None:
    return point.trained_loss if kind == "trained" else point.shipped_loss


def _words(point: Measured, kind: Kind) -> str:
    match = point.trained_match if kind == "trained" else point.shipped_match
    said = "as it is trained" if kind == "trained" else "as it would ship"
    return f"step {point.step}, {said}: {words.loss(_loss(point, kind))}, {100 * match:.1f} % exact"


def _logarithm(loss: float) -> float:
    return log(min(max(loss, _LEAST), _MOST))


def _line(places: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{across:g},{down:g}" for across, down in places)
