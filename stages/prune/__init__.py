"""Prune a candidate: in each layer, the experts that a calibration mix says matter least go.

Everything that can be refused is refused first, before torch is imported and before anything is written. What a run
that was stopped has done lies in the step's folder: the same command goes on from there, and ends in the same bytes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from gates.errors import UsageError
from registry import fs, output
from registry.checkpoint import read_config
from registry.families import architecture_of
from registry.lineage import ancestry
from registry.manifests import Inputs, MixUse
from registry.progress import progress
from registry.recipes import Prune, experts_kept
from stages.common import calibration

if TYPE_CHECKING:
    from registry.store import Candidate
    from stages.common.checkpoint import Checkpoint
    from stages.common.stage import Job
    from stages.prune.criteria import Choice

CODE = "prune-1"
"""Changes whenever the same inputs would give other bytes."""

_WORTH_A_WORD = 1 << 30
"""Bytes of hidden states from which on people are told what they ask of the disk."""


def prune(job: Job) -> None:
    """Makes the candidate `job.makes` from `job.source`, or finds it made.

    Raises:
        UsageError: the source is quantised or pruned already or has no experts, the depth is impossible, or the mix
            cannot be taken; nothing is written.
        IntegrityError: the source's tensors are damaged or not complete.
        BusyError: another process is making the same candidate.
    """
    _refuse_source(job)
    keep = _experts_kept(job)
    mix, rows = calibration.take(job.settings.mix, job.project, store=job.store)
    inputs = _inputs(job.settings, job.source, mix)
    if job.made(inputs):
        return
    batches = _batches(job, rows)
    with job.store.step(inputs.identity()) as folder:
        for leftover in ("model", "attachments"):
            fs.remove_tree(folder / leftover)
        _make(job, keep, batches, folder)
        job.store.put(rows)
        candidate = job.store.commit(
            job.makes, inputs, folder / "model", attachments=folder / "attachments", replace=job.replace
        )
        job.store.discard(inputs.identity())
    before, after = job.source.manifest, candidate.manifest
    output.text(
        f"{job.makes}: {keep} of {before.shape.experts} experts stay in each layer, "
        f"{output.size(after.size)} (was {output.size(before.size)})"
    )


def _refuse_source(job: Job) -> None:
    stated = job.source.manifest.shape.quantization
    if stated is not None:
        raise UsageError(
            f"{job.source.name} is quantised ({stated}), and quantised weights are not pruned",
            where=job.where,
            remedy="start from the candidate that it was quantised from",
        )
    if not architecture_of(read_config(job.source.folder)).expert_layers:
        raise UsageError(f"{job.source.name} has no layer with experts, so there is nothing to prune", where=job.where)
    if job.settings.stacked:
        return
    for _, manifest in ancestry(job.store, job.source.digest):
        if manifest.inputs.op == "prune":
            raise UsageError(
                f"{job.source.name} is pruned already, and a second prune loses what the first one's mix had kept",
                where=job.where,
                remedy="start from the unpruned parent, with a broader mix or another depth; or say stacked: true",
            )


def _experts_kept(job: Job) -> int:
    architecture = architecture_of(read_config(job.source.folder))
    try:
        return experts_kept(
            architecture.experts,
            job.settings.compression,
            top_k=architecture.top_k,
            groups=architecture.groups,
            groups_used=architecture.text.get("topk_group"),
        )
    except UsageError as error:
        raise UsageError(error.what, where=f"{job.where}.compression", remedy=error.remedy) from None


def _inputs(settings: Prune, source: Candidate, mix: MixUse) -> Inputs:
    """What the candidate is made from.

    The seed belongs to it only where something is drawn by it, and what becomes of multi-token-prediction layers only
    where config.json states some.
    """
    chosen = {
        "compression": format(settings.compression.normalize(), "f"),
        "criterion": settings.criterion,
        "renormalize_router": settings.renormalize_router,
        "sequence_length": settings.sequence_length,
        "packing": settings.packing,
    }
    if architecture_of(read_config(source.folder)).mtp_layers:
        chosen["mtp"] = settings.mtp
    return Inputs(
        op="prune",
        parent=source.digest,
        settings=chosen,
        mix=mix,
        seed=settings.seed if settings.criterion == "random" else None,
        code=CODE,
    )


def _batches(job: Job, rows: bytes) -> list[calibration.Batch]:
    """The rows as the model reads them: none where the criterion looks at no data.

    A template that refuses a row is bad input too, so this comes before anything is written.
    """
    if job.settings.criterion == "random":
        return []
    from transformers import AutoTokenizer

    from stages.common.streaming import device_of

    device_of(job.device)  # refused here, if it is not there
    folder = job.source.resolved()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batches = calibration.batches(rows, tokenizer, job.settings.sequence_length, packing=job.settings.packing)
    known = architecture_of(read_config(folder)).text.get("vocab_size")
    largest = max(int(batch.input_ids.max()) for batch in batches)
    if isinstance(known, int) and largest >= known:
        raise UsageError(
            f"the tokenizer gives the token {largest}, but the model knows only {known}",
            where=str(folder),
            remedy="leave out of the mix what needs that token, or take the model in with its own tokenizer",
        )
    return batches


def _make(job: Job, keep: int, batches: list[calibration.Batch], folder: Path) -> None:
    from stages.common.checkpoint import Checkpoint
    from stages.prune.attachments import attachments, unasked
    from stages.prune.surgery import write_pruned

    source = Checkpoint(job.source.folder)
    choices = _choices(job, source, keep, batches, folder / "spool")
    with progress(f"write {job.makes}", total=source.size, unit="B") as bar:
        staying = {choice.layer: choice.kept for choice in choices}
        write_pruned(source, staying, folder / "model", drop_mtp=job.settings.mtp == "drop", advance=bar.advance)
    fs.make_folders(folder / "attachments")
    for name, data in attachments(choices, job.settings).items():
        fs.write_new(folder / "attachments" / name, data)
    said = unasked(choices)
    if said:
        output.hint(said)


def _choices(job: Job, source: Checkpoint, keep: int, batches: list[calibration.Batch], folder: Path) -> list[Choice]:
    """The choice for each layer with experts, those of multi-token-prediction layers last."""
    from stages.common import mtp
    from stages.prune.criteria import by_chance

    architecture, settings = source.architecture, job.settings
    if settings.criterion == "random":
        there = [*architecture.expert_layers, *(mtp.layers(source) if settings.mtp == "prune" else [])]
        return [by_chance(layer, architecture.experts, keep, settings.seed, architecture.groups) for layer in there]

    from stages.common.streaming import LayerStream, device_of
    from stages.prune import layers

    stream = LayerStream(source, device_of(job.device))
    asked = layers.cost(stream, settings, batches)
    if asked.size > _WORTH_A_WORD:
        output.hint(
            f"hidden states take {output.size(asked.size)} on disk, and {output.size(asked.traffic)} are read and "
            f"written in all ({stream.device.type}, {str(stream.dtype).removeprefix('torch.')})"
        )
    found = []
    total = architecture.layers + (len(stream.mtp_layers) if settings.mtp == "prune" else 0)
    with progress(f"prune {job.makes}", total=total, unit="layers") as bar:
        for choice in layers.choices(stream, settings, keep, batches, folder):
            found += [choice] if choice else []
            bar.advance()
    return found
