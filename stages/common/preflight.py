"""Preflight: what a stage that reads a mix is going to read, and what it will ask of the machine, before it begins.

Nothing is written and no device memory is taken. What is read here is what the stage then uses: every row that the
mix takes is tokenised once, in full, so every number about tokens is counted (but for the padding of what a training
sees after its first million sequences). What is estimated (time, memory) says from what.

A stage refuses what it can refuse from its recipe, takes the mix, calls `read`, adds up its own `Demand`, and makes the
`Report` of the two. `refuse` is the last word before anything is begun; `room` then holds the disk.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from gates.errors import UsageError
from registry import bulk, devices, fs, leases, output
from registry.checkpoint import read_config
from registry.families import architecture_of
from registry.layout import Layout
from registry.taking import MARGIN
from stages.common import calibration
from stages.common.machine import available_memory

if TYPE_CHECKING:
    from registry.manifests import MixUse
    from stages.common.calibration import Batch, Tokens

_RESERVE = "reserve"


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one dataset gives to a mix. `tokens` are those that the model will see; beyond the sequence length
    `cut_tokens` of `cut_rows` rows are lost."""

    dataset: str
    rows: int
    tokens: int
    cut_rows: int
    cut_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """What goes through the model: tokens with the padding of their batches, all of them and of the largest batch."""

    sequences: int
    batches: int
    padded: int
    largest: int

    @classmethod
    def of(cls, batches: Sequence[Batch]) -> Amount:
        tokens = [batch.input_ids.numel() for batch in batches]
        sequences = sum(len(batch.input_ids) for batch in batches)
        return cls(sequences=sequences, batches=len(batches), padded=sum(tokens), largest=max(tokens, default=0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """A mix as the model will read it; nothing of it where the stage looks at no data. `batches` are there where it is
    read once, as it stands."""

    shares: tuple[Share, ...]
    amount: Amount
    batches: list[Batch]

    @property
    def tokens(self) -> int:
        return sum(share.tokens for share in self.shares)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demand:
    """What the stage will ask of the machine: bytes and seconds. Of the disk it is known, all else is an estimate.

    output: the candidate. spool: hidden states, gone before the candidate is written. kept: what lets the work go on
    where it was, there until the candidate is made.
    host, device: memory at the peak; device is 0 on a CPU.
    """

    output: int
    spool: int
    host: int
    device: int
    seconds: float
    basis: str
    """What the estimates rest on, in a sentence."""
    kept: int = 0

    @property
    def disk(self) -> int:
        """Bytes on the disk at the peak, and what stays free for records, attachments and the log."""
        return max(self.output, self.spool) + self.kept + MARGIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What is free: bytes. `disk` counts what an interrupted run of the same step left, which will be used or removed;
    `device` is None where there is none or nobody tells."""

    disk: int
    host: int | None
    device: int | None
    device_name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a preflight found."""

    stage: str
    makes: str
    source: str
    family: str
    change: str
    """What becomes of the source, in a few words: 12 of 16 experts stay in each layer."""
    sequence_length: int
    packing: bool
    reading: Reading
    demand: Demand
    machine: Machine
    where: str
    """The registry's folder."""
    seconds: float
    """That the preflight took."""
    notes: tuple[str, ...] = ()
    """What else people should know before they begin, a sentence each."""


def read(folder: Path, mix: MixUse, rows: bytes, *, sequence_length: int, packing: bool) -> Reading:
    """The rows of `mix` as the model in `folder` will read them.

    Raises:
        UsageError: its chat template refuses a row (dataset and row are named), or its tokenizer gives a token that the
            model does not have.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    lines = iter(rows.splitlines(keepends=True))
    found: list[Tokens] = []
    shares = []
    for taken in mix.datasets:
        some = b"".join(islice(lines, taken.count))
        sample = f"the sample from {taken.dataset}"
        tokens = list(calibration.tokenized(some, tokenizer, sample=sample))
        shares.append(_share(taken.dataset, [len(ids) for ids in tokens], sequence_length))
        found += tokens
    _refuse_unknown_tokens(folder, found)
    batches = calibration.batches(found, sequence_length, packing=packing)
    return Reading(shares=tuple(shares), amount=Amount.of(batches), batches=batches)


def no_reading() -> Reading:
    """For a stage that looks at no data."""
    return Reading(shares=(), amount=Amount.of([]), batches=[])


def machine(root: Path, step: Path, device: str) -> Machine:
    """What is free here for the registry in `root`.

    Args:
        step: the step's folder, whether it is there or not.
        device: cpu or cuda.
    """
    left = sum(path.lstat().st_size for path in step.rglob("*") if path.is_file()) if step.is_dir() else 0
    name, free = _device(root) if device == "cuda" else ("cpu", None)
    return Machine(disk=shutil.disk_usage(root).free + left, host=available_memory(), device=free, device_name=name)


def refuse(report: Report) -> None:
    """
    Raises:
        UsageError: the disk is too small. Memory, which is estimated, is never refused: `warnings` speaks of it.
    """
    if report.demand.disk > report.machine.disk:
        raise _too_small(report)


def warnings(report: Report) -> Iterator[str]:
    """What people should know before they begin, a sentence each."""
    demand, free = report.demand, report.machine
    for what, needed, there in (
        ("memory", demand.host, free.host),
        (f"memory of the device ({free.device_name})", demand.device, free.device),
    ):
        if there is not None and needed > there:
            yield f"{output.size(needed)} of {what} are estimated, and {output.size(there)} are free"
    for share in report.reading.shares:
        if share.cut_rows * 2 > share.rows:
            yield (
                f"more than half of the rows of {share.dataset} are cut at {report.sequence_length} tokens, and "
                f"{share.cut_tokens:,} tokens lost: a larger sequence_length keeps them"
            )
    yield from report.notes


@contextmanager
def room(folder: Path, report: Report) -> Iterator[None]:
    """Holds the room on the disk that the candidate will need beyond the hidden states, as long as the context lasts.

    The hidden states hold their own, being written in full at the beginning. Where the file system promises nothing,
    nothing is held.

    Raises:
        UsageError: the disk is too small after all: somebody else was faster, or there is a quota.
    """
    held = folder / _RESERVE
    fs.remove_tree(held)
    try:
        bulk.reserve(held, max(0, report.demand.output - report.demand.spool))
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _too_small(report) from None
        raise
    try:
        yield
    finally:
        fs.remove_tree(held)


def _device(root: Path) -> tuple[str, int | None]:
    """What the first GPU is called, and how many bytes of it are free; of one that somebody else holds, all: it will be
    this stage's turn when that has ended. NVML is asked: what asks through torch takes some hundred megabytes."""
    first = devices.names("cuda")[0]
    found = devices.memory(first)
    if found is None:
        return first, None
    held = leases.held_by_another(Layout(root), [first])
    return found.model, found.total - (0 if held else found.used)


def _share(dataset: str, lengths: Sequence[int], longest: int) -> Share:
    cut = [length - longest for length in lengths if length > longest]
    return Share(
        dataset=dataset,
        rows=len(lengths),
        tokens=sum(lengths) - sum(cut),
        cut_rows=len(cut),
        cut_tokens=sum(cut),
    )


def _refuse_unknown_tokens(folder: Path, found: Sequence[Tokens]) -> None:
    known = architecture_of(read_config(folder)).text.get("vocab_size")
    largest = max(map(max, found))
    if isinstance(known, int) and largest >= known:
        raise UsageError(
            f"the tokenizer gives the token {largest}, but the model knows only {known}",
            where=str(folder),
            remedy="leave out of the mix what needs that token, or take the model in with its own tokenizer",
        )


def on_the_way(demand: Demand) -> str:
    """What else than the candidate lies on the disk until it is made, in words."""
    what, size = ("what lets it go on takes", demand.kept) if demand.kept else ("hidden states take", demand.spool)
    return f"{what} {output.size(size)}"


def _too_small(report: Report) -> UsageError:
    demand, free = report.demand, report.machine.disk
    return UsageError(
        f"the disk is too small: {report.makes} will have {output.size(demand.output)}, and on the way there "
        f"{on_the_way(demand)}; {output.size(demand.disk)} are needed at once, and "
        f"{output.size(free)} are free",
        where=report.where,
        remedy="make room (registry df, registry gc)"
        + (", take fewer rows in the mix, or cut them shorter (sequence_length)" if demand.spool else ""),
    )
