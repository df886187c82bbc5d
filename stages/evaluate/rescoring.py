"""Scoring kept answers again, after a grader has changed: new evidence, and no server."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from gates import canonical
from gates.errors import IntegrityError, UsageError
from gates.evidence import totals
from gates.records import Evidence, Score
from registry import output, retractions
from registry.progress import progress
from registry.store import Candidate, Store
from stages.evaluate.executing import executed, once
from stages.evaluate.journal import Answer, Key
from stages.evaluate.packs import Pack
from stages.evaluate.scoring import Results, kept_answers, pending, results

if TYPE_CHECKING:
    from stages.common.execution.client import Run

    Verifier = Callable[[], AbstractAsyncContextManager[Run | None]]

_NAMED = 8
"""So many items that changed are named."""


async def rescore(store: Store, candidate: Candidate, pack: Pack, verifier: Verifier) -> list[str]:
    """New evidence for each that was taken on this pack under another version of its grader.

    Args:
        verifier: the verifier. It is had only where there is something to run that was not run before.

    Returns:
        A line for each evidence, saying what changed.

    Raises:
        UsageError: no evidence keeps answers to the pack as it is now; what differs is said.
        IntegrityError: kept answers are damaged.
        UnavailableError: the verifier does not answer.
    """
    found = {
        digest: evidence
        for digest, evidence in retractions.standing(store, candidate.digest).items()
        if evidence.pack == pack.name
    }
    refusals = {digest: _refusal(pack, evidence) for digest, evidence in found.items()}
    for digest, refusal in refusals.items():
        if refusal:
            output.hint(f"{candidate.name}  {pack.name}: evidence {digest[:12]} stays as it is: {refusal}")
    if all(refusals.values()):
        told = "; ".join(sorted({refusal for refusal in refusals.values() if refusal}))
        raise UsageError(
            f"{candidate.name} has no kept answers that could be scored again on {pack.name}"
            + (f": {told}" if told else ""),
            where=f"{candidate.name}, {pack.name}",
            remedy="evaluate it on the pack as it is now",
        )
    usable = {digest: evidence for digest, evidence in found.items() if not refusals[digest]}
    if any(evidence.conditions.grader != pack.grader.digest for evidence in usable.values()):
        output.hint(
            f"{pack.name}: what was scored before still counts; where it was wrong, take it back: "
            'registry evidence retract DIGEST --reason "…"'
        )
    return [await _rescored(store, candidate, pack, digest, evidence, verifier) for digest, evidence in usable.items()]


def _refusal(pack: Pack, evidence: Evidence) -> str | None:
    """Why kept answers do not answer the pack as it is now."""
    if evidence.responses is None:
        return "its answers were not kept"
    if evidence.conditions.dataset != pack.dataset:
        return "the items have changed since they were asked"
    if evidence.conditions.pack != pack.digest:
        return "the pack's limits or its grader's name have changed since it was asked"
    return None


async def _rescored(
    store: Store, candidate: Candidate, pack: Pack, digest: str, evidence: Evidence, verifier: Verifier
) -> str:
    about = f"{candidate.name}  {pack.name}"
    if evidence.conditions.grader == pack.grader.digest:
        return f"{about}  {_percent(evidence.totals.overall)}  (evidence {digest[:12]} is by this grader already)"
    assert evidence.responses is not None
    answers = kept_answers(store.read(evidence.responses), where=f"evidence {digest}")
    _demand_known(pack, evidence, answers, where=f"evidence {digest}")
    made = results(pack, evidence.repeats, await _executed(pack, answers, verifier))
    again = evidence.model_copy(
        update={
            "conditions": evidence.conditions.model_copy(update={"grader": pack.grader.digest}),
            "totals": totals(made.rows),
            "rows": canonical.digest(made.rows_bytes),
            "responses": canonical.digest(made.responses),
            "recorded": evidence.recorded | {"rescored": digest},
        }
    )
    new = store.add_evidence(again, rows=made.rows_bytes, responses=made.responses, timings={})
    before, after = _percent(evidence.totals.overall), _percent(again.totals.overall)
    return f"{about}  {before} -> {after}  ({_changes(store, evidence, made)}; evidence {digest[:12]} -> {new[:12]})"


def _demand_known(pack: Pack, evidence: Evidence, answers: dict[Key, Answer], *, where: str) -> None:
    known = {(item.id, repeat) for item in pack.items for repeat in range(evidence.repeats)}
    if strange := sorted(answers.keys() - known):
        raise IntegrityError(f"it keeps an answer to {strange[0][0]!r}, which the pack does not ask", where=where)


async def _executed(pack: Pack, answers: dict[Key, Answer], verifier: Verifier) -> dict[Key, Answer]:
    """The answers with results for all of their code, as far as they are not kept. One after the other: each is
    alone."""
    items = {item.id: item for item in pack.items}
    left = [answer for answer in answers.values() if pending(pack, items[answer.item], answer)]
    if not left:
        return answers
    async with verifier() as run:
        assert run is not None, "a pack with something to run executes"
        run, ran = once(run), {}
        with progress(f"run the code of {pack.name}", total=len(left), unit="answers") as bar:
            for answer in left:
                ran[answer.key] = await executed(run, pack, items[answer.item], answer, alone=True)
                bar.advance(1)
    return answers | ran


def _changes(store: Store, evidence: Evidence, made: Results) -> str:
    """Which items are worth something else now."""
    assert evidence.rows is not None
    before = [json.loads(line) for line in store.read(evidence.rows).splitlines()]
    points = {(row["item"], row["repeat"]): row.get("points") for row in before}
    changed = {row.item: None for row in made.rows if points.get((row.item, row.repeat)) != row.points}
    if not changed:
        return "no item changed"
    items = len({row.item for row in made.rows})
    named = ", ".join(list(changed)[:_NAMED]) + (", …" if len(changed) > _NAMED else "")
    return f"{len(changed)} of {items} items changed: {named}"


def _percent(score: Score) -> str:
    return f"{100 * score.points / score.of:.1f}" if score.of else "-"
