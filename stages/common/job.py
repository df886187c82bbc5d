"""Which step of a recipe a stage is to do, with what it starts from.

A stage does the one step of its kind; of several evaluations, the one of the newest candidate that is made. It starts
from what the step before made. With no recipe named it works on the toy's, and takes the toy in if it is not there.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import stages
from gates.errors import UsageError
from gates.wording import count
from registry import devices, leases, output, ownership
from registry.leases import Lease
from registry.manifests import Inputs
from registry.recipes import MAKES, Recipe, read_recipe
from registry.store import Candidate, Store
from stages.common import built

_TOY_RECIPE = Path("recipes/toy/v7b.yaml")
_TOY_RECIPES = {"train": Path("recipes/toy/repaired.yaml")}
"""For a stage of which the toy's usual recipe has no step."""
TOY = "toy"
"""The parent of those recipes."""
_TOY_CHECKPOINT = Path(stages.__file__).parent / "toy" / "checkpoint"


@dataclass(frozen=True, slots=True)
class Job:
    """One step of a recipe, ready to be done."""

    store: Store
    project: Path
    """The folder that paths in recipes are relative to."""
    recipe: Recipe
    settings: Any
    """The step's own part of the recipe, such as `registry.recipes.Prune`."""
    source: Candidate
    """The candidate that the step starts from."""
    makes: str
    """The name of the candidate that the step makes; for a step that makes none, the name of `source`."""
    replace: bool
    where: str = "the recipe"
    """The recipe's file and the step in it, for messages: recipes/v7b.yaml, steps[0].prune."""
    device: str = "auto"
    """Where tensors are computed: cpu, cuda, or auto, which is CUDA where there is one."""
    base_url: str | None = None
    """Where the server is that is asked, if it is not to be started."""
    unsafe_local_execution: bool = False
    """Whether code that a model wrote may run here where there is no verifier."""
    wait: float | None = None
    """For how many seconds the device is waited for; None: as long as it takes."""

    def leased(self, device: str) -> AbstractContextManager[Lease]:
        """The device is this stage's alone while the context lasts: it is entered before anything computes on it.

        A server that is started meanwhile inherits `Lease.descriptors`.

        Args:
            device: cpu or cuda, where tensors are computed.

        Raises: as `registry.leases.hold` does.
        """
        claim = leases.Claim(f"{self.makes} ({self.where})", self.source.name, self.source.digest)
        return leases.hold(
            self.store.layout, devices.names("cpu" if device == "cpu" else "cuda"), claim, wait=self.wait
        )

    def made(self, inputs: Inputs) -> bool:
        """Whether the candidate is made from `inputs` already; says so.

        Raises:
            UsageError: it is made from something else, and `replace` is not set.
        """
        candidate = self.store.made(self.makes, inputs, replace=self.replace)
        if candidate is not None:
            output.text(f"{self.makes}: made already ({output.size(candidate.manifest.size)})")
        return candidate is not None


def read_job(
    kind: str,
    root: Path,
    recipe_path: Path | None,
    step: int | None,
    candidate: str | None,
    project: Path,
    replace: bool,
    device: str,
) -> Job:
    """
    Args:
        kind: the stage's, such as prune.
        recipe_path: relative to `project`; None for the toy's.
        step: its number from 1, if it was chosen.
        candidate: the one to start from, if it was named.

    Raises:
        UsageError: there is no such step, or what it starts from is not there.
    """
    recipe_file = project / (recipe_path or _toy_recipe(kind))
    recipe = read_recipe(recipe_file)
    ownership.check(root.absolute())
    if others := built.differing(project):
        output.hint(
            f"this runs other code than lies in the project's folder: {count(len(others), 'module')}, such as "
            f"{others[0]}; an image runs what it was built from, and `make images` builds it again"
        )
    store = Store.open(root) if recipe_path else _with_toy(root, recipe)
    number = chosen_step(kind, recipe, step, candidate, store.names(), where=str(recipe_file))
    source = _source(store, recipe, number, candidate, str(recipe_file))
    makes = recipe.candidate_of(number) if kind in MAKES else source.name
    settings = recipe.steps[number].settings
    where = f"{recipe_file}, steps[{number}].{kind}"
    return Job(store, project, recipe, settings, source, makes, replace, where, device)


def _toy_recipe(kind: str) -> Path:
    return _TOY_RECIPES.get(kind, _TOY_RECIPE)


def _source(store: Store, recipe: Recipe, number: int, candidate: str | None, recipe_file: str) -> Candidate:
    """The candidate that step `number` starts from: the one that was named, or what the step before made.

    Raises:
        UsageError: it is not there.
    """
    name = candidate or recipe.input_of(number)
    if candidate is None and name not in (recipe.parent, *store.names()):
        raise UsageError(
            f"{name}, from which step {number + 1} starts, is not made yet",
            where=recipe_file,
            remedy=f"registry run {recipe_file} does all steps; or start from another: --candidate NAME",
        )
    return store.candidate(name)


def _with_toy(root: Path, recipe: Recipe) -> Store:
    """The registry in `root`, for a first try: made if nothing is there, and with the toy in it if the recipe wants it.

    Raises:
        UsageError: there is something else.
    """
    store = Store.init(root)
    if recipe.parent == TOY and TOY not in store.names():
        output.hint(f"no recipe is named, so this works on the {TOY}: taking it in from {_TOY_CHECKPOINT}")
        store.add(TOY, _TOY_CHECKPOINT)
    return store


def chosen_step(
    kind: str, recipe: Recipe, step: int | None, candidate: str | None, there: list[str], *, where: str
) -> int:
    """The index of the step to do: the one that was chosen; else the last whose candidate is there already.

    Args:
        candidate: the one to start from, if it was named: the step that the recipe means for it is preferred.
        there: the names in the registry.

    Raises:
        UsageError: there is none of this kind, or the one chosen is not.
    """
    of_kind = [index for index, each in enumerate(recipe.steps) if each.kind == kind]
    if step is not None:
        if step - 1 not in of_kind:
            raise UsageError(f"step {step} is not a {kind} step", where=where, remedy=_steps(recipe))
        return step - 1
    if not of_kind:
        raise UsageError(
            f"the recipe has no {kind} step", where=where, remedy=f"name one that has: --recipe FILE ({_steps(recipe)})"
        )
    wanted = [candidate] if candidate is not None else there
    ready = [index for index in of_kind if recipe.input_of(index) in wanted]
    chosen = ready[-1] if ready else of_kind[-1 if candidate is not None else 0]
    if len(of_kind) > 1:
        output.hint(f"step {chosen + 1} of {len(recipe.steps)}: {kind} {candidate or recipe.input_of(chosen)}")
    return chosen


def _steps(recipe: Recipe) -> str:
    return "its steps are " + ", ".join(f"{number} {step.kind}" for number, step in enumerate(recipe.steps, 1))
