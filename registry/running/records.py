"""The steps that read and write records alone: gates and promotions. And what is there already of any step."""

from __future__ import annotations

from pathlib import Path

from gates.records import exit_code
from registry import generations, judging, output, promotion, retractions
from registry.running.plan import Task
from registry.store import Store


def done(store: Store, project: Path, task: Task) -> tuple[int, str]:
    """Does a step of kind gate or promote; gives its exit code, and the verdict or what is served now.

    Raises:
        SluiceError: as `judging.judge` and `promotion.promote`.
    """
    if task.kind == "gate":
        policy = judging.read_policy(project / task.settings.policy)
        verdict = judging.judge(store, task.candidate, policy=policy, baseline=task.settings.baseline)
        output.hint(f"{task.candidate}: {verdict.verdict}")
        return exit_code(verdict.verdict), verdict.verdict
    served = _promote(store, project, task)
    output.hint(served)
    return 0, served


def _promote(store: Store, project: Path, task: Task) -> str:
    """Promotes by the policy of the gate before. What somebody has replaced since, running again does not put back."""
    channel, name = task.settings.channel, task.candidate
    digest = store.candidate(name).digest
    earlier = [each for each in generations.kept(store.layout, channel) if each.manifest == digest]
    now = generations.current(store.layout, channel)
    if earlier and now is not None and now.manifest != digest:
        return (
            f"{channel} stays with {now.candidate}: {name} was generation {earlier[-1].number}, and was replaced "
            f"since; to put it back: registry promote {name} --channel {channel}"
        )
    gate = task.recipe.gate_before(task.number)
    policy = judging.read_policy(project / gate.policy)
    generation = promotion.promote(store, name, channel=channel, policy=policy)
    return f"{channel} → {generation.candidate} (generation {generation.number})"


def there(store: Store, project: Path, task: Task) -> str | None:
    """What is there already of a step, for people. Whether it was made from the same inputs, its stage will say."""
    if task.freezes or task.candidate not in store.names():
        return None
    candidate = store.candidate(task.candidate)
    if task.kind == "evaluate":
        standing = retractions.standing(store, candidate.digest).values()
        packs = {each.pack for each in standing} & set(task.settings.packs)
        return f"evidence on {', '.join(sorted(packs))}" if packs else None
    if task.kind == "gate":
        policy = judging.read_policy(project / task.settings.policy)
        verdict = judging.fresh(store, candidate, policy.identity())
        return verdict.verdict if verdict else None
    if task.kind == "promote":
        generation = generations.current(store.layout, task.settings.channel)
        serves = generation is not None and generation.manifest == candidate.digest
        return f"{task.settings.channel} serves it" if serves else None
    return f"{task.candidate} {candidate.digest[:12]}"
