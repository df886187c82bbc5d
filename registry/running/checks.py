"""What can be known to be wrong before the first step starts is said before it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gates.errors import BusyError, IntegrityError, SluiceError, UsageError
from registry.output import INTERRUPTED
from registry.recipes import MAKES, Dataset, Recipe, read_mix
from registry.running.plan import KINDS, Line, Task

if TYPE_CHECKING:
    from registry.running.places import Place
    from registry.running.view import View
    from registry.store import Store


def networked(project: Path, path: Path, recipe: Recipe) -> frozenset[int]:
    """The numbers of the steps whose mixes name datasets of the Hub.

    Raises:
        UsageError: a mix cannot be read, or a file that it names is not there.
    """
    found = set()
    for number, step in enumerate(recipe.steps):
        for setting in KINDS[step.kind].mixes if step.kind in KINDS else ():
            try:
                if any(dataset.hub is not None for dataset in _datasets(project, getattr(step.settings, setting))):
                    found.add(number)
            except SluiceError as error:
                raise _placed(error, f"{path}, step {number + 1} ({step.kind})") from None
    return frozenset(found)


def files(store: Store, project: Path, lines: Sequence[Line]) -> None:
    """That what recipes name is there: the parent, packs with the public sets that they ask, policies, baselines; and
    that what they make and promote can be called so.

    Raises:
        SluiceError: something is not; with recipe and step.
    """
    from registry import generations

    _refuse_one_name_for_two(lines)
    known, served = set(store.names()), set(generations.channels(store.layout))
    for line in lines:
        if line.recipe.parent not in known:
            store.candidate(line.recipe.parent)  # says what there is, and how a candidate is added
        for task in line.tasks:
            known.add(task.candidate)
            try:
                _look(store, project, task)
                if task.kind == "gate" and task.settings.baseline not in known | served | {None}:
                    store.candidate(task.settings.baseline)  # likewise
                if task.kind == "promote":
                    _look_at_channel(store, project, task, known)
                    served.add(task.settings.channel)
            except SluiceError as error:
                raise _placed(error, task.where) from None


def stages(store: Store, place: Place, lines: Sequence[Line], replace: bool, shown: View) -> None:
    """What the stages can say before they begin: mixes are fetched, and read to the last row; disk and memory; whether
    there is an engine that can serve the candidate, and a verifier.

    Of a step whose source is still to be made, what does not need it. One that is made already, or that comes first,
    says so itself in its turn.

    Raises:
        SluiceError: a stage refuses; nothing has been made.
    """
    there = set(store.names())
    every = [task for line in lines for task in line.tasks]
    refused: list[tuple[Task, int]] = []
    asked = [every[0].settings]  # what comes first says so itself
    fetched = {task.where for task in every if task.freezes}
    for task in every:
        waits = task.candidate not in there or replace
        if not waits or task.program is None or not task.program.preflight or task.where == every[0].where:
            continue
        instead = None if task.source in there else every[0].source  # what is read first is there
        if instead is not None and task.where in fetched and not task.freezes:
            continue  # who fetches reads every row
        if task.kind == "evaluate" and task.settings in asked:
            continue
        asked.append(task.settings)
        shown.begin(f"preflight of {task.title}")
        said: list[str] = []
        code = place.run(task, task.preflight(replace=replace, instead=instead), said.append)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            for text in said:
                shown.line(text)
            refused.append((task, code))
    if refused:
        kind = {IntegrityError.exit_code: IntegrityError, BusyError.exit_code: BusyError}
        raise kind.get(refused[0][1], UsageError)(
            "the preflight fails, so nothing has been begun",
            where="; ".join(task.where for task, _ in refused),
            remedy="the errors above say what to do",
        )


def _look(store: Store, project: Path, task: Task) -> None:
    from registry import judging, packs

    if task.kind == "evaluate":
        for pack in task.settings.packs:
            if (dataset := packs.read_file(project, pack).dataset) is not None:
                packs.demand(store, pack, dataset, where=str(project / "packs" / f"{pack}.yaml"))
    if task.kind == "gate":
        policy = judging.read_policy(project / task.settings.policy)
        if policy.compared() and task.settings.baseline is None:
            raise UsageError(
                f"the policy {policy.name} compares with a baseline, and the step names none: it could never be a Pass",
                remedy=f"name a candidate or a channel, such as baseline: {task.recipe.parent}",
            )


def _refuse_one_name_for_two(lines: Sequence[Line]) -> None:
    """
    Raises:
        UsageError: two recipes would make different candidates under one name.
    """
    made: dict[str, tuple[Task, object]] = {}
    for line in lines:
        steps = []
        for task in line.tasks:
            if task.kind not in MAKES or task.freezes:
                continue
            steps.append((task.kind, task.settings))
            what = (line.recipe.parent, list(steps))
            earlier, other = made.setdefault(task.candidate, (task, what))
            if other != what:
                raise UsageError(
                    f"this makes {task.candidate}, as {earlier.where} does from something else",
                    where=task.where,
                    remedy="give one of the recipes another name",
                )


def _look_at_channel(store: Store, project: Path, task: Task, candidates: set[str]) -> None:
    """What a promotion would refuse once the candidate is made."""
    from registry import generations, judging

    channel = task.settings.channel
    if channel in candidates:
        raise UsageError(f"{channel} is a candidate, so no channel can be called so", remedy="choose another channel")
    bound = generations.newest(store.layout, channel)
    policy = judging.read_policy(project / task.recipe.gate_before(task.number).policy)
    if bound is not None and bound.policy != policy.identity() and task.candidate not in store.names():
        raise UsageError(
            f"the gate before judges by {policy.name} ({policy.identity()[:12]}), and the channel {channel} is bound "
            f"to the policy {bound.policy_name} ({bound.policy[:12]})",
            remedy="gate by that policy; or leave the step out, and promote by hand: registry promote "
            f"{task.candidate} --channel {channel} --policy FILE --reason …",
        )


def _datasets(project: Path, name: str) -> list[Dataset]:
    """Of a mix; a file of rows stands for itself."""
    if name.endswith((".jsonl", ".parquet")):
        _demand_file(project, name, name)
        return []
    datasets = read_mix(project / name).datasets
    for dataset in datasets:
        if dataset.path is not None:
            _demand_file(project, dataset.path, f"{name}: {dataset.path}")
    return datasets


def _demand_file(project: Path, path: str, where: str) -> None:
    if not (project / path).is_file():
        raise UsageError("there is no such dataset", where=where)


def _placed(error: SluiceError, where: str) -> SluiceError:
    error.where = f"{where}: {error.where}" if error.where else where
    return error
