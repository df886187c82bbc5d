"""Adapters on what is trained: attention, shared experts and routers. Everything below them stays frozen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gates.errors import IntegrityError, UsageError
from registry.recipes import Train

if TYPE_CHECKING:
    from peft import PeftModel

ROUTER = "mlp.gate.weight"
"""A bare parameter of a router that takes the softmax in float32: peft puts the adapter on the parameter, and leaves
the router's own forward as it is."""

_TARGETS = {"attention": ("self_attn.", "linear_attn."), "shared_expert": ("mlp.shared_expert.", "mlp.shared_experts.")}
"""What the linear layers of a target begin with, below a decoder layer. The gate of a shared expert is one row, which
an adapter would be larger than."""


def attach(model: Any, settings: Train) -> PeftModel:
    """`model` of `loading.load` with adapters on it, in float32, the only part that is trainable. They are drawn by
    the seed, and change nothing until they are trained.

    Raises:
        UsageError: the model has none of a target that the settings name.
    """
    import peft
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper

    lora = settings.lora
    found = _found(model.get_decoder().layers)
    missing = [target for target in lora.targets or () if not found[target]]
    if missing:
        raise UsageError(
            f"the model has no {missing[0]} to train",
            where="lora.targets",
            remedy=f"it has {', '.join(target for target in found if found[target])}",
        )
    wanted = {name for target in lora.targets or found for name in found[target]}
    config = peft.LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=sorted(wanted - {ROUTER}),
        target_parameters=sorted(wanted & {ROUTER}) or None,
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(settings.seed)
        # By the model_type, peft would take the matrices of a shared expert for those of the routed ones that
        # transformers 4 had, and put adapters on the 3D tensors instead.
        known, model.config.model_type = model.config.model_type, ""
        adapted = peft.get_peft_model(model, config)
        model.config.model_type = known
    if lora.dropout:
        # peft refuses a configuration with dropout where a bare parameter is adapted, which cannot have any.
        for module in adapted.modules():
            if isinstance(module, LoraLayer) and not isinstance(module, ParamWrapper):
                module.lora_dropout.update({name: nn.Dropout(float(lora.dropout)) for name in module.lora_A})
    return adapted


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    """The adapters' own tensors by name: copies, in memory of the host."""
    return {name: weight.detach().cpu().clone() for name, weight in _trainable(model).items()}


def load_state(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> None:
    """Puts what `state` gave into the adapters of `model`.

    Raises:
        IntegrityError: it is of other adapters.
    """
    own = _trainable(model)
    for name in sorted(own.keys() | tensors.keys()):
        expected, found = (list(each[name].shape) if name in each else None for each in (own, tensors))
        if expected != found:
            raise IntegrityError(f"the adapters hold {found or 'no'} {name}, the model {expected or 'none'}")
    with torch.no_grad():
        for name, weight in own.items():
            weight.copy_(tensors[name])


def _found(layers: Iterable[nn.Module]) -> dict[str, set[str]]:
    """Of each target, the names below a decoder layer that some layer has."""
    found: dict[str, set[str]] = {target: set() for target in (*_TARGETS, "router")}
    for layer in layers:
        for name, module in layer.named_modules():
            for target, beginnings in _TARGETS.items():
                if isinstance(module, nn.Linear) and name.startswith(beginnings):
                    found[target].add(name)
        if any(name == ROUTER for name, _ in layer.named_parameters()):
            found["router"].add(ROUTER)
    return found


def _trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
