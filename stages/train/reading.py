"""What a training run reads, before the model is loaded: its data as tokens, and what it will ask of the machine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import AutoTokenizer

from gates.errors import UsageError
from registry import output
from registry.recipes import Train
from stages.common import preflight
from stages.common.checkpoint import Checkpoint
from stages.common.preflight import Amount, Report, Share
from stages.train import data, demand, loading
from stages.train.answers import Answers
from stages.train.data import Schedule

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from registry.manifests import MixUse
    from stages.common.job import Job


_TARGETS = {"attention": "attention", "shared experts": "shared_expert", "router": "router"}
"""By the role of a tensor, what a recipe calls it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """Everything that a run needs, ready for it.

    packing: whether chats share sequences. order: which of them is trained on when.
    answers: how many there are in `reference`; `cut_answers` of its rows are longer than a sequence.
    """

    checkpoint: Checkpoint
    tokenizer: PreTrainedTokenizerBase
    device: torch.device
    shares: tuple[Share, ...]
    sequences: Dataset
    packing: bool
    order: Schedule | Sequence[int]
    steps: int
    amount: Amount
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
    known = {"vocabulary": vocabulary, "positions": _positions(checkpoint.architecture.text)}
    shares, chats = data.read(*mix, tokenizer, sequence_length=longest, **known)
    measured, answers = data.read(*reference, tokenizer, sequence_length=longest, **known)
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
        amount=data.amount([len(ids) for ids in sequences["input_ids"]], order, settings.batch_size),
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
        reading=preflight.Reading(shares=work.shares, amount=work.amount, batches=[]),
        demand=demand.demand_of(
            work.checkpoint,
            settings,
            steps=work.steps,
            amount=work.amount,
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


def _positions(text: dict[str, Any]) -> int | None:
    """How many tokens of a text the model is made for, where its config says it: max_position_embeddings, as
    transformers takes it (GenerationMixin); or what a scaling of RoPE makes of it that is stated beside it, since
    publishers tell people to add that (YaRN) and to leave the rest as it is."""
    stated = text.get("max_position_embeddings")
    if not isinstance(stated, int):
        return None
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    factor, original = rope.get("factor"), rope.get("original_max_position_embeddings")
    return max(stated, int(Fraction(factor or 1) * (original or stated)))
