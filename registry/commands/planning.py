"""Will it fit? `registry plan`."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gates.errors import UsageError
from registry import output
from registry.commands import Json, Root, memory_of, opened
from registry.layout import ROOT

if TYPE_CHECKING:
    from registry.plan import Model

app = typer.Typer(rich_markup_mode=None)


@app.command()
def plan(
    model: Annotated[str, typer.Argument(help="A candidate's name, a model's folder (./name) or a config.json.")],
    card: Annotated[str, typer.Option(help="The card's memory: 31.84 is GiB; or 24GiB, 32607MiB.")] = "31.84",
    context: Annotated[int, typer.Option(min=1, help="Tokens in a sequence.")] = 32768,
    sequences: Annotated[int, typer.Option(min=1, help="Sequences at once, all of that length.")] = 1,
    utilisation: Annotated[str, typer.Option(help="The share of the card that the server takes.")] = "0.92",
    overhead: Annotated[str, typer.Option(help="What the server needs besides: 1 is GiB; or 500MiB.")] = "1",
    written: Annotated[str, typer.Option("--format", help="What it is served in: fp8-block or bf16.")] = "fp8-block",
    mtp: Annotated[bool, typer.Option("--mtp/--no-mtp", help="With the MTP head, if there is one, in use.")] = True,
    vision: Annotated[bool, typer.Option("--vision/--no-vision", help="With the vision tower, if any.")] = True,
    root: Root = ROOT,
    json: Json = False,
) -> None:
    """Say whether a model fits a card, pruned, quantised, trained.

    Bytes by part in BF16 and block FP8, the cache, the least compression that fits, and what fine-tuning takes.

    registry plan qwen3.6-35b-a3b --card 31.84 --context 32768 --sequences 4

    What a server needs besides weights and caches depends on it and on the card: --overhead states what is assumed, and
    --utilisation is vLLM's --gpu-memory-utilization (0.92 unless told).
    """
    from registry import plan as planning
    from registry.plan.view import record, render

    if written not in ("bf16", "fp8-block"):
        raise UsageError(f"the format {written!r} is not one that Sluice writes", remedy="bf16 or fp8-block")
    share = _share(utilisation)
    if share is None:
        raise UsageError(f"--utilisation {utilisation} is not a share of the card", remedy="choose 0.92, for example")
    memory, extra = memory_of(card, "--card"), memory_of(overhead, "--overhead")
    found = planning.plan(
        _model(model, root),
        planning.Card(memory=memory, utilisation=share, overhead=extra),
        planning.Load(context=context, sequences=sequences),
        planning.Terms(format="bf16" if written == "bf16" else "fp8-block", mtp=mtp, vision=vision),
    )
    if json:
        output.data({"model": model, **record(found)})
    else:
        for line in render(found, name=model):
            output.text(line)


def _model(words: str, root: Path) -> Model:
    """The model that was meant: whatever looks like a path is one, every other word a candidate.

    Raises:
        UsageError: there is none, or its family is not known.
        IntegrityError: it is damaged.
    """
    from registry import plan as planning
    from registry.checkpoint import CONFIG, headers, read_config
    from registry.families import architecture_of

    path = Path(words)
    if "/" not in words and not words.startswith(".") and not words.endswith(".json"):
        path = opened(root).candidate(words).resolved()
    elif path.suffix == ".json":
        return planning.of_config(architecture_of(read_config(path.parent, path.name), where=words))
    elif not path.is_dir():
        raise UsageError("there is no such folder", where=words, remedy="name a candidate, a folder or a config.json")
    architecture = architecture_of(read_config(path), where=str(path / CONFIG))
    tensors = headers(path)
    return planning.of_tensors(architecture, tensors) if tensors else planning.of_config(architecture)


def _share(text: str) -> Decimal | None:
    """A number above 0 and up to 1; None where the text is none."""
    try:
        share = Decimal(text)
    except InvalidOperation:
        return None
    return share if share.is_finite() and 0 < share <= 1 else None
