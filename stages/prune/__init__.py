"""Prune a candidate: in each layer, the experts that a calibration mix says matter least go.

Everything that can be refused is refused first, before torch is imported and before anything is written. What a run
that was stopped has done lies in the step's folder: the same command goes on from there, and ends in the same bytes.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gates.errors import UsageError
from registry import frozen, fs, output
from registry.checkpoint import read_config
from registry.families import architecture_of
from registry.lineage import ancestry
from registry.manifests import Inputs, MixUse
from registry.progress import progress
from registry.recipes import Prune, experts_kept
from stages.common import calibration, preflight, preflight_view
from stages.common.preflight import Report

if TYPE_CHECKING:
    from registry.store import Candidate
    from stages.common.checkpoint import Checkpoint
    from stages.common.job import Job
    from stages.prune.criteria import Choice

CODE = "prune-1"
"""Changes whenever the same inputs would give other bytes."""


def prune(job: Job) -> None:
    """Makes the candidate `job.makes` from `job.source`, or finds it made.

    Raises:
        UsageError: the source is quantised or pruned already or has no experts, the depth is impossible, the mix cannot
            be taken or read, or the disk is too small; nothing is written.
        IntegrityError: the source's tensors are damaged or not complete.
        BusyError: another process is making the same candidate.
    """
    begun = time.monotonic()
    taken = _take(job)
    if job.made(taken.inputs):
        return
    report = _report(job, taken, begun)
    preflight_view.tell(report)
    preflight.refuse(report)
    with job.store.step(taken.inputs.identity()) as folder, _leased(job):
        for leftover in ("model", "attachments"):
            fs.remove_tree(folder / leftover)
        _make(job, taken.keep, report, folder)
        job.store.put(taken.rows)
        candidate = job.store.commit(
            job.makes, taken.inputs, folder / "model", attachments=folder / "attachments", replace=job.replace
        )
        job.store.discard(taken.inputs.identity())
    before, after = job.source.manifest, candidate.manifest
    output.text(
        f"{job.makes}: {taken.keep} of {before.shape.experts} experts stay in each layer, "
        f"{output.size(after.size)} (was {output.size(before.size)})"
    )


def check(job: Job) -> Report:
    """What `prune` looks at before it begins, and nothing more: nothing is written.

    Raises:
        UsageError, IntegrityError: as `prune`, but for a disk that is too small: `stages.common.preflight.refuse`.
    """
    begun = time.monotonic()
    return _report(job, _take(job), begun)


def freeze(job: Job) -> None:
    """Takes the mix and keeps its rows in the registry: the one part of the stage that may need a network.

    Raises:
        UsageError: as `prune`, of the mix.
    """
    mix, rows = calibration.take(job.settings.mix, job.project, store=job.store)
    if mix.definition is None:
        output.text(f"{mix.name}: all of its datasets are files here, so nothing need be fetched or frozen")
        return
    kept = frozen.freeze(job.store, mix, rows)
    output.text(f"{kept.name}: {sum(each.count for each in kept.datasets)} rows are kept as {kept.rows[:12]}")


def _leased(job: Job) -> AbstractContextManager[object]:
    """The device, for a criterion that computes."""
    from stages.common.machine import device_of

    return nullcontext() if job.settings.criterion == "random" else job.leased(device_of(job.device).type)


@dataclass(frozen=True, slots=True)
class _Taken:
    """What is known before anything heavy is imported."""

    keep: int
    mix: MixUse
    rows: bytes
    inputs: Inputs


def _take(job: Job) -> _Taken:
    _refuse_source(job)
    keep = _experts_kept(job)
    mix, rows = calibration.take(job.settings.mix, job.project, store=job.store)
    return _Taken(keep, mix, rows, _inputs(job.settings, job.source, mix))


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


def _report(job: Job, taken: _Taken, begun: float) -> Report:
    """What the run will read and ask for. A criterion that looks at no data reads nothing."""
    from stages.common.checkpoint import Checkpoint
    from stages.common.machine import device_of
    from stages.prune.demand import demand_of

    settings, root = job.settings, job.store.layout.root
    device = device_of(job.device)  # refused here, if it is not there
    source = Checkpoint(job.source.resolved())
    reading = preflight.no_reading()
    if settings.criterion != "random":
        reading = preflight.read(
            source.folder,
            taken.mix,
            taken.rows,
            sequence_length=settings.sequence_length,
            packing=settings.packing,
        )
    return Report(
        stage="prune",
        makes=job.makes,
        source=job.source.name,
        family=source.architecture.family.model_type,
        change=f"{taken.keep} of {source.architecture.experts} experts stay in each layer",
        sequence_length=settings.sequence_length,
        packing=settings.packing,
        reading=reading,
        demand=demand_of(source, settings, taken.keep, reading, device),
        machine=preflight.machine(root, job.store.layout.step(taken.inputs.identity()), device.type),
        where=str(root),
        seconds=time.monotonic() - begun,
    )


def _make(job: Job, keep: int, report: Report, folder: Path) -> None:
    from stages.common.checkpoint import Checkpoint
    from stages.prune.attachments import attachments, unasked
    from stages.prune.surgery import write_pruned

    source = Checkpoint(job.source.folder)
    with preflight.room(folder, report):
        choices = _choices(job, source, keep, report.reading.batches, folder / "spool")
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

    from stages.common.machine import device_of
    from stages.common.streaming import LayerStream
    from stages.prune import layers

    stream = LayerStream(source, device_of(job.device))
    found = []
    total = architecture.layers + (len(stream.mtp_layers) if settings.mtp == "prune" else 0)
    with progress(f"prune {job.makes}", total=total, unit="layers") as bar:
        for choice in layers.choices(stream, settings, keep, batches, folder):
            found += [choice] if choice else []
            bar.advance()
    return found
