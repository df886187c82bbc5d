"""The shell around every stage: its options, its place in the recipe, how it ends.

    python -m stages.<kind> --root models --recipe recipes/v7b.yaml [--step N] [--candidate NAME]

With nothing said it works on the toy's recipe, and takes the toy in if it is not there.

A stage runs the one step of its kind; of several evaluations, the one of the newest candidate that is made. It starts
from what the step before made, shows how far it is, ends within seconds on SIGTERM, goes on where it stopped when it is
run again, and commits once, at the end.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import stages
from gates.errors import UsageError
from gates.wording import count
from registry import devices, leases, output, ownership
from registry.commands import Wait
from registry.leases import Lease
from registry.manifests import Inputs
from registry.recipes import MAKES, Recipe, read_recipe
from registry.store import Candidate, Store
from stages.common import built

if TYPE_CHECKING:
    from stages.common.preflight import Report

SLOWEST_END = 12.0
"""Seconds that a stage has to end by itself after it was told to."""

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


def main(
    kind: str,
    work: Callable[[Job], None],
    *,
    teach: str,
    prove: Callable[[Job], None] | None = None,
    check: Callable[[Job], Report] | None = None,
    ready: Callable[[Job], Mapping[str, Any]] | None = None,
    freeze: Callable[[Job], None] | None = None,
    rescore: Callable[[Job], None] | None = None,
    rehearse: Callable[[Job], None] | None = None,
) -> None:
    """Reads the command line, does the step of this `kind` by `work`, and exits.

    Args:
        teach: what `--help` says about the stage.
        prove: what is done instead with --prove-only, for a stage that has something to prove.
        check: what is done instead with --preflight, for a stage that reads a mix.
        ready: the same for another stage; gives what there is to say, `change` being that in words.
        freeze: what is done instead with --freeze, for a stage that reads a mix.
        rescore: what is done instead with --rescore, for a stage that scores.
        rehearse: what is done instead with --rehearse, for a stage that takes long.
    """

    def command(
        root: Annotated[Path, typer.Option(envvar="SLUICE_ROOT", help="The registry's folder.")] = Path("models"),
        recipe: Annotated[
            Path | None,
            typer.Option(help="The recipe, relative to --project as paths in it are; without it one of recipes/toy."),
        ] = None,
        step: Annotated[
            int | None,
            typer.Option(
                min=1,
                help="Which of the recipe's steps, from 1; without it the last of this kind whose input is made.",
            ),
        ] = None,
        candidate: Annotated[
            str | None, typer.Option(help="Start from this candidate instead of what the step before made.")
        ] = None,
        project: Annotated[Path, typer.Option(help="The folder with recipes/, mixes/ and packs/.")] = Path(),
        replace: Annotated[
            bool, typer.Option("--replace", help="Make the name again even if it was made from something else.")
        ] = False,
        device: Annotated[
            Literal["auto", "cpu", "cuda"],
            typer.Option(envvar="SLUICE_DEVICE", help="Where tensors are computed; auto is CUDA where there is one."),
        ] = "auto",
        prove_only: Annotated[
            bool, typer.Option("--prove-only", help="Prove the server's parsers, and take no score.")
        ] = False,
        preflight_only: Annotated[
            bool,
            typer.Option(
                "--preflight",
                help="Begin nothing: say what is read, what it asks of the machine, and whether it fits.",
            ),
        ] = False,
        freeze_only: Annotated[
            bool,
            typer.Option("--freeze", help="Begin nothing: fetch the rows of the mixes into the registry."),
        ] = False,
        rescore_only: Annotated[
            bool,
            typer.Option("--rescore", help="Ask nothing: score the answers that are kept again."),
        ] = False,
        base_url: Annotated[
            str | None,
            typer.Option(
                help="Ask the vLLM server at this address instead of starting one: it must serve the candidate by its "
                "name, under the step's flags. A key that it wants: SLUICE_API_KEY.",
                metavar="URL",
            ),
        ] = None,
        unsafe_local_execution: Annotated[
            bool,
            typer.Option(
                "--unsafe-local-execution",
                help="Run code that the model wrote here, unsealed, as you, if there is no verifier.",
            ),
        ] = False,
        rehearse_only: Annotated[
            bool,
            typer.Option("--rehearse", help="Go the whole way with the model's first two layers; make nothing."),
        ] = False,
        wait: Wait = None,
        json: Annotated[bool, typer.Option("--json", help="With --preflight: as JSON, on a terminal too.")] = False,
    ) -> None:
        os.environ.update(devices.ORDER)  # before anything asks CUDA
        os.environ["SLUICE_DEVICE"] = device  # for a server that the stage starts
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, _end_soon)

        def run() -> None:
            if (prove_only or base_url is not None) and prove is None:
                raise UsageError(f"the {kind} stage asks no server", remedy="leave --prove-only and --base-url out")
            if preflight_only and check is None and ready is None:
                raise UsageError(f"the {kind} stage has no preflight", remedy="leave --preflight out")
            if freeze_only and freeze is None:
                raise UsageError(f"the {kind} stage reads no mix", remedy="leave --freeze out")
            if (rescore_only or unsafe_local_execution) and rescore is None:
                raise UsageError(
                    f"the {kind} stage scores nothing", remedy="leave --rescore and --unsafe-local-execution out"
                )
            if rehearse_only and rehearse is None:
                raise UsageError(f"the {kind} stage trains nothing", remedy="leave --rehearse out")
            do = prove if prove_only and prove is not None else work
            if preflight_only and check is not None:
                do = partial(_preflight, check, as_json=json)
            if preflight_only and ready is not None:
                do = partial(_say_ready, ready, as_json=json)
            if freeze_only and freeze is not None:
                do = freeze
            if rescore_only and rescore is not None:
                do = rescore
            if rehearse_only and rehearse is not None:
                do = rehearse
            job = _job(kind, root, recipe, step, candidate, project, replace, device)
            options = {"base_url": base_url, "unsafe_local_execution": unsafe_local_execution, "wait": wait}
            do(dataclasses.replace(job, **options))

        raise typer.Exit(output.end_with(run))

    command.__doc__ = teach
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(command)
    cli = typer.main.get_command(app)
    needs = {"preflight_only": check or ready, "json": check or ready, "freeze_only": freeze}
    needs |= {"rehearse_only": rehearse}
    needs |= {"rescore_only": rescore, "unsafe_local_execution": rescore, "prove_only": prove, "base_url": prove}
    for option in cli.params:
        if option.name in needs and needs[option.name] is None:
            option.hidden = True  # refused, should somebody state it
    sys.exit(cli())


def _preflight(check: Callable[[Job], Report], job: Job, *, as_json: bool) -> None:
    from stages.common import preflight, preflight_view

    report = check(job)
    preflight_view.show(report, as_json=as_json)
    preflight.refuse(report)


def _say_ready(ready: Callable[[Job], Mapping[str, Any]], job: Job, *, as_json: bool) -> None:
    told = ready(job)
    if as_json or not sys.stdout.isatty():
        output.data(dict(told))
    else:
        output.text(f"{told['stage']} {told['candidate']}: {told['change']}")


def _end_soon(*_: object) -> None:
    """Interrupts the work; ends the process if that is not enough.

    Code of others may swallow the interruption (a bare `except` while a library is imported). Nothing is lost by a hard
    end: a stage commits once, and a server that it started ends with it.
    """
    last_resort = threading.Timer(SLOWEST_END, os._exit, [output.INTERRUPTED])
    last_resort.daemon = True
    last_resort.start()
    raise KeyboardInterrupt


def _job(
    kind: str,
    root: Path,
    recipe_path: Path | None,
    step: int | None,
    candidate: str | None,
    project: Path,
    replace: bool,
    device: str,
) -> Job:
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
