"""Which experts stay.

REAP (Router-weighted Expert Activation Pruning, https://arxiv.org/abs/2510.13999) scores expert j of a layer by

    S_j = mean over the tokens x that are routed to j of g_j(x)·‖f_j(x)‖₂

where f_j is the expert and g_j the router's weight for it: how much of the layer's output is j's when j is asked. The
criterion `random` is the control: what a mix is worth is what it wins over chance.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from gates.errors import IntegrityError
from registry.recipes import Prune
from stages.common.calibration import Batch
from stages.common.checkpoint import Checkpoint
from stages.common.streaming import LayerStream, Routing


@dataclass(frozen=True, slots=True)
class Choice:
    """The experts of one layer: what each scored, how many tokens were routed to it, and which stay (ascending).

    `counts` is None where the criterion does not look at data.
    """

    layer: int
    scores: list[float]
    counts: list[int] | None
    kept: list[int]


def choices(checkpoint: Checkpoint, settings: Prune, keep: int, batches: Sequence[Batch]) -> Iterator[Choice | None]:
    """The choice for each layer in turn, or None for a layer without experts.

    Args:
        keep: how many experts stay in each layer.

    Raises:
        IntegrityError: a layer puts out NaN or infinity, or the checkpoint is not complete.
    """
    if settings.criterion == "random":
        return _by_chance(checkpoint, keep, settings.seed)
    return _by_reap(checkpoint, keep, batches, settings.renormalize_router)


def _by_reap(
    checkpoint: Checkpoint, keep: int, batches: Sequence[Batch], renormalize: bool | None
) -> Iterator[Choice | None]:
    """A layer is scored on what the pruned layers before it put out, so each choice knows of the ones before."""
    stream = LayerStream(checkpoint)
    masks = [batch.attention_mask.bool() for batch in batches]
    states = stream.embed(batches)
    for layer in range(stream.layers):
        with stream.loaded(layer) as block:
            choice = None
            if block.experts:
                reap = Reap(block.experts, masks, renormalize)
                _refuse_non_finite(block.run(states, reap.observe), masks, layer, checkpoint)
                scores = reap.scores()
                choice = Choice(layer, scores, reap.counts(), best(scores, keep))
                block.keep(choice.kept)
            states = block.run(states)
            _refuse_non_finite(states, masks, layer, checkpoint)
        yield choice


def _by_chance(checkpoint: Checkpoint, keep: int, seed: int) -> Iterator[Choice | None]:
    """No data are looked at: each layer's scores are drawn by the seed."""
    family, config = checkpoint.family, checkpoint.config
    with_experts = family.expert_layers(config)
    for layer in range(family.layers(config)):
        draw = random.Random(f"seed {seed}, layer {layer}")
        scores = [draw.random() for _ in range(family.experts(config))]
        yield Choice(layer, scores, None, best(scores, keep)) if layer in with_experts else None


def best(scores: Sequence[float], keep: int) -> list[int]:
    """The `keep` experts with the highest scores, ascending; of equal ones the lower index stays."""
    return sorted(sorted(range(len(scores)), key=lambda expert: (-scores[expert], expert))[:keep])


class Reap:
    """The running sums of REAP over one layer's batches, in float64.

    Args:
        experts: E, how many the layer has.
        masks: for each batch, [rows, tokens] bool: False is padding, which does not count.
        renormalize: whether g is divided by its sum over the token's top-k; None takes the router's own final weight.
            False takes the softmax over all experts, whatever the model does.
    """

    def __init__(self, experts: int, masks: Sequence[torch.Tensor], renormalize: bool | None) -> None:
        self._masks = masks
        self._renormalize = renormalize
        self._sums = torch.zeros(experts, dtype=torch.float64)
        self._counts = torch.zeros(experts, dtype=torch.int64)

    def observe(self, batch: int, routing: Routing) -> None:
        """Adds the tokens of one batch."""
        real = self._masks[batch].reshape(-1)
        index = routing.index[real].reshape(-1)
        sizes = (self._gates(routing).double() * routing.norms.double())[real].reshape(-1)
        self._sums.index_add_(0, index, sizes)
        self._counts += torch.bincount(index, minlength=len(self._counts))

    def scores(self) -> list[float]:
        """S_j of each expert; 0 for one that no token was routed to."""
        return (self._sums / self._counts.clamp(min=1)).tolist()

    def counts(self) -> list[int]:
        """How many tokens were routed to each expert."""
        return self._counts.tolist()

    def _gates(self, routing: Routing) -> torch.Tensor:
        if self._renormalize is None:
            return routing.weights
        gates = routing.logits.double().softmax(dim=-1).gather(-1, routing.index)
        return gates / gates.sum(dim=-1, keepdim=True) if self._renormalize else gates


def _refuse_non_finite(
    states: Sequence[torch.Tensor], masks: Sequence[torch.Tensor], layer: int, checkpoint: Checkpoint
) -> None:
    for state, mask in zip(states, masks, strict=True):
        if not torch.isfinite(state[mask]).all():
            raise IntegrityError(
                f"layer {layer} puts out NaN or infinity",
                where=str(checkpoint.folder),
                remedy="a weight up to this layer is damaged: compare the files with their publisher's digests",
            )
