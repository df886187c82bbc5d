"""What a report says, whatever it is written as: one model, from a verdict and what it rests on.

    report = build(verdict, evidence=ours, baseline_evidence=theirs, rows=rows, subject=Subject(), load=store.read)

Every number in it comes with how many items and runs it was taken over, its interval, and the least difference that
such a comparison would mostly see.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from gates.records import Digest, Name, Record, RuleResult, Verdict
from gates.reports.training import Trained

FORMAT: Literal[1] = 1


class Ancestor(Record):
    """One step of how a candidate was made, the newest first: `settings` are the step's own, for people."""

    name: str | None
    digest: Digest
    op: str
    settings: dict[str, str] = Field(default_factory=dict)


class Subject(Record):
    """What a registry knows of the candidate besides its evidence. All of it may be missing."""

    candidate: str | None = None
    baseline: str | None = None
    lineage: tuple[Ancestor, ...] = ()
    baseline_lineage: tuple[Ancestor, ...] = ()
    differences: tuple[str, ...] = ()
    """The settings in which candidate and baseline differ."""
    conclusion: str | None = None
    """What a difference in scores can be put down to; names the control that is missing."""
    size: int | None = None
    baseline_size: int | None = None
    """Bytes of all files."""
    fit: str | None = None
    """Whether it fits the card it was made for, with the numbers."""
    attachments: tuple[str, ...] = ()
    """The names of the files kept beside the candidate's model: plots, scores, curves."""
    training: tuple[Trained, ...] = ()
    """How it was trained, or one that it was made from; the newest first."""
    cost: tuple[str, ...] = ()
    """What it took: tokens, seconds."""
    promoted: tuple[Name, ...] = ()
    """The channels that serve it."""
    stale: bool = False
    """Whether there is other evidence by now than the verdict rests on."""


class Part(Record):
    """A pack, or one category of it (`category`), under one set of conditions; scores from 0 to 100."""

    category: str | None = None
    score: float
    interval: tuple[float, float]
    items: int
    runs: int
    baseline: float | None = None
    difference: float | None = None
    difference_interval: tuple[float, float] | None = None
    paired: bool | None = None
    detectable: float | None = None
    p_worse: float | None = None
    """The probability of such a loss by chance; Holm's, over all packs' categories together."""


class PackResult(Record):
    """One pack under one set of conditions. `not_compared` says why there is no comparison, where there is none."""

    pack: Name
    conditions: str
    whole: Part
    categories: tuple[Part, ...] = ()
    outcomes: dict[str, int] = Field(default_factory=dict)
    baseline_outcomes: dict[str, int] = Field(default_factory=dict)
    flaky: tuple[str, ...] = ()
    missing: int = 0
    items_known: bool = True
    not_compared: str | None = None


class Flip(Record):
    """An item that the candidate and the baseline did not do equally well, in shares of its points (0 to 1)."""

    pack: Name
    item: str
    category: str
    candidate: float
    baseline: float
    candidate_says: str | None = None
    baseline_says: str | None = None

    @property
    def lost(self) -> bool:
        return self.candidate < self.baseline


class Condition(Record):
    """One of the conditions that scores on a pack were taken under."""

    pack: Name
    field: str
    candidate: str
    baseline: str | None
    agrees: bool


class Report(Record):
    format: Literal[1] = FORMAT
    verdict: Verdict
    verdict_digest: Digest
    subject: Subject
    decided_by: RuleResult | None
    packs: tuple[PackResult, ...]
    flips: tuple[Flip, ...]
    flips_left_out: int
    conditions: tuple[Condition, ...]
