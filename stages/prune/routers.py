"""How each family's router turns logits into scores, for criteria that look behind the weights it puts out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gates.errors import UsageError


@dataclass(frozen=True, slots=True)
class Router:
    """A router's weights are its scores of the chosen experts, divided by their sum if it renormalises, times a factor.

    (Which experts are chosen may depend on more: a correction bias, groups. That is no part of the weights.)
    """

    scores: Callable[[torch.Tensor], torch.Tensor]
    """Logits [T, E] to scores [T, E], in float64."""
    factor: float


def router_of(model_type: str, text: dict[str, Any]) -> Router:
    """The router of a family.

    Args:
        text: the section of config.json with the text model's numbers.

    Raises:
        UsageError: the family is not in the table below.
    """
    if model_type not in _SCORES:
        raise UsageError(
            f"how the router of {model_type} scores experts is not known",
            remedy="add the family to stages/prune/routers.py, or leave out renormalize_router",
        )
    return Router(_SCORES[model_type], float(text.get("routed_scaling_factor", 1.0)))


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    return logits.double().softmax(dim=-1)


def _sigmoid(logits: torch.Tensor) -> torch.Tensor:
    return logits.double().sigmoid()


_SCORES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "deepseek_v2": _softmax,
    "deepseek_v3": _sigmoid,
    "glm4_moe": _sigmoid,
    "glm4_moe_lite": _sigmoid,
    "mixtral": _softmax,
    "olmoe": _softmax,
    "qwen2_moe": _softmax,
    "qwen3_5_moe": _softmax,
    "qwen3_5_moe_text": _softmax,
    "qwen3_moe": _softmax,
    "qwen3_next": _softmax,
}
