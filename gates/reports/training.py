"""How a candidate was trained: the record beside its model (training.json), and what is said of it.

The trap is that adapters over frozen 4-bit experts learn the noise of the 4 bits: the model as it is trained gets
better, and the model as it would ship does not. Both were measured on the same held-out answers while it trained.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from gates.records import Record
from gates.reports import words

FILE = "training.json"
"""What the record is called, among the attachments of the candidate that was trained."""


class Measured(Record):
    """After so many steps: losses in nats a token of the answers (None: no finite number), and the part of the answers
    whose every token is the likeliest."""

    step: int = Field(ge=0)
    trained_loss: float | None
    shipped_loss: float | None
    trained_match: float = Field(ge=0, le=1)
    shipped_match: float = Field(ge=0, le=1)
    gap: float | None = None
    """shipped_loss - trained_loss."""


class Training(Record):
    """A training run that has ended.

    planned_steps: those that it would have had; steps: those that it had. stopped: why it ended before, or None.
    losses: of each step, on what was trained on; nats a token. points: the first is before any step.
    limit_gap, tolerance: nats a token that the shipped loss may lie above the trained one, and above where it began.
    """

    format: Literal[1] = 1
    """Records of the first Sluices do not state it."""
    experts: str
    mix: str
    reference: str
    planned_steps: int = Field(ge=0)
    steps: int = Field(ge=0)
    stopped: str | None
    shipped_step: int
    limit_gap: float
    tolerance: float
    losses: tuple[float | None, ...]
    points: tuple[Measured, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        steps = [point.step for point in self.points]
        if steps != sorted(set(steps)):
            raise ValueError("points: they are not in the order of their steps")
        if self.shipped_step not in steps:
            raise ValueError(f"shipped_step: nothing was measured at step {self.shipped_step}")
        return self

    @property
    def shipped(self) -> Measured:
        """What was measured of the step that ships."""
        return next(point for point in self.points if point.step == self.shipped_step)


class Trained(Record):
    """The training of a candidate or of one that it was made from: `record`, or in `unread` why there is none."""

    of: str
    record: Training | None = None
    unread: str | None = None

    @property
    def sentence(self) -> str:
        return self.unread or "nothing is known of it" if self.record is None else sentence(self.record)


def sentence(training: Training) -> str:
    """Whether training was stopped and why, which step ships, and how far that is from the model that was trained."""
    ended = ending(training)
    first, ships = training.points[0], training.shipped
    if ships.step == 0:
        return f"{ended}; no step was better than none, so the weights are those that it began with"
    if ships.shipped_loss is None or first.shipped_loss is None:
        return f"{ended}; step {ships.step} ships"
    apart = ""
    if ships.trained_loss is not None:
        gap = ships.shipped_loss - ships.trained_loss
        side = "above" if gap >= 0 else "below"
        apart = f", {words.loss(abs(gap))} {side} the model as it is trained (limit_gap {training.limit_gap:g})"
    return (
        f"{ended}; step {ships.step} ships, with a loss of {words.loss(ships.shipped_loss)} on {training.reference} "
        f"({words.loss(first.shipped_loss)} before training){apart}"
    )


def ending(training: Training) -> str:
    """Whether training was stopped, and why."""
    if training.stopped is None:
        return f"all {training.planned_steps} steps were done"
    return f"stopped after {training.steps} of {training.planned_steps} steps: {training.stopped}"
