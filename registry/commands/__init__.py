"""Commands of the command line, by topic. `registry/cli.py` puts them together.

At the top of these modules only what every command needs is imported, and no record's class: `registry ls` needs none.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gates.errors import UsageError
from registry.layout import ROOT_VARIABLE

if TYPE_CHECKING:
    from registry.store import Store

Root = Annotated[Path, typer.Option("--root", envvar=ROOT_VARIABLE, help="The registry's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Wait = Annotated[
    float | None,
    typer.Option(
        min=0, envvar="SLUICE_LEASE_WAIT", help="For how many seconds to wait for the device; else as long as it takes."
    ),
]
Channel = Annotated[str, typer.Option(help="The channel: a name for the served candidate.")]
Insecure = Annotated[
    bool, typer.Option("--insecure", help="oci:// only: speak to the registry without TLS, as to localhost.")
]
CandidateName = Annotated[str, typer.Argument(help="A candidate's name, or a channel's.")]


def opened(root: Path) -> Store:
    """The registry in `root` (`Store.open`)."""
    from registry.store import Store

    return Store.open(root)


def memory_of(text: str, option: str) -> int:
    """Bytes (`parse_memory`).

    Raises:
        UsageError: they cannot be read; named as `option`.
    """
    from registry.sizes import parse_memory

    try:
        return parse_memory(text)
    except ValueError as error:
        raise UsageError(f"{option} {error}") from None


def demand_one(name: str | None, chosen: bool, command: str, option: str = "--all") -> None:
    """
    Args:
        chosen: whether `option`, which chooses without a name, was given.
        command: such as "verify", for the remedy.

    Raises:
        UsageError: there is neither a name nor the option, or there are both.
    """
    if (name is None) is not chosen:
        remedy = f"registry {command} NAME, or registry {command} {option}"
        raise UsageError(f"say which candidate, or {option}", remedy=remedy)
