"""What a training run leaves beside the model: its curves, as numbers and as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gates.reports import Training, picture
from gates.reports.training import FILE as CURVES
from stages.train import detector
from stages.train.detector import Limits, Point

PICTURE = "training.svg"


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
    """The files, by name: the record (`gates.reports.Training`), and a picture of it.

    Args:
        about: what was trained on what: the record's `experts`, `mix` and `reference`.
    """
    record = Training.model_validate(
        about
        | {
            "format": 1,
            "planned_steps": outcome.planned,
            "steps": len(outcome.losses),
            "stopped": outcome.stopped,
            "shipped_step": outcome.best.step,
            "limit_gap": outcome.limits.gap,
            "tolerance": outcome.limits.rise,
            "losses": list(outcome.losses),
            "points": [point.to_json() for point in outcome.points],
        }
    )
    return {CURVES: record.to_bytes(), PICTURE: picture(record)}
