"""`python -m stages.evaluate`: the evaluate step of a recipe."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gates.errors import IntegrityError, UsageError
from gates.wording import count
from registry import output
from registry.recipes import Evaluate
from registry.verify import demand_whole
from stages.common.job import Job
from stages.common.stage import main
from stages.evaluate import engines, rescoring, taking
from stages.evaluate.conditions import conditions, longest
from stages.evaluate.engines import elsewhere
from stages.evaluate.packs import Pack, read_pack
from stages.evaluate.proof import prove


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
        taking.Work(pack, each, job.source.digest, conditions(job.source, pack, each, description), description)
        for pack in packs
        for each in (settings.model_copy(update={"thinking": mode}) for mode in modes)
    ]
    waiting = [work for work in works if not taking.made(job, work)]
    asyncio.run(_demand_verifier(job, [work.pack for work in waiting]))
    if waiting:
        with _serving(job, description) as engine:
            asyncio.run(taking.take(job, waiting, engine))


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
        scored = rescoring.rescore(job.store, job.source, pack, lambda pack=pack: taking.verifier(job, [pack]))
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
    async with taking.verifier(job, packs):
        pass


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
    async with engine.connected() as connection:
        await prove(connection, packs)


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
