"""Devices and who holds them: `registry lease`."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from gates.errors import UsageError
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

    It ends with the command's exit code.

    Stages take the device by themselves; this is for everything else that needs it. A stage that the command starts
    works under this lease. On a machine with several GPUs CUDA_VISIBLE_DEVICES says which.

    registry lease run -- python finetune.py --epochs 2
    """
    from registry import devices, leases
    from registry.leases import Claim

    layout = opened(root).layout
    with leases.hold(layout, devices.names(device), Claim(Path(command[0]).name), wait=wait) as held:
        code = _ended(command, os.environ | devices.ORDER | held.environment, held.descriptors)
        held.tell_what_stays()
    return code


def line(state: State) -> str:
    text = f"{state.device}  {'held' if state.held else 'free'}"
    if state.memory is not None:
        text += f"  {state.memory.model}, {output.size(state.memory.used)} of {output.size(state.memory.total)} taken"
    if state.held:
        text += f"  {state.holder or 'by somebody who could not say who'}"
    return text


def _ended(command: Sequence[str], environment: dict[str, str], descriptors: Sequence[int]) -> int:
    """Runs the command to its end and gives its exit code, 128 and the signal's number if one ended it.

    Raises:
        UsageError: it cannot be started.
    """
    try:
        process = subprocess.Popen(command, env=environment, pass_fds=descriptors)
    except OSError as error:
        raise UsageError(f"this cannot be started: {error.strerror}", where=command[0]) from None
    with process, _handed_on(process):
        code = process.wait()
    return code if code >= 0 else 128 - code


@contextmanager
def _handed_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """While the block runs, whoever ends this process ends the command, and this one ends when that has.

    A Ctrl-C on the terminal reaches both by itself.
    """

    def hand_on(number: int, _: object) -> None:
        if number != signal.SIGINT or not _in_foreground():
            process.send_signal(number)

    # a handler, not SIG_IGN, which what is started would inherit
    before = {each: signal.signal(each, hand_on) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _in_foreground() -> bool:
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:  # no terminal
        return False
