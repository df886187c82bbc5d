"""Recipes from the first step to the last: stages in containers or in processes of this machine, records in this one.

A step that is made already says so and costs a second; so a line that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import shlex
import signal
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from gates.errors import SluiceError, UsageError
from registry import leases, output
from registry.recipes import MAKES, read_recipe
from registry.running import checks, records
from registry.running.containers import Containers, cleared
from registry.running.places import Place, Where, placed
from registry.running.plan import Line, Task, tasks
from registry.running.view import View, view
from registry.store import Store

_STAGES_CODES = (0, 2, 3, 4, 5, 6, output.INTERRUPTED)
"""Those that a stage ends with on purpose (1 is a failed gate, and an error that nobody foresaw, of any program)."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one recipe ended: the candidate it came to, and the exit code of its last step (0: to the end)."""

    recipe: str
    candidate: str
    verdict: str | None
    """Of the last gate that was reached."""
    code: int
    reason: str


def run(
    root: Path,
    project: Path,
    paths: Sequence[Path],
    *,
    where: Where | None = None,
    replace: bool = False,
    unsafe: bool = False,
) -> list[Outcome]:
    """Runs each recipe; one that fails does not stop the next.

    Every recipe is read and checked before anything starts: its files, what its steps run in, and, by the stages that
    read a mix, every row, the disk and the memory.

    Args:
        paths: recipes, relative to `project`.
        where: None is containers where they can be had, else processes of this machine.
        replace: make names again that were made from something else.
        unsafe: let code that a model wrote run on this machine, where stages are processes of it.

    Raises:
        SluiceError: a recipe, or something that it needs, cannot be used; nothing has started.
    """
    store = Store.open(root)
    lines = _read(project, paths)
    place = placed(root, project, lines, where, unsafe)
    checks.files(store, project, lines)
    with _heeded(), _alone(store, paths), ExitStack() as here:
        if isinstance(place, Containers):
            here.enter_context(cleared(place))
        shown = here.enter_context(view())
        checks.stages(store, place, lines, replace, shown)
        unmade: set[str] = set()
        return [_run(store, project, place, line, replace, shown, unmade) for line in lines]


def planned(
    root: Path,
    project: Path,
    paths: Sequence[Path],
    *,
    where: Where | None = None,
    replace: bool = False,
    unsafe: bool = False,
) -> list[dict[str, Any]]:
    """What `run` would do, task by task; nothing is started and nothing written.

    Raises:
        SluiceError: as `run`, of what can be known without a stage.
    """
    store = Store.open(root)
    lines = _read(project, paths)
    place = placed(root, project, lines, where, unsafe)
    checks.files(store, project, lines)
    return [
        {
            "recipe": str(task.path),
            "step": task.number + 1,
            "kind": f"fetch the mix of {task.kind}" if task.freezes else task.kind,
            "candidate": task.candidate,
            "in": place.name if task.program else "this process",
            "there": records.there(store, project, task),
            **(place.described(task, task.words(replace=replace)) if task.program else {}),
        }
        for line in lines
        for task in line.tasks
    ]


def summary(outcomes: Sequence[Outcome]) -> int:
    """One exit code for all: an error before a failed gate before 0."""
    codes = [outcome.code for outcome in outcomes]
    errors = [code for code in codes if code not in (0, 1, 3)]
    return max(errors or codes, default=0)


def _read(project: Path, paths: Sequence[Path]) -> list[Line]:
    lines = []
    for path in paths:
        if (project / path).is_fifo():
            remedy = "save it to a file; a policy or the recipe of one stage may be a pipe"
            raise UsageError("each step reads the recipe, and a pipe is read once", where=str(path), remedy=remedy)
        recipe = read_recipe(project / path)
        inside = (project / path).resolve()
        folder = project.resolve()
        name = PurePosixPath(inside.relative_to(folder) if inside.is_relative_to(folder) else inside)
        lines.append(Line(recipe, tasks(name, recipe, checks.networked(project, path, recipe))))
    return lines


@contextmanager
def _heeded() -> Iterator[None]:
    """Whoever ends this from outside, or closes its terminal, is heard like Ctrl-C."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}
    for each, handler in before.items():
        if handler is not signal.SIG_IGN:  # nohup
            signal.signal(each, interrupt)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def _alone(store: Store, paths: Sequence[Path]) -> Iterator[None]:
    """One run at a time in a registry: the machine is the same for all. A second waits, and then finds things made."""
    claim = leases.Claim(f"registry run {shlex.join(map(str, paths))}")
    with leases.turn(store.layout.lock("run"), "the turn to run recipes here", claim):
        yield


def _run(
    store: Store, project: Path, place: Place, line: Line, replace: bool, shown: View, unmade: set[str]
) -> Outcome:
    """
    Args:
        unmade: what recipes before this one should have made, and did not; to it comes what this one leaves unmade.
    """
    verdict: str | None = None
    code, reason, candidate = 0, "done", line.recipe.parent
    for number, task in enumerate(line.tasks):
        shown.begin(task.title)
        if task.candidate != candidate:
            candidate, verdict = task.candidate, None  # the one before had its own
        try:
            _demand_made(task, unmade)
            if task.program is not None:
                code, reason = _ended(task, place.run(task, task.words(replace=replace), shown.line))
            else:
                with shown.aside():
                    code, reason = records.done(store, project, task)
                verdict = reason if task.kind == "gate" else verdict
        except SluiceError as error:
            shown.line(f"error: {error}")
            code, reason = error.exit_code, error.what
        if code == output.INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            unmade.update(each.candidate for each in line.tasks[number:] if each.kind in MAKES)
            break
        if task.kind in MAKES and not task.freezes:
            unmade.discard(task.candidate)
    return Outcome(line.recipe.name, candidate, verdict, code, reason if code or task.kind == "promote" else "done")


def _demand_made(task: Task, unmade: set[str]) -> None:
    """
    Raises:
        UsageError: the task needs what a recipe before this one should have made; what has its name here is another.
    """
    needed = {task.source, task.settings.baseline if task.kind == "gate" else None}
    if missing := needed & unmade:
        raise UsageError(f"{missing.pop()} was not made: the recipe that makes it failed before", where=task.where)


def _ended(task: Task, code: int) -> tuple[int, str]:
    """Exit code and reason of a stage that ended with `code`."""
    if code in _STAGES_CODES:
        return code, f"{task.kind} ended with exit code {code}" if code else "done"
    if code == 128 + signal.SIGKILL:
        return UsageError.exit_code, f"{task.kind} was killed: by the system, if the memory was full (dmesg says so)"
    return UsageError.exit_code, f"{task.kind} broke off with exit code {code}; its last lines say more"
