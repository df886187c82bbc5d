"""Recipes from the first step to the last: each step in a process and an environment of its own, gates in this one.

A step that is made already says so and costs a second; so a line that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from gates.errors import BusyError, SluiceError, UsageError
from gates.records import exit_code
from registry import judging, output
from registry.processes import end_with_parent
from registry.recipes import Gate, Recipe, read_mix, read_recipe, read_text
from registry.store import Store

ENVIRONMENTS = {"prune": ".venv-prune", "quantize": ".venv-prune", "evaluate": ".venv-eval"}
"""Which environment a kind of step runs in: a folder of the project."""

_SECONDS_TO_END = 15
_LONGEST_RUN = 7 * 24 * 3600.0
"""Seconds that a second run waits for the first."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one recipe ended: the candidate it came to, and the exit code of its last step (0: to the end)."""

    recipe: str
    candidate: str
    code: int
    reason: str


def run(root: Path, project: Path, paths: list[Path], *, replace: bool = False) -> list[Outcome]:
    """Runs each recipe; one that fails does not stop the next.

    Every recipe is read and checked before anything starts.

    Raises:
        UsageError: a recipe, or a file that one names, cannot be used.
    """
    recipes = [(path, read_recipe(project / path)) for path in paths]
    for path, recipe in recipes:
        _preflight(project, path, recipe)
    with _alone(Store.open(root)):
        return [_run(root, project, path, recipe, replace) for path, recipe in recipes]


def summary(outcomes: list[Outcome]) -> int:
    """One exit code for all: an error before a failed gate before 0."""
    codes = [outcome.code for outcome in outcomes]
    errors = [code for code in codes if code not in (0, 1, 3)]
    return max(errors or codes, default=0)


@contextmanager
def _alone(store: Store) -> Iterator[None]:
    """One run at a time in a registry: the machine is the same for all. A second waits, and then finds things made."""
    busy = "another `registry run` is at work in this registry"
    with ExitStack() as lock:
        try:
            lock.enter_context(store.locked("run", wait=0, busy=busy))
        except BusyError:
            output.hint(f"{busy}; waiting for it to end")
            lock.enter_context(store.locked("run", wait=_LONGEST_RUN, busy=busy))
        yield


def _preflight(project: Path, path: Path, recipe: Recipe) -> None:
    """What can be known to be wrong before the first step starts is said before it."""
    for number, step in enumerate(recipe.steps, 1):
        try:
            if step.kind in ENVIRONMENTS:
                _python(project, step.kind)
            if step.prune is not None:
                mix = read_mix(project / step.prune.mix)
                for dataset in mix.datasets:
                    if dataset.path is not None and not (project / dataset.path).is_file():
                        raise UsageError("there is no such dataset", where=f"{step.prune.mix}: {dataset.path}")
            if step.evaluate is not None:
                for pack in step.evaluate.packs:
                    read_text(project / "packs" / f"{pack}.yaml", "pack")
            if step.gate is not None:
                read_text(project / step.gate.policy, "policy")
        except SluiceError as error:
            error.where = f"{path}, step {number} ({step.kind})" + (f": {error.where}" if error.where else "")
            raise


def _run(root: Path, project: Path, path: Path, recipe: Recipe, replace: bool) -> Outcome:
    code, reason = 0, "done"
    number = 0
    for number, step in enumerate(recipe.steps):
        output.hint(f"── {recipe.name}: {step.kind} ({number + 1} of {len(recipe.steps)})")
        if step.gate is not None:
            code, reason = _gate(root, project, step.gate, recipe.candidate_of(number))
        else:
            command = [_python(project, step.kind), "-P", "-m", f"stages.{step.kind}"]
            command += ["--root", root, "--project", project, "--recipe", path, "--step", str(number + 1)]
            code = _stage([str(word) for word in command] + ["--replace"] * replace)
            reason = f"{step.kind} ended with exit code {code}" if code else "done"
        if code == output.INTERRUPTED:
            raise KeyboardInterrupt
        if code:
            break
    return Outcome(recipe.name, recipe.candidate_of(number), code, reason)


def _gate(root: Path, project: Path, gate: Gate, name: str) -> tuple[int, str]:
    try:
        verdict = judging.judge(
            Store.open(root), name, policy=judging.read_policy(project / gate.policy), baseline=gate.baseline
        )
    except SluiceError as error:
        output.hint(f"error: {error}")
        return error.exit_code, error.what
    output.hint(f"{name}: {verdict.verdict}")
    return exit_code(verdict.verdict), verdict.verdict


def _python(project: Path, kind: str) -> Path:
    python = project / ENVIRONMENTS[kind] / "bin" / "python"
    if not python.exists():
        raise UsageError(
            f"the environment for {kind} is not installed", where=str(python.parent.parent), remedy="run `make envs`"
        )
    return python.absolute()


def _stage(command: list[str]) -> int:
    """Runs a stage to its end. Its result goes to stderr here: stdout belongs to this command's own result."""
    with _ended(subprocess.Popen(command, stdout=sys.stderr, preexec_fn=end_with_parent)) as stage:
        return stage.wait()


@contextmanager
def _ended(stage: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """However the block is left, the stage has ended: by itself, by SIGTERM, and in the last resort by SIGKILL."""
    try:
        yield stage
    finally:
        if stage.poll() is None:
            stage.terminate()
            try:
                stage.wait(_SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                stage.kill()
                stage.wait()
