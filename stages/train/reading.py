"""What a training run reads, before the model is loaded: its data as tokens, and what it will ask of the machine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import AutoTokenizer

from gates.errors import UsageError
from registry import output
from registry.recipes import Train
from stages.common import preflight
from stages.common.calibration import Batch
from stages.common.checkpoint import Checkpoint
from stages.common.preflight import Report, Share
from stages.train import data, demand, loading
from stages.train.answers import Answers

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from registry.manifests import MixUse
    from stages.common.stage import Job


_TARGETS = {"attention": "attention", "shared experts": "shared_expert", "router": "router"}
"""By the role of a tensor, what a recipe calls it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Everything that a run needs, ready for it.

    packing: whether chats share sequences. order: which of them is trained on when. batches: their shapes alone.
    answers: how many there are in `reference`; `cut_answers` of its rows are longer than a sequence.
    """

    checkpoint: Checkpoint
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    shares: tuple[Share, ...]
    sequences: Dataset
    packing: bool
    order: list[int]
    steps: int
    batches: list[Batch]
    reference: list[Answers]
    cut_answers: int

    @property
    def answers(self) -> int:
        return sum(len(batch.labels) for batch in self.reference)


def read(
    folder: Path,
    settings: Train,
    mix: tuple[MixUse, bytes],
    reference: tuple[MixUse, bytes],
    *,
    device: torch.device,
) -> Work:
    """Mix and reference as the model in `folder` reads them. The model is not loaded, and no device memory is taken.

    Args:
        mix, reference: as `calibration.take` gives them.

    Raises:
        UsageError: the model is quantised or of a family that is not trained, or as `data.read`.
        IntegrityError: the model's files are damaged.
    """
    checkpoint = Checkpoint(folder)
    loading.refuse(checkpoint)
    _refuse_targets(checkpoint, settings)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    vocabulary, longest = checkpoint.architecture.text.get("vocab_size"), settings.sequence_length
    shares, chats = data.read(*mix, tokenizer, sequence_length=longest, vocabulary=vocabulary)
    measured, answers = data.read(*reference, tokenizer, sequence_length=longest, vocabulary=vocabulary)
    packing = settings.packing and not _carries_over(checkpoint)
    sequences = data.sequences(chats, longest=longest, packing=packing)
    order = data.schedule(settings, len(sequences))
    return Work(
        checkpoint=checkpoint,
        tokenizer=tokenizer,
        device=device,
        shares=shares,
        sequences=sequences,
        packing=packing,
        order=order,
        steps=data.steps_of(settings, len(order)),
        batches=list(_shapes([len(ids) for ids in sequences["input_ids"]], order, settings.batch_size)),
        reference=data.measured_on(answers),
        cut_answers=sum(share.cut_rows for share in measured),
    )


def report(job: Job, work: Work, step: Path, begun: float) -> Report:
    """What the run will read and ask for.

    Args:
        step: the folder that the work will be in.
        begun: when the preflight did, on the monotonic clock.
    """
    settings = job.settings
    experts = {"nf4": "NF4", "bf16": "BF16"}[settings.experts]
    root = job.store.layout.root
    return Report(
        stage="train",
        makes=job.makes,
        source=job.source.name,
        family=work.checkpoint.architecture.family.model_type,
        change=f"adapters of rank {settings.lora.rank} over experts in {experts}, {work.steps} steps, "
        f"measured on {work.answers} answers every {settings.evaluate_every}",
        sequence_length=settings.sequence_length,
        packing=work.packing,
        reading=preflight.Reading(shares=work.shares, batches=work.batches),
        demand=demand.demand_of(
            work.checkpoint,
            settings,
            steps=work.steps,
            batches=work.batches,
            reference=work.reference,
            device=work.device,
        ),
        machine=preflight.machine(root, step, work.device.type),
        where=str(root),
        seconds=time.monotonic() - begun,
        notes=tuple(_notes(work, settings)),
    )


def refuse(job: Job, work: Work, found: Report) -> None:
    """
    Raises:
        UsageError: the device is too small for the frozen weights alone. All else about memory is an estimate, and
            `preflight.warnings` speaks of it.
    """
    weights, free = demand.frozen(work.checkpoint, job.settings, work.device), found.machine.device
    if free is not None and weights > free:
        raise UsageError(
            f"the frozen weights take {output.size(weights)}, and {output.size(free)} of {found.machine.device_name} "
            "are free",
            where=f"{job.where}.experts",
            remedy="prune deeper first, end what else holds the device, or train with experts: nf4"
            + ("" if job.settings.double_quantization else " and double_quantization: true"),
        )


def _notes(work: Work, settings: Train) -> Iterator[str]:
    if work.cut_answers:
        yield (
            f"{work.cut_answers} rows of the reference are cut at {settings.sequence_length} tokens, and what is said "
            "beyond is not measured: a larger sequence_length keeps it"
        )


def _refuse_targets(checkpoint: Checkpoint, settings: Train) -> None:
    parts = (checkpoint.architecture.part(name) for name in checkpoint.tensors)
    there = {_TARGETS[part.role] for part in parts if part is not None and part.role in _TARGETS and not part.mtp}
    missing = sorted(set(settings.lora.targets or ()) - there)
    if missing:
        raise UsageError(
            f"the model has no {missing[0]} to train",
            where="lora.targets",
            remedy=f"it has {', '.join(sorted(there))}",
        )


def _carries_over(checkpoint: Checkpoint) -> bool:
    """Whether something of a chat reaches the next one of its sequence: states of linear attention run on through it,
    where attention is kept within a chat by its mask."""
    return checkpoint.architecture.full_attention_layers < checkpoint.architecture.layers


def _shapes(lengths: Sequence[int], order: Sequence[int], size: int) -> Iterator[Batch]:
    """The batches as the trainer will make them, padding included, without their numbers."""
    for first in range(0, len(order), size):
        some = [lengths[each] for each in order[first : first + size]]
        shape = torch.empty((len(some), max(some)), device="meta", dtype=torch.int64)
        yield Batch(shape, shape)
