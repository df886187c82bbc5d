"""Devices and who holds them: `registry lease`."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from registry import output
from registry.commands import Json, Root, Wait, opened
from registry.layout import ROOT

if TYPE_CHECKING:
    from registry.leases import State

app = typer.Typer(rich_markup_mode=None)
lease = typer.Typer(
    rich_markup_mode=None,
    no_args_is_help=True,
    help="Who has the GPU; and take it for any command.\n\nOne holder a device, across containers and people.",
)
app.add_typer(lease, name="lease")


@lease.command()
def ls(root: Root = ROOT, json: Json = False) -> None:
    """List devices: by whom each is held, what for, since when.

    And how much of their memory is taken.
    """
    from registry import leases

    states = leases.states(opened(root).layout)
    if json:
        output.data([asdict(state) for state in states])
    else:
        for state in states:
            output.text(line(state))


@lease.command()
def run(
    command: Annotated[list[str], typer.Argument(help="The command and its words, after --.")],
    wait: Wait = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"],
        typer.Option(envvar="SLUICE_DEVICE", help="What to hold; auto is every GPU that can be seen, or else the CPU."),
    ] = "auto",
    root: Root = ROOT,
) -> int:
    """Run any command while holding the device.

    It ends with the command's exit code, when all that the command started has ended too.

    Stages take the device by themselves; this is for everything else that needs it. A stage that the command starts
    works under this lease. On a machine with several GPUs CUDA_VISIBLE_DEVICES says which.

    registry lease run -- python finetune.py --epochs 2
    """
    from registry import devices, leases, processes
    from registry.leases import Claim

    layout = opened(root).layout
    with leases.hold(layout, devices.names(device), Claim(Path(command[0]).name), wait=wait) as held:
        code = processes.run(command, os.environ | devices.ORDER | held.environment, keep=held.descriptors)
        held.tell_what_stays()
    return code


def line(state: State) -> str:
    text = f"{state.device}  {'held' if state.held else 'free'}"
    if state.memory is not None:
        text += f"  {state.memory.model}, {output.size(state.memory.used)} of {output.size(state.memory.total)} taken"
    if state.held:
        text += f"  {state.holder or 'by somebody who could not say who'}"
    return text
