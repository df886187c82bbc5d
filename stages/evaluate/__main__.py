"""`python -m stages.evaluate`: the evaluate step of a recipe."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gates import canonical
from gates.errors import IntegrityError, UsageError
from gates.evidence import totals
from gates.records import Conditions, Evidence
from gates.wording import count
from registry import output, retractions
from registry.progress import Bar, progress
from registry.recipes import Evaluate
from registry.verify import demand_whole
from stages.common import execution
from stages.common.job import Job
from stages.common.stage import main
from stages.evaluate import client, engines, rescoring, runner, scoring
from stages.evaluate.conditions import conditions, longest
from stages.evaluate.engines import elsewhere
from stages.evaluate.journal import Journal
from stages.evaluate.packs import Pack, read_pack
from stages.evaluate.proof import prove

if TYPE_CHECKING:
    from stages.common.execution.client import Run


def evaluate(job: Job) -> None:
    """Takes evidence of the candidate on each pack of the step that has none yet under these conditions.

    Raises:
        UsageError: a pack, the template or the environment is not as it must be.
        IntegrityError: the candidate's files are not what its manifest says.
        InvalidEvidence: the server does not pass its proof, or fails.
    """
    settings: Evaluate = job.settings
    packs, description = _prepare(job)
    modes = (True, False) if settings.thinking == "both" else (settings.thinking,)
    works = [
        _Work(pack, each, job.source.digest, conditions(job.source, pack, each, description), job.base_url is not None)
        for pack in packs
        for each in (settings.model_copy(update={"thinking": mode}) for mode in modes)
    ]
    waiting = [work for work in works if not _made(job, work)]
    asyncio.run(_demand_verifier(job, [work.pack for work in waiting]))
    if waiting:
        with _serving(job, description) as engine:
            asyncio.run(_take(job, waiting, engine, description))


def ready(job: Job) -> dict[str, Any]:
    """Looks whether the step could be done, and starts nothing.

    Returns:
        What would be asked, and by which engine.

    Raises: as `evaluate` does before it starts a server.
    """
    packs, description = _prepare(job)
    asyncio.run(_demand_verifier(job, packs))
    for pack in packs:
        conditions(job.source, pack, job.settings, description)  # refuses what has no chat template
    modes = 2 if job.settings.thinking == "both" else 1
    answers = sum(len(pack.items) for pack in packs) * job.settings.repeats * modes
    where = f"on {description.device}" if description.base_url is None else f"at {description.base_url}"
    return {
        "stage": "evaluate",
        "candidate": job.source.name,
        "change": f"{count(answers, 'answer')} to {count(len(packs), 'pack')}, by {description.engine} "
        f"{description.version} {where}",
        "packs": {pack.name: len(pack.items) for pack in packs},
        "answers": answers,
        "engine": description.engine,
        "engine_version": description.version,
        "device": description.device,
    }


def prove_only(job: Job) -> None:
    """Proves the server on the candidate, whatever its weights, and takes no score.

    Raises: as `evaluate` does.
    """
    packs, description = _prepare(job)
    with _serving(job, description) as engine:
        asyncio.run(_prove(engine, packs))
    output.text(f"{job.source.name}: the {description.engine} engine {description.version} passes its proof")


def rescore(job: Job) -> None:
    """Scores the answers that evidence on the step's packs keeps, by the graders as they are now. No model is asked.

    Raises:
        UsageError: of a pack there are no kept answers, or none that answer it as it is now. The others are scored.
        UnavailableError: a grader wants code run that was not, and the verifier does not answer.
    """
    refused: list[UsageError] = []
    for pack in _packs(job):
        scored = rescoring.rescore(job.store, job.source, pack, lambda pack=pack: _verifier(job, pack))
        try:
            for line in asyncio.run(scored):
                output.text(line)
        except UsageError as error:
            refused.append(error)
    for error in refused[1:]:
        output.hint(f"error: {error}")
    if refused:
        raise refused[0]


def _prepare(job: Job) -> tuple[list[Pack], engines.Description]:
    demand_whole(
        job.store,
        job.source,
        full=False,
        harm=", so its scores would say nothing",
        remedy="make it again under another name",
    )
    description = _describe(job)
    if description.device is not None and job.device not in ("auto", description.device):
        raise UsageError(
            f"the {description.engine} engine computes on {description.device} here, not on {job.device}",
            where="--device",
            remedy="leave --device (SLUICE_DEVICE) out",
        )
    return _packs(job), description


def _describe(job: Job) -> engines.Description:
    if job.base_url is None:
        return engines.describe(job.settings, job.project, job.source.manifest.shape, where=job.where)
    held = longest(job.source.folder)
    return elsewhere.describe(job.settings, job.source, job.base_url, longest=held, where=job.where)


def _packs(job: Job) -> list[Pack]:
    return [read_pack(job.project, name, job.store) for name in dict.fromkeys(job.settings.packs)]


async def _demand_verifier(job: Job, packs: list[Pack]) -> None:
    """
    Raises:
        UsageError: a pack executes code, and nothing here may do that.
        UnavailableError: the verifier does not answer.
    """
    for pack in packs:
        if pack.grader.executes:
            async with _verifier(job, pack):
                return


def _verifier_settings(job: Job, pack: Pack) -> execution.Settings:
    try:
        return execution.settings_of(os.environ, unsafe_local=job.unsafe_local_execution)
    except UsageError as error:
        error.where = f"{job.where}: {pack.name}"
        raise


@asynccontextmanager
async def _verifier(job: Job, pack: Pack) -> AsyncIterator[Run | None]:
    """What runs the code in answers; None for a pack that executes none."""
    if pack.grader.executes:
        async with execution.verifier(_verifier_settings(job, pack)) as run:
            yield run
    else:
        yield None


@contextmanager
def _serving(job: Job, description: engines.Description) -> Iterator[engines.Engine]:
    if description.device is None:
        output.hint(f"{job.source.name}: asking vLLM {description.version} at {description.base_url}")
        with engines.start(description, job.source.folder) as engine:
            yield engine
        return
    output.hint(f"{job.source.name}: starting the {description.engine} engine on {description.device}")
    with job.leased(description.device) as lease:
        with engines.start(description, job.source.folder, keep=lease.descriptors) as engine:
            if job.store.candidate(job.source.name).digest != job.source.digest:
                raise IntegrityError(
                    f"{job.source.name} was replaced while it was being loaded",
                    where=str(job.source.folder),
                    remedy="run this again",
                )
            yield engine
        lease.tell_what_stays()


async def _prove(engine: engines.Engine, packs: list[Pack]) -> None:
    async with _connected(engine) as connection:
        await prove(connection, packs)


def _connected(engine: engines.Engine) -> AbstractAsyncContextManager[client.Client]:
    return client.connect(engine.base_url, concurrency=runner.CONCURRENCY, model=engine.model, key=engine.key)


@dataclass(frozen=True, slots=True)
class _Work:
    """Evidence on one pack: everything that it depends on."""

    pack: Pack
    settings: Evaluate
    candidate: str
    conditions: Conditions
    elsewhere: bool
    """Whether somebody else has started the server: its answers are not mixed with those of one of ours."""

    @property
    def inputs(self) -> str:
        """What names the staging folder."""
        values = {
            "candidate": self.candidate,
            "pack": self.pack.name,
            "conditions": self.conditions.model_dump(mode="json"),
            "repeats": self.settings.repeats,
        } | ({"server": "started elsewhere"} if self.elsewhere else {})
        return canonical.digest(canonical.dumps(values))


def _made(job: Job, work: _Work) -> bool:
    """Whether complete evidence is there already that counts; says so. What was retracted is taken again."""
    for digest, evidence in retractions.standing(job.store, work.candidate).items():
        same = evidence.conditions == work.conditions and evidence.repeats == work.settings.repeats
        if same and evidence.pack == work.pack.name and not evidence.totals.missing:
            output.text(_line(job.source.name, evidence, f"made already, evidence {digest[:12]}"))
            return True
    return False


async def _take(job: Job, works: list[_Work], engine: engines.Engine, description: engines.Description) -> None:
    count = sum(len(work.pack.items) * work.settings.repeats for work in works)
    async with _connected(engine) as connection:
        await prove(connection, [work.pack for work in works])
        with progress(f"evaluate {job.source.name}", total=count, unit="items") as bar:
            done = [await _take_one(job, work, connection, engine, description, bar) for work in works]
    for line in done:
        output.text(line)


async def _take_one(
    job: Job, work: _Work, connection: client.Client, engine: engines.Engine, description: engines.Description, bar: Bar
) -> str:
    with job.store.step(work.inputs) as folder:
        with Journal(folder / "answers.jsonl") as journal:
            async with _verifier(job, work.pack) as run:
                timings = await runner.ask(
                    connection, work.pack, work.settings, journal, bar, check=engine.check, run=run
                )
        results = scoring.results(work.pack, work.settings.repeats, journal.answers)
        evidence = _evidence(job, work, results, description)
        digest = job.store.add_evidence(evidence, rows=results.rows_bytes, responses=results.responses, timings=timings)
    if not evidence.totals.missing:
        job.store.discard(work.inputs)
    remark = f"evidence {digest[:12]}"
    if gone := retractions.retracted(job.store, work.candidate).get(digest):
        remark += f", the very one that is retracted and counts no more: {gone.reason}"
    return _line(job.source.name, evidence, remark)


def _evidence(job: Job, work: _Work, results: scoring.Results, description: engines.Description) -> Evidence:
    recorded: dict[str, Any] = {"concurrency": runner.CONCURRENCY, **_where(description)}
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


def _where(description: engines.Description) -> dict[str, Any]:
    if description.device is not None:
        return {"device": description.device}
    return {"server": "started elsewhere", "stated": list(elsewhere.STATED)}


def _line(candidate: str, evidence: Evidence, remark: str) -> str:
    score = evidence.totals.overall
    percent = f"{100 * score.points / score.of:.1f}" if score.of else "-"
    missing = f", {evidence.totals.missing} missing" if evidence.totals.missing else ""
    return f"{candidate}  {evidence.pack}  {percent}  ({score.points:g} of {score.of:g}{missing}; {remark})"


if __name__ == "__main__":
    main(
        "evaluate",
        evaluate,
        teach="Ask a candidate every item of its packs, through a server whose parsers are proved first. With "
        "--prove-only the server is proved and no score is taken. With --rescore the answers that were kept are scored "
        "again, which is what to do after a grader has changed. With --base-url a vLLM server that runs already is "
        "asked.",
        ready=ready,
        prove=prove_only,
        rescore=rescore,
    )
