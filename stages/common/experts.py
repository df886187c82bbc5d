"""The experts of one layer, each for the tokens that are routed to it and no others.

The products are those of transformers' `grouped_mm`, in the same order, so the bits agree. transformers calls
`routed_experts` in place of its own loop once `register` was called; `routing` looks at how tokens are routed and how
large each expert's answer is, without putting the answers together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

NAME = "sluice"
"""What transformers calls this implementation of experts."""

ANSWER_BYTES = 256 << 20
"""The largest buffer for the answers of the experts, before they are weighted and summed."""


@dataclass(frozen=True, slots=True)
class Routing:
    """How T tokens (rows x length, padding included) went to the top K of one layer's E experts."""

    index: torch.Tensor
    """[T, K] int64: the experts that a token was routed to."""
    weights: torch.Tensor
    """[T, K]: the router's final weights, as the forward pass uses them."""
    logits: torch.Tensor
    """[T, E]: the router's logits."""
    norms: torch.Tensor
    """[T, K] float32: ‖f_j(x)‖₂, how large the answer of expert `index[t, k]` to token t is, before any weight."""


def register() -> str:
    """Lets transformers know of this implementation, and gives its name."""
    ALL_EXPERTS_FUNCTIONS.register(NAME, routed_experts)
    return NAME


@torch.no_grad()
def routing(router: nn.Module, experts: nn.Module, states: torch.Tensor) -> Routing:
    """How `states` [T, H] go through a layer's router and experts."""
    logits, weights, index = router(states)
    norms = torch.empty(index.numel(), dtype=torch.float32, device=states.device)
    for pairs, answers in _by_expert(experts, states, index):
        # Taken while an expert's answers are in the cache; all of them together would be K times the hidden states.
        norms[pairs] = torch.linalg.vector_norm(answers, dim=-1, dtype=torch.float32)
    return Routing(index, weights, logits, norms.view(index.shape))


def routed_experts(
    experts: nn.Module, states: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The forward pass of an experts module.

    Args:
        experts: a transformers experts module, of any family without biases.
        states: [T, H].
        index, weights: [T, K], from the router.
    """
    output = torch.empty_like(states)
    for tokens, answers in _answers(experts, states, index):
        # Weighted, then summed over K: the order that transformers' grouped_mm has, so the bits agree.
        output[tokens] = (answers * weights[tokens].unsqueeze(-1)).sum(dim=1).to(states.dtype)
    return output


def _answers(experts: nn.Module, states: torch.Tensor, index: torch.Tensor) -> Iterator[tuple[slice, torch.Tensor]]:
    """What the experts answer, [t, K, H], for some tokens at a time: a long row would need gigabytes at once."""
    top_k, hidden = index.shape[1], states.shape[1]
    step = max(1, ANSWER_BYTES // (top_k * hidden * states.element_size()))
    for begin in range(0, len(states), step):
        tokens = slice(begin, begin + step)
        yield tokens, _answered(experts, states[tokens], index[tokens])


def _answered(experts: nn.Module, states: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    found = states.new_empty(index.numel(), states.shape[1])
    for pairs, answers in _by_expert(experts, states, index):
        found[pairs] = answers
    return found.view(*index.shape, states.shape[1])


def _by_expert(
    experts: nn.Module, states: torch.Tensor, index: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Expert by expert: where in the flat [T·K] the tokens routed to it stand, and its answers to them [pairs, H]."""
    top_k = index.shape[1]
    chosen = index.reshape(-1)
    by_expert = torch.argsort(chosen, stable=True).split(torch.bincount(chosen, minlength=experts.num_experts).tolist())
    for expert, pairs in enumerate(by_expert):
        if len(pairs):
            gate_up = nn.functional.linear(states[pairs // top_k], experts.gate_up_proj[expert])
            yield pairs, nn.functional.linear(experts._apply_gate(gate_up), experts.down_proj[expert])
