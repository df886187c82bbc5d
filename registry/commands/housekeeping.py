"""Keeping a registry in order: df, gc, rm, doctor."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from gates.errors import UsageError
from registry import output
from registry.commands import Json, Root, opened
from registry.layout import ROOT

if TYPE_CHECKING:
    from registry.garbage import Garbage

app = typer.Typer(rich_markup_mode=None)

KeepGenerations = Annotated[
    int | None,
    typer.Option(min=1, help="How many of each channel's generations one can roll back to; without it, all."),
]


@app.command()
def df(root: Root = ROOT, json: Json = False) -> None:
    """Show what lies on the disk, and what nothing needs any more.

    For each candidate: what it holds alone, and what it shares with others.
    """
    from registry import usage

    found = usage.usage(opened(root))
    if json:
        output.data(asdict(found))
    else:
        output.text(usage.render(found))
        if found.not_needed:
            output.hint("registry gc --dry-run lists what is not needed")


@app.command()
def gc(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only list what would go.")] = False,
    grace: Annotated[
        str, typer.Option(help="How long what nothing needs stays all the same: days, or 36h, or 10m; 0 for none.")
    ] = "14",
    keep_generations: KeepGenerations = None,
    root: Root = ROOT,
    json: Json = False,
) -> None:
    """Remove what nothing needs any more.

    That is what no candidate, evidence, verdict, channel, kept generation, lease or work in progress leads to.

    What was written in the last ten minutes stays whatever --grace says: somebody may be about to name it.
    """
    from registry import gc as collection

    store, spared_for = opened(root), seconds(grace)
    work = collection.preview if dry_run else collection.collect
    found = work(store, grace=spared_for, keep_generations=keep_generations)
    if json:
        output.data(asdict(found) | {"bytes": found.size, "removed": not dry_run})
        return
    if dry_run:
        _list(found)
    parts = f"{len(found.manifests)} candidates, {len(found.blobs)} files, {len(found.unfinished)} unfinished"
    output.text(f"{'would remove' if dry_run else 'removed'} {output.size(found.size)}: {parts}")
    if found.spared:
        output.hint(f"{output.size(found.spared)} more are not needed, but for less than --grace or ten minutes")


@app.command()
def rm(
    name: Annotated[str, typer.Argument(help="A candidate's name.")],
    keep_generations: KeepGenerations = None,
    root: Root = ROOT,
) -> None:
    """Take the name off a candidate that nothing depends on.

    Its bytes stay until gc, after the grace, removes them.
    """
    from registry import removal

    removed = removal.remove(opened(root), name, keep_generations=keep_generations)
    output.text(f"{name} is removed" + (f" ({removed.manifest[:12]})" if removed.manifest else ""))
    output.hint("registry gc removes its bytes when the grace is over")


@app.command()
def doctor(root: Root = ROOT, json: Json = False) -> int:
    """Find what is wrong with a registry or its disk.

    Each finding with the command that mends it.

    Exit code: 5 if a model or a record is damaged or could be lost, 2 if the registry cannot do its work here, else 0.
    """
    from registry import doctor as examination

    found = examination.examine(root)
    if json:
        output.data([asdict(finding) for finding in found])
    else:
        output.text(examination.render(found))
    return examination.exit_code(found)


def _list(found: Garbage) -> None:
    parts = {"unfinished": found.unfinished, "candidate": found.manifests, "file": found.blobs}
    for kind, sizes in parts.items():
        for what, size in sizes.items():
            output.text(f"  {kind:<10}  {what}  {output.size(size)}")


def seconds(text: str) -> float:
    """A time of grace in seconds: '14' or '14d', '36h', '10m'.

    Raises:
        UsageError: not a number of days, hours or minutes.
    """
    units = {"d": 86_400.0, "h": 3_600.0, "m": 60.0}
    number, unit = (text[:-1], text[-1]) if text[-1:] in units else (text, "d")
    try:
        found = float(number) * units[unit]
    except ValueError:
        found = -1.0
    if not 0 <= found < 1e10:
        raise UsageError(f"--grace {text!r} is no time", remedy="say 14 (days), 36h, 10m or 0")
    return found
