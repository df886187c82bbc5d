"""The trap: trainable parts that learn the noise of frozen 4-bit experts, which what ships does not have.

The loss of the model that is trained then falls, and that of the model as it would ship, merged into BF16, does not. So
both are measured on the same held-out answers while training, and training ends when they part.

Pure: measurements in, a sentence out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import isfinite
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What was measured on the reference answers after so many steps.

    The losses are in nats a token (None: no finite number), the matches the part of the answers that are exact.
    """

    step: int
    trained_loss: float | None
    shipped_loss: float | None
    trained_match: float
    shipped_match: float

    @property
    def gap(self) -> float | None:
        """How much more the model as it would ship loses than the model that is trained; nats a token."""
        if self.trained_loss is None or self.shipped_loss is None:
            return None
        return self.shipped_loss - self.trained_loss

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"gap": self.gap}


def finite(loss: float) -> float | None:
    """A loss as records hold it: they know neither NaN nor infinity."""
    return loss if isfinite(loss) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """In nats a token: how far the shipped loss may lie above the trained one, and above where it began."""

    gap: float
    rise: float


def why_stop(points: Sequence[Point], limits: Limits) -> str | None:
    """Why training ends at the newest of `points`, in a sentence; None to go on.

    Args:
        points: in the order of their steps; the first is before any step.
    """
    first, last = points[0], points[-1]
    if first.shipped_loss is None:
        return "the loss of the model as it is has no finite value"
    if last is first:
        return None
    at = f"at step {last.step}"
    if last.shipped_loss is None:
        return f"{at} the loss of the model as it would ship has no finite value"
    if last.shipped_loss > first.shipped_loss + limits.rise:
        return (
            f"{at} the loss of the model as it would ship is {last.shipped_loss:.4f}, above the "
            f"{first.shipped_loss:.4f} where it began (tolerance {limits.rise:g})"
        )
    if last.gap is None or last.gap > limits.gap:
        trained = "no finite number" if last.trained_loss is None else f"{last.trained_loss:.4f}"
        return (
            f"{at} the loss of the model as it would ship is {last.shipped_loss:.4f}, that of the model as it is "
            f"trained {trained}: they are further apart than limit_gap ({limits.gap:g})"
        )
    return None


def best(points: Sequence[Point]) -> Point:
    """The one whose shipped loss is least, of several the first. Before any step is one of them, so it is never worse
    than the start."""
    return min(points, key=lambda each: float("inf") if each.shipped_loss is None else each.shipped_loss)
