"""Layer after layer: score the experts, choose, and go on through those that are left.

The hidden states of every batch lie in a spool on disk, so neither the depth of the model nor the number of tokens sets
the memory. A layer with experts takes two visits to each batch: attention and the sums of the criterion, then, once the
experts are chosen, the answers of those that stay. So a layer is scored on what the pruned layers before it put out.
Whatever is interrupted goes on at the batch where it stopped. The sums of each batch are kept apart and added up in the
order of the batches, so neither an interruption nor the number of threads changes a bit.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import transformers

from gates import canonical
from gates.errors import IntegrityError
from registry.recipes import Prune
from stages.common import mtp
from stages.common.memory import give_back
from stages.common.spool import Note, Spool, Tensors
from stages.common.streaming import dtype_of
from stages.prune.criteria import Choice, Tally
from stages.prune.routers import router_of

if TYPE_CHECKING:
    from stages.common.calibration import Batch
    from stages.common.checkpoint import Checkpoint
    from stages.common.streaming import Block, LayerStream

MOST_SLOTS = 8
"""The most batches that are worked on at a time on a CPU; each takes memory of its own."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run asks of the disk, in bytes: the size of the spool, and all that is read and written in it."""

    size: int
    traffic: int


def cost(checkpoint: Checkpoint, device: torch.device, settings: Prune, batches: Sequence[Batch]) -> Cost:
    """What `choices` will ask of the disk, known beforehand: two bytes or four for each of the H numbers of a token."""
    hidden = int(checkpoint.architecture.text["hidden_size"])
    size = sum(batch.input_ids.numel() for batch in batches) * hidden * dtype_of(device).itemsize
    layers = visited(checkpoint, settings)
    dense = set(range(checkpoint.architecture.layers)) - set(checkpoint.architecture.expert_layers)
    visits = sum(1 if layer in dense else 2 for layer in layers)
    return Cost(size, size * (1 + 2 * visits))


def visited(checkpoint: Checkpoint, settings: Prune) -> list[int]:
    """The layers that the batches go through, in turn; multi-token-prediction layers come last."""
    head = mtp.layers(checkpoint) if settings.mtp == "prune" else []
    return [*range(checkpoint.architecture.layers), *head]


def slots_of(device: torch.device) -> int:
    """How many batches are worked on at a time."""
    return 1 if device.type == "cuda" else min(len(os.sched_getaffinity(0)), MOST_SLOTS)


def choices(
    stream: LayerStream,
    settings: Prune,
    keep: int,
    batches: Sequence[Batch],
    folder: Path,
    *,
    slots: int | None = None,
) -> Iterator[Choice | None]:
    """The choice for each layer in turn, None for a layer without experts; multi-token-prediction layers come last.

    Args:
        keep: how many experts stay in each layer.
        folder: for the spool. What another call with the same arguments left there is gone on with.
        slots: how many batches are worked on at a time; None is one on CUDA, and as many as there are cores on a CPU.

    Raises:
        IntegrityError: a layer puts out NaN or infinity, the checkpoint is not complete, or the spool is damaged.
    """
    give_back()
    spool = Spool(folder, count=len(batches), of=_follows_from(stream, batches))
    run = _Run(stream, settings, keep, batches, spool, slots or slots_of(stream.device))
    run.begin()
    for layer in visited(stream.checkpoint, settings):
        yield run.layer(layer)
        give_back()
    spool.finish()


@dataclass(frozen=True, slots=True)
class _Run:
    stream: LayerStream
    settings: Prune
    keep: int
    batches: Sequence[Batch]
    spool: Spool
    slots: int

    def begin(self) -> None:
        if not self.spool.begun:
            with self.stream.embedding() as embed:
                self.spool.begin(lambda batch: embed(self.batches[batch]))

    def layer(self, layer: int) -> Choice | None:
        """Brings all batches from the states before a layer (step 2·layer) over attention to those behind it."""
        before, attended, end = 2 * layer, 2 * layer + 1, 2 * layer + 2
        kept = self.spool.kept(f"{layer:05d}.json")
        choice = Choice(**canonical.loads(kept)) if kept else None
        if self.spool.is_at(end):
            return choice
        with self.stream.loaded(layer) as block:
            if not block.experts:
                self.spool.advance(before, end, partial(self._through, block), slots=self.slots)
                return None
            self.spool.advance(before, attended, partial(self._attend, block), slots=self.slots)
            if choice is None:
                choice = self._choose(block)
                self.spool.keep(f"{layer:05d}.json", canonical.dumps(asdict(choice)))
            block.keep(choice.kept)
            self.spool.advance(attended, end, partial(self._answer, block), slots=self.slots)
        return choice

    def _through(self, block: Block, batch: int, tensors: Tensors) -> tuple[Tensors, Note]:
        states = block.run(self.batches[batch], tensors["states"])
        return self._finite(block, batch, states, states), {}

    def _attend(self, block: Block, batch: int, tensors: Tensors) -> tuple[Tensors, Note]:
        """The first visit: attention, and the sums over the tokens of this batch."""
        states = block.attend(self.batches[batch], tensors["states"])
        routing = block.routing(states)
        real = block.real(self.batches[batch]).flatten().to(states.device)
        judged = torch.cat([routing.norms, routing.weights.float()], dim=-1)
        made = self._finite(block, batch, states, judged.view(*states.shape[:2], -1))
        tally = self._tally(block)
        tally.add(routing, real)
        return made, tally.state()

    def _answer(self, block: Block, batch: int, tensors: Tensors) -> tuple[Tensors, Note]:
        """The second visit: what the experts answer that are left."""
        states = block.answer(tensors["states"])
        return self._finite(block, batch, states, states), {}

    def _choose(self, block: Block) -> Choice:
        tally = self._tally(block)
        for note in self.spool.notes(2 * block.layer + 1):
            tally.merge(note)
        return tally.choice(block.layer, self.keep, self.stream.checkpoint.architecture.groups)

    def _tally(self, block: Block) -> Tally:
        architecture = self.stream.checkpoint.architecture
        router = None
        if self.settings.renormalize_router is not None:
            router = router_of(architecture.family.model_type, architecture.text)
        return Tally(block.experts, self.settings, router)

    def _finite(self, block: Block, batch: int, states: torch.Tensor, judged: torch.Tensor) -> Tensors:
        """`states`, to be written, if they and `judged` are finite for every token that is none of padding."""
        real = block.real(self.batches[batch]).to(states.device)
        if not (torch.isfinite(states[real]).all() and torch.isfinite(judged[real]).all()):
            raise IntegrityError(
                f"layer {block.layer} puts out NaN or infinity",
                where=str(self.stream.checkpoint.folder),
                remedy="a weight up to this layer is damaged: compare the files with their publisher's digests",
            )
        return {"states": states}


def _follows_from(stream: LayerStream, batches: Sequence[Batch]) -> dict[str, str]:
    """What the states follow from, beside the inputs of the step, which the name of its folder stands for."""
    tokens = hashlib.sha256()
    for batch in batches:
        tokens.update(repr(tuple(batch.input_ids.shape)).encode())
        tokens.update(batch.input_ids.numpy().data)
        tokens.update(batch.attention_mask.numpy().data)
    return {
        "tokens": tokens.hexdigest(),
        "device": stream.device.type,
        "dtype": str(stream.dtype),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
