"""Quantise a candidate: every expert and every linear projection to block FP8, all else bit by bit as it was.

Which tensors these are is the family's to say, and every tensor of the source is accounted for: none is skipped because
a tool does not know its form.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from gates.errors import IntegrityError, UsageError
from registry import fs, output
from registry.checkpoint.facts import FP8_BLOCK
from registry.manifests import Inputs
from registry.progress import progress
from stages.common.machine import device_of

if TYPE_CHECKING:
    import torch

    from stages.common.job import Job
    from stages.quantize.account import Account
    from stages.quantize.fp8 import Noise

CODE = "quantize-2"
"""Changes whenever the same source would give other bytes."""

ACCOUNT = "account.json"
PLOT = "errors.svg"


def quantize(job: Job) -> None:
    """Makes the candidate `job.makes` from `job.source`, or finds it made.

    Raises:
        UsageError: the device is not there, the source is quantised already, a dimension does not divide by 128, or the
            result would not fit the card or the disk; nothing is written.
        IntegrityError: the source is damaged, a weight holds NaN or infinity, or a tensor is not accounted for.
    """
    stated = job.source.manifest.shape.quantization
    if stated is not None:
        raise UsageError(
            f"{job.source.name} is quantised already ({stated})",
            where=job.where,
            remedy="start from a candidate in BF16",
        )
    inputs = Inputs(
        op="quantize",
        parent=job.source.digest,
        settings={"format": job.settings.format, "shard_size": job.settings.shard_size},
        mix=None,
        seed=None,
        code=CODE,
    )
    if job.made(inputs):
        return
    device = device_of(job.device)
    predicted = _refuse_early(job)
    with job.store.step(inputs.identity()) as folder, _leased(job, device):
        account = write_fp8(
            job.source.resolved(),
            folder / "model",
            what=f"quantize {job.makes}",
            shard_size=job.settings.shard_size,
            journal=folder / "noise",
            device=device,
        )
        if account.after != predicted:
            raise IntegrityError(f"{account.after} bytes of tensors were written, but config.json makes it {predicted}")
        _attach(account, folder / "attachments")
        candidate = job.store.commit(
            job.makes, inputs, folder / "model", attachments=folder / "attachments", replace=job.replace
        )
        job.store.discard(inputs.identity())
    _tell(job, account, candidate.manifest.size)


def write_fp8(
    source_folder: Path,
    target: Path,
    *,
    what: str,
    shard_size: int | None = None,
    journal: Path | None = None,
    device: torch.device | None = None,
) -> Account:
    """Writes the checkpoint of `source_folder` in block FP8 to `target`, with progress called `what`.

    Args:
        shard_size: bytes of tensors in a shard; None keeps the source's shards.
        journal: a folder for what casting measured, so that finished shards of an interrupted call can stay; without
            it, all shards are written again.
        device: where the cast runs; None is the CPU.

    Raises:
        UsageError: a dimension does not divide by 128.
        IntegrityError: the source is damaged, a weight holds NaN or infinity, or a tensor is not accounted for.
    """
    import torch

    from stages.common.checkpoint import Checkpoint
    from stages.common.rewriting import rewrite
    from stages.quantize.account import account_of
    from stages.quantize.changes import fp8_changes, quantization_config, refuse_uneven
    from stages.quantize.journal import Journal

    torch.set_num_threads(1)  # the writer has threads of its own
    source = Checkpoint(source_folder)
    refuse_uneven(source)
    noise: dict[str, Noise] = {}
    changes = fp8_changes(source, noise, device or torch.device("cpu"))
    notes = Journal(journal, target, noise)
    with progress(what, total=source.size, unit="B") as bar:
        rewrite(
            source,
            target,
            changes,
            config={"quantization_config": quantization_config(source)},
            advance=bar.advance,
            shard_size=shard_size,
            seal=notes.seal,
        )
    return account_of(source.architecture, source.tensors, Checkpoint(target).tensors, notes.complete())


def _leased(job: Job, device: torch.device) -> AbstractContextManager[object]:
    """The GPU that the cast runs on. On a CPU the cast is a stream from disk to disk, which is in nobody's way."""
    return nullcontext() if device.type == "cpu" else job.leased(device.type)


def _refuse_early(job: Job) -> int:
    """The bytes of tensors that the candidate will have, if it can be made.

    Raises:
        UsageError: it cannot: uneven dimensions, or too little room on the card that the recipe names.
    """
    from stages.common.checkpoint import Checkpoint
    from stages.quantize.changes import predicted_bytes, refuse_uneven

    source = Checkpoint(job.source.resolved())
    refuse_uneven(source)
    predicted = predicted_bytes(source)
    card = job.settings.card
    if card is not None and predicted > card:
        raise UsageError(
            f"{job.makes} would have {output.size(predicted)} of weights, and the card {output.size(card)}",
            where=f"{job.where}.card",
            remedy="prune deeper first; `registry plan` says how deep, with room for the KV cache",
        )
    return predicted


def _attach(account: Account, folder: Path) -> None:
    from stages.quantize.plot import error_plot

    fs.remove_tree(folder)
    fs.make_folders(folder)
    fs.write_new(folder / ACCOUNT, account.to_bytes())
    fs.write_new(folder / PLOT, error_plot(account.layers).encode())


def _tell(job: Job, account: Account, size: int) -> None:
    from stages.quantize.account import table

    for line in table(account):
        output.text(line)
    fits = f", which leaves {output.size(job.settings.card - account.after)} of the card" if job.settings.card else ""
    output.text(f"{job.makes}: {FP8_BLOCK}, {output.size(size)} (was {output.size(job.source.manifest.size)}){fits}")
