"""The shell around every stage: its options, and how it ends.

    python -m stages.<kind> --root models --recipe recipes/v7b.yaml [--step N] [--candidate NAME]

A stage does one step (`stages/common/job.py`), shows how far it is, ends within seconds on SIGTERM, goes on where it
stopped when it is run again, and commits once, at the end.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from gates.errors import UsageError
from registry import devices, output
from registry.commands import Wait
from stages.common.job import Job, read_job

if TYPE_CHECKING:
    from stages.common.preflight import Report

SLOWEST_END = 12.0
"""Seconds that a stage has to end by itself after it was told to."""


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
            job = read_job(kind, root, recipe, step, candidate, project, replace, device)
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
