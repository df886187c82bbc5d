"""Which verdicts still hold: those that rest on all the evidence that there is now.

Like `registry.plain` it needs no record's class, unless something was waived.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from gates import standing as verdicts
from registry import plain
from registry.layout import Layout


class Bound(Protocol):
    """Of a verdict (`gates.records.Verdict`) what it rests on, by digest."""

    @property
    def candidate(self) -> str: ...
    @property
    def baseline(self) -> str | None: ...
    @property
    def evidence(self) -> Sequence[str]: ...
    @property
    def baseline_evidence(self) -> Sequence[str]: ...
    @property
    def waivers(self) -> Sequence[str]: ...


def standing(layout: Layout, manifest: str) -> str | None:
    """What a candidate stands under: of each policy, the worst verdict that still rests on all evidence there is.

    'stale' if there were verdicts and none does.

    Raises:
        IntegrityError: a verdict is damaged.
    """
    recorded = [_verdict(each) for each in plain.records(layout.verdicts(manifest), manifest).values()]
    if not recorded:
        return None
    return verdicts.standing([each for each in recorded if rests_on_all(layout, each)]) or "stale"


def rests_on_all(layout: Layout, verdict: Bound) -> bool:
    """Whether the evidence is still what it was, and whatever was waived still is."""

    def agrees(digest: str | None, used: Sequence[str]) -> bool:
        return set(used) == (plain.standing(layout, digest) if digest else set())

    if not (agrees(verdict.candidate, verdict.evidence) and agrees(verdict.baseline, verdict.baseline_evidence)):
        return False
    if not verdict.waivers:
        return True
    from registry import waivers
    from registry.store import Store

    store = Store(layout)
    today = waivers.today(store)
    holding = {each.identity() for each in waivers.of(store, verdict.candidate) if each.expires >= today}
    return holding.issuperset(verdict.waivers)


class _Verdict(NamedTuple):
    """Of a verdict what is shown, and what it rests on."""

    verdict: str
    candidate: str
    baseline: str | None
    policy: str
    evidence: Sequence[str]
    baseline_evidence: Sequence[str]
    waivers: Sequence[str]


def _verdict(record: Mapping[str, Any]) -> _Verdict:
    return _Verdict(
        verdict=record["verdict"],
        candidate=record["candidate"],
        baseline=record["baseline"],
        policy=record["policy"],
        evidence=record["evidence"],
        baseline_evidence=record["baseline_evidence"],
        waivers=record.get("waivers", ()),
    )
