"""How well the model answers as it would ship: the adapters merged, the experts as they are on disk.

One pass over the layers, each read from the checkpoint, folded with the adapters, run, and let go. So at most one
layer's experts are in memory beside the 4-bit model that is being trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from stages.common.calibration import Batch
from stages.common.checkpoint import Checkpoint
from stages.common.memory import give_back
from stages.common.streaming import LayerStream
from stages.train.answers import Answers, Measured, judge
from stages.train.merging import Delta, Merged


def loss(
    checkpoint: Checkpoint, deltas: Mapping[str, Delta], batches: Sequence[Answers], *, device: torch.device
) -> Measured:
    """How well `checkpoint` says the answers of `batches` with `deltas` folded in and rounded as `merging.merge` does.

    Raises:
        IntegrityError: the checkpoint is damaged, or a delta is of no tensor of it.
        merging.OverflowsError: a delta makes a tensor NaN or infinity.
    """
    stream = LayerStream(Merged(checkpoint, deltas), device)
    inputs = [Batch(batch.input_ids, batch.attention_mask) for batch in batches]
    with stream.embedding() as embed:
        states = [embed(batch).cpu() for batch in inputs]
    for layer in range(stream.layers):
        with stream.loaded(layer) as block:
            states = [block.run(batch, state).cpu() for batch, state in zip(inputs, states, strict=True)]
        give_back()
    with stream.head() as logits_of:
        return Measured.of(judge(state, batch.labels, logits_of) for batch, state in zip(batches, states, strict=True))
