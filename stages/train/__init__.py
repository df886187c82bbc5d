"""Train a candidate: adapters over frozen 4-bit experts, watched for what only the 4-bit model gains, and merged.

Everything that can be refused is refused before the model is loaded. What a run that was stopped has done lies in the
step's folder: the same command goes on from there, with the same losses.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gates.errors import UsageError
from registry import frozen, fs, output
from registry.lineage import ancestry
from registry.manifests import Inputs, MixUse
from registry.progress import progress
from registry.recipes import Train
from stages.common import calibration, preflight, preflight_view

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from registry.store import Candidate
    from stages.common.job import Job
    from stages.common.preflight import Report
    from stages.train.reading import Work
    from stages.train.running import Trained

CODE = "train-1"
"""Changes whenever the same inputs would give other bytes."""

REFERENCE = "reference.jsonl"
"""What the reference answers are called, among the attachments of the candidate."""


def train(job: Job) -> None:
    """Makes the candidate `job.makes` from `job.source`, or finds it made.

    Raises:
        UsageError: the source is quantised or of a family that is not trained, the mix or the reference cannot be taken
            or read, or the disk or the device is too small; nothing is written.
        IntegrityError: the source's tensors are damaged or not complete, or what an interrupted run kept is.
        BusyError: another process is making the same candidate.
    """
    begun = time.monotonic()
    taken = take(job)
    if job.made(taken.inputs):
        return
    from stages.train import reading, running

    work = read(job, taken)
    report = reading.report(job, work, job.store.layout.step(taken.inputs.identity()), begun)
    preflight_view.tell(report)
    reading.refuse(job, work, report)
    preflight.refuse(report)
    with job.store.step(taken.inputs.identity()) as folder, job.leased(work.device.type):
        for leftover in ("model", "attachments"):
            fs.remove_tree(folder / leftover)
        with preflight.room(folder, report):
            trained = running.run(work, job.settings, folder / "run", job.makes)
        write(work, trained, folder / "model", what=f"write {job.makes}")
        _attach(job, taken, trained, folder / "attachments")
        job.store.put(taken.rows)
        job.store.commit(
            job.makes, taken.inputs, folder / "model", attachments=folder / "attachments", replace=job.replace
        )
        job.store.discard(taken.inputs.identity())
    _tell(job, trained)


def check(job: Job) -> Report:
    """What `train` looks at before it begins, and nothing more: nothing is written.

    Raises:
        UsageError, IntegrityError: as `train`, but for a disk that is too small: `stages.common.preflight.refuse`.
    """
    begun = time.monotonic()
    taken = take(job)
    from stages.train import reading

    work = read(job, taken)
    report = reading.report(job, work, job.store.layout.step(taken.inputs.identity()), begun)
    reading.refuse(job, work, report)
    return report


def freeze(job: Job) -> None:
    """Takes mix and reference and keeps their rows in the registry: the one part that may need a network.

    Raises:
        UsageError: as `train`, of the mixes.
    """
    for path in (job.settings.mix, job.settings.reference):
        mix, rows = calibration.take(path, job.project, store=job.store)
        if mix.definition is None:
            output.text(f"{mix.name}: all of its datasets are files here, so nothing need be fetched or frozen")
            continue
        kept = frozen.freeze(job.store, mix, rows)
        output.text(f"{kept.name}: {sum(each.count for each in kept.datasets)} rows are kept as {kept.rows[:12]}")


@dataclass(frozen=True, slots=True)
class Taken:
    """What is known before anything heavy is imported."""

    mix: MixUse
    rows: bytes
    reference: MixUse
    reference_rows: bytes
    inputs: Inputs


def take(job: Job) -> Taken:
    stated = job.source.manifest.shape.quantization
    if stated is not None:
        raise UsageError(
            f"{job.source.name} is quantised ({stated}), and quantised weights are not trained",
            where=job.where,
            remedy="start from the candidate that it was quantised from: train first, then quantise",
        )
    mix, rows = calibration.take(job.settings.mix, job.project, store=job.store)
    reference, reference_rows = calibration.take(job.settings.reference, job.project, store=job.store)
    trained_on = {_said(row) for each in (rows, *_trained_on_before(job)) for row in each.splitlines()}
    same = sum(_said(row) in trained_on for row in reference_rows.splitlines())
    if same:
        raise UsageError(
            f"{same} of the reference's {len(reference_rows.splitlines())} rows are in the mix too, or in one that "
            f"{job.source.name} was trained on: what a model is trained on does not show how it does elsewhere",
            where=f"{job.where}.reference",
            remedy="hold the reference's rows out of the mix: other files, or skip: [NUMBER, …]",
        )
    return Taken(mix, rows, reference, reference_rows, _inputs(job.settings, job.source, mix, reference))


def _trained_on_before(job: Job) -> Iterator[bytes]:
    """The rows of the mixes that the source was trained on, as far as they are in this registry."""
    for _, manifest in ancestry(job.store, job.source.digest):
        mix = manifest.inputs.mix
        if manifest.inputs.op == "train" and mix is not None and job.store.layout.blob(mix.rows).is_file():
            yield job.store.read(mix.rows)


def _said(row: bytes) -> bytes:
    """What is said in a row, however it is written down: the order of keys, empty fields, space around a text and the
    tools that were offered make no other row of it."""

    def stripped(value: Any) -> Any:
        return value.strip() if isinstance(value, str) else value

    messages = ({key: stripped(value) for key, value in each.items()} for each in json.loads(row)["messages"])
    said = [{key: value for key, value in each.items() if value} for each in messages]
    return json.dumps(said, sort_keys=True).encode()


def _inputs(settings: Train, source: Candidate, mix: MixUse, reference: MixUse) -> Inputs:
    """What the candidate is made from. The reference belongs to it, for it decides which step ships."""
    chosen: dict[str, Any] = {
        "reference": {"name": reference.name, "rows": reference.rows},
        "experts": settings.experts,
        "double_quantization": settings.double_quantization,
        "lora": {
            "rank": settings.lora.rank,
            "alpha": settings.lora.alpha,
            "dropout": _exact(settings.lora.dropout),
            "targets": sorted(settings.lora.targets) if settings.lora.targets else None,
        },
        "learning_rate": _exact(settings.learning_rate),
        "warmup": _exact(settings.warmup),
        "batch_size": settings.batch_size,
        "gradient_accumulation": settings.gradient_accumulation,
        "sequence_length": settings.sequence_length,
        "packing": settings.packing,
        "evaluate_every": settings.evaluate_every,
        "limit_gap": _exact(settings.limit_gap),
        "tolerance": _exact(settings.tolerance),
    }
    if settings.max_steps is None:
        chosen["epochs"] = _exact(settings.epochs)
    else:
        chosen["max_steps"] = settings.max_steps
    return Inputs(op="train", parent=source.digest, settings=chosen, mix=mix, seed=settings.seed, code=CODE)


def _exact(number: Any) -> str:
    return format(number.normalize(), "f")


def read(job: Job, taken: Taken) -> Work:
    """As `reading.read`, for a job."""
    from stages.common.machine import device_of
    from stages.train import reading

    device = device_of(job.device)  # refused here, if it is not there
    return reading.read(
        job.source.resolved(),
        job.settings,
        (taken.mix, taken.rows),
        (taken.reference, taken.reference_rows),
        device=device,
    )


def write(work: Work, trained: Trained, target: Path, *, what: str) -> None:
    """Writes the checkpoint with the adapters merged to the folder `target`, with progress called `what`."""
    from stages.train import merging

    with progress(what, total=work.checkpoint.size, unit="B") as bar:
        merging.merge(work.checkpoint, trained.deltas, target, advance=bar.advance)


def _attach(job: Job, taken: Taken, trained: Trained, folder: Path) -> None:
    from stages.train import curves

    about = {"experts": job.settings.experts, "mix": taken.mix.name, "reference": taken.reference.name}
    fs.make_folders(folder)
    fs.write_new(folder / REFERENCE, taken.reference_rows)
    for name, data in curves.attachments(trained.outcome, about).items():
        fs.write_new(folder / name, data)


def _tell(job: Job, trained: Trained) -> None:
    from stages.train.running import told

    outcome = trained.outcome
    if outcome.stopped:
        output.text(f"stopped after {len(outcome.losses)} of {outcome.planned} steps: {outcome.stopped}")
    output.text(f"{job.makes}: {told(outcome.best)}; it began at {outcome.points[0].shipped_loss:.4f}")
    if not trained.deltas:
        output.hint(
            f"no step was better than none: the weights of {job.makes} are those of {job.source.name}. A lower "
            "learning_rate, or experts: bf16, may help"
        )
