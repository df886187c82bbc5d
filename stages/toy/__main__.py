"""`python -m stages.toy`: train the toy model, or write the data files that belong to it."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from gates.errors import SluiceError, UsageError
from registry.progress import progress
from stages.toy import writing

INTERRUPTED = 130


class Device(StrEnum):
    """Where to train."""

    cpu = "cpu"
    cuda = "cuda"


def command(
    out: Annotated[
        Path | None, typer.Option(help="The model's folder, made by this command; it must not exist or be empty.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides the first weights and every sample drawn.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; the default made the fixture.")] = None,
    device: Annotated[Device, typer.Option(help="Where to train; one CPU core is enough.")] = Device.cpu,
    data_only: Annotated[
        bool, typer.Option("--data-only", help="Train nothing: write the *.jsonl below mixes/toy and packs/toy.")
    ] = False,
    project: Annotated[Path, typer.Option(help="With --data-only: the folder that holds mixes/ and packs/.")] = Path(),
) -> None:
    """Train a tiny Qwen3-MoE model that knows four skills, and write it as an ordinary Hugging Face folder.

    The skills are tool calls, sums, facts and letters. What is scored are combinations that were never trained on.
    The same seed gives the same weights on the same kind of machine with the same versions.

    python -m stages.toy --out /tmp/toy

    python -m stages.toy --data-only
    """
    try:
        if data_only:
            for path in writing.write_data_files(project):
                typer.echo(path)
        else:
            _train(out, seed, steps, device)
    except SluiceError as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(error.exit_code) from None
    except KeyboardInterrupt:
        typer.echo("interrupted: nothing was written", err=True)
        raise typer.Exit(INTERRUPTED) from None


def _train(out: Path | None, seed: int, steps: int | None, device: Device) -> None:
    if out is None:
        raise UsageError("no folder to write to", remedy="say --out DIR, or --data-only")
    writing.refuse_occupied(out)

    import torch  # here, so that --help and --data-only need no torch

    from stages.toy.tokenizer import build_tokenizer
    from stages.toy.training import Progress, Settings, train

    if device is Device.cuda and not torch.cuda.is_available():
        raise UsageError("this machine offers no CUDA device", remedy="say --device cpu")
    torch.set_num_threads(1)  # the matrices are tiny: more threads cost more than they give, and change the sums
    settings = Settings(seed=seed, device=device.value, **({} if steps is None else {"steps": steps}))
    tokenizer = build_tokenizer()
    with progress("train the toy", total=settings.steps, unit="steps") as bar:

        def report(step: Progress) -> None:
            bar.advance(note=f"loss {step.loss:.3f}")

        model = train(settings, tokenizer, report)
    writing.write_checkpoint(model, tokenizer, out)
    typer.echo(out)


def main() -> None:
    """Run the command line."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(command)
    sys.exit(app())


if __name__ == "__main__":
    main()
