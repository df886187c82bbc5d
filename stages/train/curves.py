"""What a training run leaves beside the model: its curves, as numbers and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import exp, log
from typing import Any

from gates import canonical
from stages.train import detector
from stages.train.detector import Limits, Point

CURVES = "training.json"
PICTURE = "training.svg"

WIDTH, HEIGHT = 640, 240
_TRAINED, _SHIPPED, _MIX = "#3b82c4", "#d1495b", "#9aa3af"
"""Readable on white and on black."""
_LEAST = 1e-6
"""Nats a token: what is less is drawn as this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How a training run went.

    planned: the steps that it would have had. stopped: why it ended before, or None.
    losses: of each step, on what was trained on; nats a token, None where it was no finite number.
    points: what was measured on the reference answers, before any step first.
    """

    planned: int
    losses: tuple[float | None, ...]
    points: tuple[Point, ...]
    limits: Limits
    stopped: str | None

    @property
    def best(self) -> Point:
        return detector.best(self.points)


def attachments(outcome: Outcome, about: dict[str, Any]) -> dict[str, bytes]:
    """The files, by name. training.json holds `about`, every step's loss, every point and how the run ended."""
    record = about | {
        "planned_steps": outcome.planned,
        "steps": len(outcome.losses),
        "stopped": outcome.stopped,
        "shipped_step": outcome.best.step,
        "limit_gap": outcome.limits.gap,
        "tolerance": outcome.limits.rise,
        "losses": list(outcome.losses),
        "points": [point.to_json() for point in outcome.points],
    }
    return {CURVES: canonical.dumps(record), PICTURE: picture(outcome).encode()}


def picture(outcome: Outcome) -> str:
    """An SVG: by step the loss as trained and as it would ship, the gap between them filled, and what is shipped.

    The axis is logarithmic: in a trap the loss as trained falls from far above to far above, and what ships rises from
    next to nothing.
    """
    points = outcome.points
    shown = [loss for point in points for loss in (point.trained_loss, point.shipped_loss) if loss is not None]
    start = points[0].shipped_loss
    shown += [start + outcome.limits.rise] if start is not None else []
    low, high = _logarithm(min(shown, default=0.1)), _logarithm(max(shown, default=1.0))
    margin = max((high - low) * 0.08, 0.05)
    low, high = low - margin, high + margin
    last = max(points[-1].step, 1)

    def x(step: int) -> float:
        return round(step / last * WIDTH, 1)

    def y(loss: float) -> float:
        return round(HEIGHT - (min(max(_logarithm(loss), low), high) - low) / (high - low) * HEIGHT, 1)

    parts = [
        f'<line x1="0" x2="{WIDTH}" y1="{y(tick)}" y2="{y(tick)}" class="g"/>'
        f'<text x="-6" y="{y(tick)}" class="y">{tick:.2g}</text>'
        for tick in (exp(low + (high - low) * step / 4) for step in range(5))
    ]
    ticks = sorted({round(last * part / 4) for part in range(5)})
    parts += [f'<text x="{x(step)}" y="{HEIGHT + 16}" class="x">{step}</text>' for step in ticks]
    mixed = [(number, loss) for number, loss in enumerate(outcome.losses, 1) if loss is not None and number <= last]
    parts.append(_line([(x(step), y(loss)) for step, loss in mixed], _MIX, 'stroke-width="0.7" stroke-opacity="0.7"'))
    parts += _gap(points, x, y)
    if start is not None:
        limit = y(start + outcome.limits.rise)
        parts.append(f'<line x1="0" x2="{WIDTH}" y1="{limit}" y2="{limit}" class="l"/>')
    for name, colour in (("trained", _TRAINED), ("shipped", _SHIPPED)):
        found = [(point, loss) for point in points if (loss := getattr(point, f"{name}_loss")) is not None]
        parts.append(_line([(x(point.step), y(loss)) for point, loss in found], colour, 'stroke-width="1.5"'))
        dots = "".join(
            f'<circle cx="{x(point.step)}" cy="{y(loss)}" r="2.5"><title>step {point.step}: {loss:.4f}, '
            f"{100 * getattr(point, f'{name}_match'):.1f} % exact</title></circle>"
            for point, loss in found
        )
        parts.append(f'<g fill="{colour}">{dots}</g>')
    best = outcome.best
    if best.shipped_loss is not None:
        parts.append(f'<circle cx="{x(best.step)}" cy="{y(best.shipped_loss)}" r="6" fill="none" stroke="{_SHIPPED}"/>')
    words = (("as it is trained", _TRAINED), ("as it would ship", _SHIPPED), ("each step's batch", _MIX))
    parts += [
        f'<text x="{WIDTH + 12}" y="{12 + 16 * number}" style="fill:{colour}">{escape(word)}</text>'
        for number, (word, colour) in enumerate(words)
    ]
    parts += [
        f'<text x="{WIDTH + 12}" y="{68 + 16 * number}">{word}</text>'
        for number, word in enumerate((f"ring: step {best.step}, what ships", "dashes: the tolerance"))
    ]
    label = "loss by step, in nats a token (logarithmic)"
    ending = escape(f"stopped: {outcome.stopped}" if outcome.stopped else f"all {outcome.planned} steps were done")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-60 -32 {WIDTH + 250} {HEIGHT + 92}" '
        f'font-family="sans-serif" font-size="11" role="img" aria-label="{label}">'
        "<style>text{fill:#444}.g{stroke:#999;stroke-opacity:.3}.l{stroke:#999;stroke-dasharray:4 3}"
        ".y{text-anchor:end;dominant-baseline:central}.x{text-anchor:middle}"
        "@media(prefers-color-scheme:dark){text{fill:#ccc}}</style>"
        f'<text y="-14">{label}</text>{"".join(parts)}'
        f'<text x="{WIDTH / 2:g}" y="{HEIGHT + 34}" class="x">step</text>'
        f'<text y="{HEIGHT + 52}" font-size="9">{ending}</text></svg>\n'
    )


def _logarithm(loss: float) -> float:
    return log(max(loss, _LEAST))


def _line(places: Sequence[tuple[float, float]], colour: str, more: str) -> str:
    drawn = " ".join(f"{across},{down}" for across, down in places)
    return f'<polyline points="{drawn}" fill="none" stroke="{colour}" {more}/>'


def _gap(points: Sequence[Point], x: Callable[[int], float], y: Callable[[float], float]) -> list[str]:
    """The area between the two curves."""
    there = [(point.step, point.trained_loss, point.shipped_loss) for point in points if point.gap is not None]
    above = [f"{x(step)},{y(shipped)}" for step, _, shipped in there if shipped is not None]
    below = [f"{x(step)},{y(trained)}" for step, trained, _ in reversed(there) if trained is not None]
    return [f'<polygon points="{" ".join(above + below)}" fill="{_SHIPPED}" fill-opacity="0.12"/>']
