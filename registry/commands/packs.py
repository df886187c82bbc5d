"""Packs, and the public sets that some of them ask: `registry pack`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from registry import output
from registry.commands import Json, Root, opened
from registry.layout import ROOT

app = typer.Typer(name="pack", help="Packs: what candidates are asked.", rich_markup_mode=None, no_args_is_help=True)

Project = Annotated[Path, typer.Option(help="The folder with packs/.")]


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Packs of public sets, such as gsm8k.")],
    source: Annotated[
        Path | None,
        typer.Option("--from", metavar="PATH", help="A file, or a folder as published, instead of the Hub."),
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Keep these rows, though others are kept already. It is logged.")
    ] = False,
    project: Project = Path(),
    root: Root = ROOT,
) -> None:
    """Keep the rows of a pack's public set in the registry.

    Evaluating it then needs no network.

    registry pack fetch gsm8k mmlu

    registry pack fetch humaneval-plus --from HumanEvalPlus.jsonl.gz

    The revision is resolved once, and its commit is recorded. What is kept stays, whatever the Hub has later, until
    --replace. Sets in Parquet need pyarrow: .venv-prune/bin/registry has it.
    """
    from gates.errors import UsageError
    from registry import fetching

    if source is not None and len(names) > 1:
        raise UsageError("one source for several packs", where="--from", remedy="fetch them one by one")
    store = opened(root)
    for name in names:
        kept, new = fetching.fetch(store, project, name, source=source, replace=replace)
        remark = "" if new else "  (kept already)"
        output.text(f"{name}  {kept.items} items  {kept.source}  rows {kept.rows[:12]}{remark}")


@app.command()
def ls(project: Project = Path(), root: Root = ROOT, json: Json = False) -> None:
    """List the project's packs: graders, and public sets kept."""
    from registry import packs

    store = opened(root)
    files = [packs.read_file(project, name) for name in packs.names(project)]
    kept = {file.name: packs.kept(store, file.dataset) for file in files if file.dataset}
    if json:
        output.data(
            [
                {
                    "name": file.name,
                    "description": file.description,
                    "grader": file.grader,
                    "items": file.items,
                    "dataset": file.dataset.model_dump(mode="json") if file.dataset else None,
                    "kept": record.model_dump(mode="json") if (record := kept.get(file.name)) else None,
                }
                for file in files
            ]
        )
        return
    wide = [max(map(len, each), default=0) for each in ([f.name for f in files], [f.grader for f in files])]
    for file in files:
        record = kept.get(file.name)
        place = file.items or (f"{record.items} items, {record.source}" if record else "not fetched")
        output.text(f"{file.name:{wide[0]}}  {file.grader:{wide[1]}}  {place}")
    if missing := [name for name, record in kept.items() if record is None]:
        output.hint(f"fetch what is missing: registry pack fetch {' '.join(missing)}")
