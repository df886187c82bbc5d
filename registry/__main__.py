"""The program `registry`. To list the candidates is what people do most, so that waits for nothing it does not need.

Typer and pydantic together take longer to import than a list of five hundred candidates takes to read and print. So
`ls` with plain options is recognised here; every other command line, `ls --help` and mistakes among them, is Typer's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from registry import output
from registry.layout import ROOT, ROOT_VARIABLE


def main() -> None:
    """Runs the command line and exits with its code."""
    listing = plain_ls(sys.argv[1:])
    if listing is None:
        from registry.cli import app

        app()
    else:
        from registry import overview

        root, json = listing
        sys.exit(output.end_with(lambda: overview.show(root, json=json)))


def plain_ls(words: Sequence[str]) -> tuple[Path, bool] | None:
    """The root and whether JSON is wanted, if `words` are `ls` with nothing but --json and --root FOLDER; else None."""
    if not words or words[0] != "ls":
        return None
    root, json = os.environ.get(ROOT_VARIABLE) or str(ROOT), False
    rest = iter(words[1:])
    for word in rest:
        if word == "--json":
            json = True
        elif word == "--root" and (given := next(rest, "-"))[:1] not in ("", "-"):
            root = given
        else:
            return None
    return Path(root), json


if __name__ == "__main__":
    main()
