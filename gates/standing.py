"""Which of several verdicts a candidate stands under. Nothing here needs more of a verdict than `Judged` states."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Protocol, TypeVar


class Judged(Protocol):
    """Of a verdict (`gates.records.Verdict`) what it says, under which policy, and against whom."""

    @property
    def verdict(self) -> str: ...
    @property
    def policy(self) -> str: ...
    @property
    def baseline(self) -> str | None: ...


AnyJudged = TypeVar("AnyJudged", bound=Judged)


def standing(current: Collection[Judged]) -> str | None:
    """Of each policy the worst verdict, as text; None of none.

    Args:
        current: the verdicts that still rest on all evidence there is.
    """
    policies = sorted({each.policy for each in current})
    by_policy = [worst(each for each in current if each.policy == policy) for policy in policies]
    return ", ".join(dict.fromkeys(each.verdict for each in by_policy if each)) or None


def worst(found: Iterable[AnyJudged]) -> AnyJudged | None:
    """A failure or an Invalid one before an Inconclusive one, before a Pass; None of none.

    An Inconclusive one against nothing counts only where it stands alone: it says that nobody named a baseline.
    """
    best_last = {"Pass": 2, "Inconclusive": 1}

    def rank(verdict: Judged) -> int:
        unasked = verdict.verdict == "Inconclusive" and verdict.baseline is None
        return 3 if unasked else best_last.get(verdict.verdict, 0)

    return min(found, key=rank, default=None)
