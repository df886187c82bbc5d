"""Taking evidence of a candidate on several packs at a time, from a server that is there."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gates import canonical
from gates.errors import UsageError
from gates.evidence import totals
from gates.records import Conditions, Evidence
from registry import output, retractions
from registry.progress import Bar, progress
from registry.recipes import Evaluate
from stages.common import execution
from stages.common.job import Job
from stages.evaluate import client, runner, scoring, together
from stages.evaluate.engines import Description, Engine, elsewhere
from stages.evaluate.journal import Journal
from stages.evaluate.packs import Pack
from stages.evaluate.proof import prove

if TYPE_CHECKING:
    from stages.common.execution.client import Run


@dataclass(frozen=True, slots=True)
class Work:
    """Evidence on one pack: everything that it depends on."""

    pack: Pack
    settings: Evaluate
    """With one mode of thinking."""
    candidate: str
    """The digest of its manifest."""
    conditions: Conditions
    description: Description

    @property
    def inputs(self) -> str:
        """What names the staging folder."""
        values: dict[str, Any] = {
            "candidate": self.candidate,
            "pack": self.pack.name,
            "conditions": self.conditions.model_dump(mode="json"),
            "repeats": self.settings.repeats,
        }
        if self.description.base_url is not None:  # its answers are not mixed with those of a server of ours
            values["server"] = elsewhere.MARK
        return canonical.digest(canonical.dumps(values))


def made(job: Job, work: Work) -> bool:
    """Whether complete evidence is there already that counts; says so. What was retracted is taken again."""
    for digest, evidence in retractions.standing(job.store, work.candidate).items():
        same = evidence.conditions == work.conditions and evidence.repeats == work.settings.repeats
        if same and evidence.pack == work.pack.name and not evidence.totals.missing:
            output.text(_line(job.source.name, evidence, f"made already, evidence {digest[:12]}"))
            return True
    return False


async def take(job: Job, works: list[Work], engine: Engine) -> None:
    """Proves the server, asks it everything that is wanted at the same time, and records what each pack comes to.

    What fails on one pack keeps no other from being recorded.

    Raises:
        InvalidEvidence: the server does not pass its proof, ended, or refuses an item.
        BusyError: another process takes the same evidence.
        UnavailableError: the verifier does not answer.
    """
    answers = sum(len(work.pack.items) * work.settings.repeats for work in works)
    packs = [work.pack for work in works]
    async with engine.connected() as connection, verifier(job, packs) as run:
        await prove(connection, packs)
        with progress(f"evaluate {job.source.name}", total=answers, unit="items") as bar:
            shared = together.shares(len(works))
            takings = [
                _take(job, work, connection, engine, bar, share, run) for work, share in zip(works, shared, strict=True)
            ]
            outcomes = await asyncio.gather(*takings, return_exceptions=True)
    for line in outcomes:
        if isinstance(line, str):
            output.text(line)
    errors = [each for each in outcomes if isinstance(each, BaseException)]
    for error in errors[1:]:
        if str(error) != str(errors[0]):  # all say so when the server has ended
            output.hint(f"error: {error}")
    if errors:
        raise errors[0]


@asynccontextmanager
async def verifier(job: Job, packs: Iterable[Pack]) -> AsyncIterator[Run | None]:
    """What runs the code in answers, one program after the other; None where no pack executes any.

    Raises:
        UsageError: nothing here may execute code.
        UnavailableError: the verifier does not answer.
    """
    for pack in packs:
        if pack.grader.executes:
            async with execution.verifier(_verifier_settings(job, pack)) as run:
                yield run
            return
    yield None


async def _take(
    job: Job,
    work: Work,
    connection: client.Client,
    engine: Engine,
    bar: Bar,
    share: together.Share,
    run: Run | None,
) -> str:
    try:
        with job.store.step(work.inputs) as folder:
            with Journal(folder / "answers.jsonl") as journal:
                timings = await runner.ask(
                    connection, work.pack, work.settings, journal, bar, check=engine.check, run=run, share=share
                )
            results = scoring.results(work.pack, work.settings.repeats, journal.answers)
            evidence = _evidence(job, work, results)
            digest = job.store.add_evidence(
                evidence, rows=results.rows_bytes, responses=results.responses, timings=timings
            )
        if not evidence.totals.missing:
            job.store.discard(work.inputs)
    finally:
        share.leave()
    remark = f"evidence {digest[:12]}"
    if gone := retractions.retracted(job.store, work.candidate).get(digest):
        remark += f", the very one that is retracted and counts no more: {gone.reason}"
    return _line(job.source.name, evidence, remark)


def _verifier_settings(job: Job, pack: Pack) -> execution.Settings:
    try:
        return execution.settings_of(os.environ, unsafe_local=job.unsafe_local_execution)
    except UsageError as error:
        error.where = f"{job.where}: {pack.name}"
        raise


def _evidence(job: Job, work: Work, results: scoring.Results) -> Evidence:
    recorded: dict[str, Any] = {"concurrency": together.CONCURRENCY, **_where(work.description)}
    if work.pack.grader.executes:
        recorded["verifier"] = "sealed" if _verifier_settings(job, work.pack).socket else "on this machine"
    return Evidence(
        format=1,
        candidate=work.candidate,
        pack=work.pack.name,
        repeats=work.settings.repeats,
        conditions=work.conditions,
        totals=totals(results.rows),
        rows=canonical.digest(results.rows_bytes),
        responses=canonical.digest(results.responses),
        recorded=recorded,
    )


def _where(description: Description) -> dict[str, Any]:
    if description.base_url is None:
        return {"device": description.device}
    return {"server": elsewhere.MARK, "stated": list(elsewhere.STATED)}


def _line(candidate: str, evidence: Evidence, remark: str) -> str:
    score = evidence.totals.overall
    percent = f"{100 * score.points / score.of:.1f}" if score.of else "-"
    missing = f", {evidence.totals.missing} missing" if evidence.totals.missing else ""
    return f"{candidate}  {evidence.pack}  {percent}  ({score.points:g} of {score.of:g}{missing}; {remark})"
