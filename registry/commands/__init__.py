"""Commands of the command line, by topic. `registry/cli.py` puts them together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Root = Annotated[Path, typer.Option("--root", envvar="SLUICE_ROOT", help="The registry's folder.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Channel = Annotated[str, typer.Option(help="The channel: a name for the served candidate.")]
CandidateName = Annotated[str, typer.Argument(help="A candidate's name, or a channel's.")]
ROOT = Path("models")
