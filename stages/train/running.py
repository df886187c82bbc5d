"""A run from the frozen model to the adapters that are merged."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from gates.errors import IntegrityError
from registry import output
from registry.progress import Bar, progress
from registry.recipes import Train
from stages.common.memory import give_back
from stages.train import account, adapters, keeping, loading, merging, shipped, trained, training
from stages.train.answers import Measured
from stages.train.curves import Outcome
from stages.train.detector import Point, finite
from stages.train.merging import Delta
from stages.train.reading import Work

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """How a run went, and what is merged of it: the adapters of the best point, none where that is the start."""

    outcome: Outcome
    deltas: dict[str, Delta]


def run(work: Work, settings: Train, folder: Path, name: str) -> Trained:
    """Trains adapters on the model of `work`, or goes on with what `folder` holds; the model is gone when it returns.

    Args:
        name: of what is made, for people.

    Raises:
        IntegrityError: the checkpoint is damaged or has no finite loss, an expert is not in the form that the settings
            say, or what was kept is damaged.
    """
    kept = keeping.newest(folder)
    over = kept and training.finished(kept, settings, work.steps)
    if kept and over:
        _refuse_broken(over, work)
        return Trained(outcome=over, deltas=dict(kept.best))
    if work.device.type == "cpu":
        torch.set_num_threads(1)  # more cost more than they give on small experts, and change the sums
    model = _loaded(work, settings, name)
    with progress(f"train {name}", total=work.steps, unit="steps") as bar:
        if kept:
            bar.advance(kept.step, "goes on")
        outcome, deltas = training.fit(
            model,
            work.tokenizer,
            work.sequences,
            work.order,
            work.steps,
            settings,
            folder,
            _watch(work, name, bar),
            packing=work.packing,
            device=work.device,
        )
    del model
    give_back()
    _refuse_broken(outcome, work)
    return Trained(outcome=outcome, deltas=deltas)


def _refuse_broken(outcome: Outcome, work: Work) -> None:
    """
    Raises:
        IntegrityError: the model has no finite loss before anything is trained.
    """
    if outcome.points[0].shipped_loss is None:
        raise IntegrityError(
            "the model has no finite loss on the reference answers, and nothing of it is trained yet",
            where=str(work.checkpoint.folder),
            remedy="compare the files with their publisher's digests; this model cannot be trained",
        )


def _loaded(work: Work, settings: Train, name: str) -> PeftModel:
    layers = work.checkpoint.architecture.layers
    with progress(f"load for {name}", total=layers, unit="layers") as bar:
        model = adapters.attach(
            loading.load(work.checkpoint, settings, device=work.device, advance=bar.advance), settings
        )
    found = account.of(model, settings)
    _line({"what": f"account {name}", **found.record()}, _sentence(found))
    return model


def _sentence(found: account.Account) -> str:
    return (
        f"{found.in_4bit} of {found.matrices} matrices of experts are in 4 bits: "
        f"{output.size(found.experts + found.scales)} with their scales; all else {output.size(found.other)}, "
        f"adapters {output.size(found.adapters)}"
    )


def _watch(work: Work, name: str, bar: Bar) -> training.Watch:
    def measure(model: PeftModel, step: int) -> tuple[Point, dict[str, Delta]]:
        deltas = merging.deltas(model, work.checkpoint) if step else {}
        ours = _measured(trained.loss(model, work.reference, device=work.device))
        try:
            ships = _measured(shipped.loss(work.checkpoint, deltas, work.reference, device=work.device))
        except merging.OverflowsError:  # for the detector to judge, and the best point before it ships
            ships = None, 0.0
        point = Point(
            step=step, trained_loss=ours[0], shipped_loss=ships[0], trained_match=ours[1], shipped_match=ships[1]
        )
        return point, deltas

    def stepped(_: int, loss: float | None) -> None:
        bar.advance(1, "loss no finite number" if loss is None else f"loss {loss:.3f}")

    def measured(point: Point) -> None:
        _line({"what": f"measure {name}", **point.to_json()}, told(point))

    return training.Watch(measure=measure, stepped=stepped, measured=measured)


def _measured(found: Measured) -> tuple[float | None, float]:
    """The loss, None if it is no finite number, and the part of the answers that are exact."""
    return finite(found.loss), found.match


def told(point: Point) -> str:
    """A point in a sentence."""
    said = [
        "no finite loss" if loss is None else f"{loss:.4f} ({100 * match:.0f} % exact)"
        for loss, match in (
            (point.trained_loss, point.trained_match),
            (point.shipped_loss, point.shipped_match),
        )
    ]
    gap = "" if point.gap is None else f", gap {point.gap:+.4f}"
    return f"step {point.step}: as trained {said[0]}, as it would ship {said[1]}{gap}"


def _line(record: dict[str, Any], sentence: str) -> None:
    """What is worth knowing while it happens: a sentence on a terminal, a line of JSON elsewhere, as progress is."""
    output.hint(sentence if sys.stderr.isatty() else json.dumps(record))
