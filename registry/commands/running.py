"""Recipes, run from the first step to the last: `registry run`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gates.errors import UsageError
from registry import output
from registry.commands import Json, Root
from registry.layout import ROOT

if TYPE_CHECKING:
    from registry.running import Outcome
    from registry.running.places import Where

app = typer.Typer(rich_markup_mode=None)


@app.command()
def run(
    recipes: Annotated[list[Path], typer.Argument(help="Recipes, run one after the other.")],
    containers: Annotated[
        bool, typer.Option("--containers", help="In containers of compose.yaml, or not at all.")
    ] = False,
    local: Annotated[
        bool, typer.Option("--local", help="As processes of this machine, in the environments of `make envs`.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Start nothing; print what would run, and what is there already.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Make names again that were made from something else.")
    ] = False,
    unsafe_local_execution: Annotated[
        bool,
        typer.Option(
            "--unsafe-local-execution",
            help="Let code that a model wrote run on this machine, as you. Needed by packs that execute code, without "
            "containers.",
        ),
    ] = False,
    project: Annotated[Path, typer.Option(help="The folder that paths in recipes are relative to.")] = Path(),
    root: Root = ROOT,
    json: Json = False,
) -> int:
    """Run recipes from first step to last.

    What is made already is found; a recipe that fails does not stop the next.

    Everything is checked before anything starts. Steps run in containers where an engine answers and the images are
    built (`make images`), else as processes of this machine. Ctrl-C ends the step and leaves nothing running; the same
    command goes on from there. A step `promote: {channel: best}` serves what passed the gate before it.

    registry run recipes/toy/v7b.yaml
    """
    from registry import running

    if containers and local:
        raise UsageError("--containers and --local exclude each other", remedy="leave one out")
    where: Where | None = "containers" if containers else "local" if local else None
    if dry_run:
        planned = running.planned(root, project, recipes, where=where, replace=replace, unsafe=unsafe_local_execution)
        output.data(planned) if json else _show(planned)
        return 0
    outcomes = running.run(root, project, recipes, where=where, replace=replace, unsafe=unsafe_local_execution)
    if json:
        output.data([asdict(outcome) for outcome in outcomes])
    else:
        for line in table(outcomes):
            output.text(line)
    return running.summary(outcomes)


def table(outcomes: Sequence[Outcome]) -> list[str]:
    """A line a recipe: what it came to, its last verdict, how it ended."""
    rows = [("recipe", "candidate", "verdict", "end")]
    rows += [(each.recipe, each.candidate, each.verdict or "-", each.reason) for each in outcomes]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return ["  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[3]]) for row in rows]


def _show(planned: Sequence[Mapping[str, Any]]) -> None:
    for each in planned:
        output.text(f"{each['recipe']}, step {each['step']}: {each['kind']} → {each['candidate']}, in {each['in']}")
        for key in ("there", "image", "user", "network"):
            if each.get(key):
                output.text(f"  {key:<8} {each[key]}")
        for mount in each.get("mounts", ()):
            output.text(f"  mount    {mount}")
        if each.get("needs"):
            output.text(f"  needs    {', '.join(each['needs'])}")
        if each.get("command"):
            output.text(f"  command  {shlex.join(each['command'])}")
