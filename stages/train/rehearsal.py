"""The whole way in minutes: a checkpoint of the first two layers, trained, measured, merged, read again, and removed.

What fails an hour into a run (memory, a layout that cannot be merged, a version of a library) fails here first.
The losses mean nothing: two layers are no model.
"""

from __future__ import annotations

import time
from dataclasses import replace
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from gates.errors import IntegrityError, UsageError
from registry import fs, output
from stages.common import preflight, preflight_view
from stages.common.job import Job
from stages.train import read, take, write

if TYPE_CHECKING:
    from pathlib import Path

    from registry.recipes import Train
    from stages.common.checkpoint import Checkpoint
    from stages.train.merging import Delta
    from stages.train.reading import Work

LAYERS = 2
STEPS = 4
ANSWERS = 8
"""Of the reference, at most."""
_SAME = 1e-4
"""In nats a token: what the order of sums may make of one model on a device."""


def rehearse(job: Job) -> None:
    """Trains, measures and merges the first two layers of `job.source`; nothing of it stays.

    Raises:
        UsageError, IntegrityError, BusyError: as `stages.train.train`; and if what is merged answers in another way
            than was measured before it was.
    """
    import torch

    from stages.common.checkpoint import Checkpoint
    from stages.train import reading, running, shipped
    from stages.train.running import Trained

    begun = time.monotonic()
    taken = take(job)
    whole = read(job, taken)
    report = reading.report(job, whole, job.store.layout.step(taken.inputs.identity()), begun)
    preflight_view.tell(report)
    reading.refuse(job, whole, report)
    preflight.refuse(report)
    inputs = taken.inputs.model_copy(update={"settings": {**taken.inputs.settings, "rehearsal": LAYERS}})
    settings = _few_steps(job.settings)
    architecture = whole.checkpoint.architecture
    layers = min(max(LAYERS, architecture.expert_layers[0] + 1), architecture.layers)  # one of them has experts
    with job.store.step(inputs.identity()) as folder, job.leased(whole.device.type):
        try:
            for leftover in ("layers", "run", "model"):
                fs.remove_tree(folder / leftover)
            cut(whole.checkpoint, folder / "layers", layers)
            work = _of_layers(whole, settings, Checkpoint(folder / "layers"))
            name = f"the first {layers} layers of {job.makes}"
            outcome = running.run(work, settings, folder / "run", name).outcome
            measured = outcome.points[-1].shipped_loss
            if measured is None:
                raise UsageError(
                    f"{outcome.stopped}: {len(outcome.losses)} of {STEPS} steps were trained, with {layers} layers",
                    where=f"{job.where}.learning_rate",
                    remedy="set a lower one",
                )
            left = Trained(outcome=outcome, deltas=_as_left(work, settings, folder / "run"))
            write(work, left, folder / "model", what=f"write {name}")
            again = shipped.loss(Checkpoint(folder / "model"), {}, work.reference, device=work.device).loss
        finally:
            job.store.discard(inputs.identity())
    if abs(again - measured) > _SAME:
        raise IntegrityError(
            f"merged, the first {layers} layers have a loss of {again}, and were measured at {measured} before"
        )
    taken_memory = ""
    if work.device.type == "cuda":
        taken_memory = f", {output.size(torch.cuda.max_memory_allocated())} of the device at the peak"
    output.text(
        f"{job.makes} can be made: {len(outcome.losses)} steps with {layers} of "
        f"{architecture.layers} layers were trained, measured, merged and read again in "
        f"{time.monotonic() - begun:.0f} s{taken_memory}"
    )


def cut(source: Checkpoint, target: Path, layers: int) -> None:
    """Writes the first `layers` layers of `source`, with what lies before and behind them, to the folder `target`.

    Neither multi-token prediction nor a vision tower is trained, so neither is there.
    """
    from stages.common.rewriting import dropped, kept, rewrite

    changes = []
    for name in source.tensors:
        part = source.architecture.part(name)
        goes = part is not None and (part.mtp or part.vision or (part.layer is not None and part.layer >= layers))
        changes.append(dropped(name) if goes else kept(source, name))
    rewrite(source, target, changes, config=_config(source, layers))


def _config(source: Checkpoint, layers: int) -> dict[tuple[str, ...] | str, Any]:
    """What config.json has to say of a model of so many layers."""
    architecture = source.architecture
    section = (architecture.family.text,) if architecture.text is not architecture.config else ()
    changes: dict[tuple[str, ...] | str, Any] = {(*section, "num_hidden_layers"): layers}
    if "layer_types" in architecture.text:
        changes[*section, "layer_types"] = architecture.text["layer_types"][:layers]
    return changes | (dict(architecture.mtp_changes(0)) if architecture.mtp_layers else {})


def _as_left(work: Work, settings: Train, folder: Path) -> dict[str, Delta]:
    """The adapters after the last step, from what the run kept in `folder`. Not the best ones: where two layers do best
    untrained there would be nothing to merge."""
    from stages.train import adapters, keeping, loading, merging

    kept = keeping.newest(folder)
    assert kept is not None
    model = adapters.attach(loading.load(work.checkpoint, settings, device=work.device), settings)
    adapters.load_state(model, kept.adapters)
    return merging.deltas(model, work.checkpoint)


def _few_steps(settings: Train) -> Train:
    few = {"max_steps": STEPS, "evaluate_every": STEPS // 2, "gradient_accumulation": 1}
    # It goes the whole way, whatever the losses do: those of two layers say nothing.
    return settings.model_copy(update={**few, "limit_gap": Decimal(10**6), "tolerance": Decimal(10**6)})


def _of_layers(whole: Work, settings: Train, checkpoint: Checkpoint) -> Work:
    """The longest sequences, which take the most memory, and a few of the answers, the longest too."""
    from stages.train.answers import Answers

    lengths = [len(ids) for ids in whole.sequences["input_ids"]]
    longest = sorted(range(len(lengths)), key=lambda each: -lengths[each])
    order = [longest[number % len(longest)] for number in range(STEPS * settings.batch_size)]
    last = whole.reference[-1]
    few = Answers(*(tensor[-ANSWERS:] for tensor in (last.input_ids, last.attention_mask, last.labels)))
    return replace(whole, checkpoint=checkpoint, order=order, steps=STEPS, reference=[few])
