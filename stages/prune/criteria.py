"""How much an expert matters, by the tokens of a calibration mix.

Of expert j, with X_j the tokens that are routed to it, f_j(x) its answer and g_j(x) the router's weight for it:

    reap              mean over X_j of g_j(x)·‖f_j(x)‖₂   REAP, https://arxiv.org/abs/2510.13999
    activation_norm   sum over X_j of ‖f_j(x)‖₂           EAN, a baseline of the REAP paper
    soft_counting     sum over X_j of g_j(x)              after SEER-MoE, https://arxiv.org/abs/2404.05089
    frequency         |X_j|
    random            drawn by the seed: the control. What a mix is worth is what it wins over chance.

g is the weight that the forward pass uses: renormalised where the model renormalises, the unbiased score of a sigmoid
router, times its scaling factor. An expert that no token is routed to scores 0.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from registry.recipes import Prune
from stages.common.experts import Routing
from stages.prune.routers import Router


@dataclass(frozen=True, slots=True)
class Choice:
    """The experts of one layer: what each scored, how many tokens were routed to it, and which stay (ascending).

    `counts` is None where the criterion does not look at data.
    """

    layer: int
    scores: list[float]
    counts: list[int] | None
    kept: list[int]


def best(scores: Sequence[float], keep: int, groups: int = 1) -> list[int]:
    """The `keep` experts with the highest scores, ascending; of equal ones the lower index stays.

    Args:
        groups: n_group: neighbouring experts form so many equal groups, of which each keeps as many.
    """
    size, stay = len(scores) // groups, keep // groups
    kept: list[int] = []
    for begin in range(0, len(scores), size):
        ranked = sorted(range(begin, begin + size), key=lambda expert: (-scores[expert], expert))
        kept += sorted(ranked[:stay])
    return kept


def by_chance(layer: int, experts: int, keep: int, seed: int, groups: int = 1) -> Choice:
    """The choice for a layer where no data are looked at: its scores are drawn by the seed."""
    draw = random.Random(f"seed {seed}, layer {layer}")
    scores = [draw.random() for _ in range(experts)]
    return Choice(layer, scores, None, best(scores, keep, groups))


class Tally:
    """The running sums of a criterion over the tokens of one layer, in float64 on the CPU.

    Tallies of parts of the tokens, merged in the same order, give the same bits whenever and wherever each was made.

    Args:
        experts: E, how many the layer has.
        settings: the criterion, and whether g is divided by its sum over the token's top-k (`renormalize_router`: None
            takes the router's own weight, False its weight before any division).
        router: what it computed before any division; needed where `renormalize_router` is not None.
    """

    def __init__(self, experts: int, settings: Prune, router: Router | None = None) -> None:
        self._criterion = settings.criterion
        self._renormalize = settings.renormalize_router
        self._router = router
        self._sums = torch.zeros(experts, dtype=torch.float64)
        self._counts = torch.zeros(experts, dtype=torch.int64)

    def add(self, routing: Routing, real: torch.Tensor) -> None:
        """Adds the T tokens of one chunk.

        Args:
            real: [T] bool: False is padding, which does not count.
        """
        index = routing.index[real].reshape(-1).cpu()
        self._counts += torch.bincount(index, minlength=len(self._counts))
        if self._criterion == "frequency":
            return
        sizes = torch.ones((), dtype=torch.float64, device=real.device)
        if self._criterion != "activation_norm":
            sizes = sizes * self._gates(routing)[real]
        if self._criterion != "soft_counting":
            sizes = sizes * routing.norms[real].double()
        # Not on the accelerator, where the order of the additions is left to chance.
        self._sums.index_add_(0, index, sizes.reshape(-1).cpu())

    def scores(self) -> list[float]:
        """What each expert scores; 0 for one that no token was routed to."""
        if self._criterion == "frequency":
            return self._counts.double().tolist()
        if self._criterion == "reap":
            return (self._sums / self._counts.clamp(min=1)).tolist()
        return self._sums.tolist()

    def counts(self) -> list[int]:
        """How many tokens were routed to each expert."""
        return self._counts.tolist()

    def choice(self, layer: int, keep: int, groups: int = 1) -> Choice:
        scores = self.scores()
        return Choice(layer, scores, self.counts(), best(scores, keep, groups))

    def state(self) -> dict[str, list[float]]:
        """The sums so far: `sums` and `counts`, a number for each expert."""
        return {"sums": self._sums.tolist(), "counts": self._counts.tolist()}

    def merge(self, state: Mapping[str, Sequence[float]]) -> None:
        """Adds what `state` gave of another part of the tokens."""
        self._sums += torch.tensor(state["sums"], dtype=torch.float64)
        self._counts += torch.tensor(state["counts"], dtype=torch.int64)

    def _gates(self, routing: Routing) -> torch.Tensor:
        """g [T, K]."""
        if self._renormalize is None:
            return routing.weights.double()
        assert self._router is not None
        scores = self._router.scores(routing.logits).gather(-1, routing.index)
        return self._router.factor * (scores / scores.sum(dim=-1, keepdim=True) if self._renormalize else scores)
