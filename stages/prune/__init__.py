"""Prune a candidate: in each layer, the experts that a calibration mix says matter least go.

Everything that can be refused is refused first, before torch is imported and before anything is written. Layers follow
from the ones before, so a run that was stopped starts from the first again, and ends in the same bytes.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from gates import canonical
from gates.errors import UsageError
from registry import fs, output
from registry.checkpoint import read_config
from registry.families import family_of
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
    mix, rows = calibration.take(job.settings.mix, job.project)
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
    config = read_config(job.source.folder)
    if not family_of(config).expert_layers(config):
        raise UsageError(f"{job.source.name} has no layer with experts, so there is nothing to prune", where=job.where)
    for _, manifest in ancestry(job.store, job.source.digest):
        if manifest.inputs.op == "prune":
            raise UsageError(
                f"{job.source.name} is pruned already, and a second prune loses what the first one's mix had kept",
                where=job.where,
                remedy="start from the unpruned parent, with a broader mix or another depth",
            )


def _experts_kept(job: Job) -> int:
    shape = job.source.manifest.shape
    try:
        return experts_kept(shape.experts, job.settings.compression, top_k=shape.top_k)
    except UsageError as error:
        raise UsageError(error.what, where=f"{job.where}.compression", remedy=error.remedy) from None


def _inputs(settings: Prune, source: Candidate, mix: MixUse) -> Inputs:
    """What the candidate is made from. The seed belongs to it only where something is drawn by it."""
    return Inputs(
        op="prune",
        parent=source.digest,
        settings={
            "compression": format(settings.compression.normalize(), "f"),
            "criterion": settings.criterion,
            "renormalize_router": settings.renormalize_router,
            "sequence_length": settings.sequence_length,
        },
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

    folder = job.source.resolved()
    batches = calibration.batches(rows, AutoTokenizer.from_pretrained(folder), job.settings.sequence_length)
    known, largest = read_config(folder).get("vocab_size"), max(int(batch.input_ids.max()) for batch in batches)
    if isinstance(known, int) and largest >= known:
        raise UsageError(
            f"the tokenizer gives the token {largest}, but the model knows only {known}",
            where=str(folder),
            remedy="leave out of the mix what needs that token, or take the model in with its own tokenizer",
        )
    return batches


def _make(job: Job, keep: int, batches: list[calibration.Batch], folder: Path) -> None:
    import torch

    from stages.common.checkpoint import Checkpoint
    from stages.prune.surgery import write_pruned

    # More threads than free cores make a layer several times slower; and with one, sums do not depend on their number.
    torch.set_num_threads(1)
    source = Checkpoint(job.source.folder)
    choices = _choices(job, source, keep, batches)
    with progress(f"write {job.makes}", total=source.size, unit="B") as bar:
        staying = {choice.layer: choice.kept for choice in choices}
        write_pruned(source, staying, folder / "model", advance=bar.advance)
    scores = {"criterion": job.settings.criterion, "layers": [asdict(choice) for choice in choices]}
    fs.make_folders(folder / "attachments")
    fs.write_new(folder / "attachments" / "scores.json", canonical.dumps(scores))


def _choices(job: Job, source: Checkpoint, keep: int, batches: list[calibration.Batch]) -> list[Choice]:
    from stages.prune import criteria

    found = []
    with progress(f"prune {job.makes}", total=source.family.layers(source.config), unit="layers") as bar:
        for choice in criteria.choices(source, job.settings, keep, batches):
            found += [choice] if choice else []
            bar.advance()
    return found
