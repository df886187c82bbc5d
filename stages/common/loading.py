"""Give a decoder layer of transformers its weights, from the names and the layout that they have on disk.

Bit-identical to what transformers loads, and with nothing in memory but the layer: experts that lie one by one are
copied into their places one by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from gates.errors import IntegrityError
from stages.common.checkpoint import Checkpoint

_BESIDE_THE_LAYER = ("enorm.", "hnorm.", "eh_proj.", "shared_head.", "embed_tokens.")
"""What a multi-token-prediction layer has around the decoder layer under the same prefix (`stages.common.mtp`)."""


def load(
    module: nn.Module,
    checkpoint: Checkpoint,
    layer: int,
    device: torch.device,
    dtype: torch.dtype,
    *,
    experts: bool = True,
) -> None:
    """Gives `module` the weights of the layer numbered `layer` (multi-token-prediction layers from `layers` up).

    Args:
        experts: whether its experts' too; a module whose experts are held in another form has none to be given.

    Raises:
        IntegrityError: a tensor is missing, too much or of another shape, or a router holds NaN or infinity.
    """
    prefix = checkpoint.architecture.layer_prefix(layer)
    weights: dict[str, torch.Tensor] = {}
    single: dict[tuple[str, int], str] = {}
    for name in checkpoint.tensors:
        if not name.startswith(prefix):
            continue
        short, part = name.removeprefix(prefix), checkpoint.architecture.part(name)
        if short.endswith("rotary_emb.inv_freq") or short.startswith(_BESIDE_THE_LAYER):
            continue
        if part is None:
            raise IntegrityError("the model has no such tensor", where=f"{checkpoint.folder}, {name}")
        if part.projection and not experts:
            continue
        if part.kind == "expert":
            single[str(part.projection), int(part.expert or 0)] = name
        elif part.kind == "experts":
            weights[f"mlp.experts.{part.projection}"] = checkpoint.tensor(name).to(device, dtype)
        elif part.kind == "router":
            # A correction bias is left in float32, as transformers leaves it: it decides between close scores.
            tensor = checkpoint.tensor(name)
            if not tensor.isfinite().all():  # the answers of the experts that it chooses can be finite all the same
                raise IntegrityError(
                    f"the router of layer {layer} holds NaN or infinity",
                    where=f"{checkpoint.folder}, {name}",
                    remedy="compare the files with their publisher's digests",
                )
            kept = torch.float32 if tensor.ndim == 1 else dtype
            weights[f"mlp.gate.{name.rpartition('.')[2]}"] = tensor.to(device, kept)
        else:
            weights[short] = checkpoint.tensor(name).to(device, dtype)
    if single:
        weights |= _stacked(checkpoint, module, single, device, dtype)
    assign(module, weights, where=f"{checkpoint.folder}, layer {layer}")


def assign(module: nn.Module, weights: dict[str, torch.Tensor], *, where: str) -> None:
    """Gives `module` exactly the weights that it has, in their shapes.

    Raises:
        IntegrityError: one is missing, too much or of another shape.
    """
    wanted = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    given = {name: list(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(wanted.keys() | given.keys()):
        if wanted.get(name) != given.get(name):
            raise IntegrityError(
                f"the checkpoint holds {given.get(name, 'no')} {name}, the model {wanted.get(name, 'none')}",
                where=where,
            )
    module.load_state_dict(weights, assign=True)


def checked(checkpoint: Checkpoint, name: str, shape: Sequence[int]) -> torch.Tensor:
    """The tensor `name` as it is on disk.

    Raises:
        IntegrityError: it is missing, or not of this shape.
    """
    entry = checkpoint.tensors.get(name)
    if entry is not None and tuple(entry.shape) != tuple(shape):
        raise IntegrityError(
            f"the shape is {list(entry.shape)}, but the model's is {list(shape)}",
            where=f"{checkpoint.folder}, {name}",
        )
    return checkpoint.tensor(name)


def _stacked(
    checkpoint: Checkpoint,
    module: nn.Module,
    names: dict[tuple[str, int], str],
    device: torch.device,
    dtype: torch.dtype,
) -> dict[str, torch.Tensor]:
    """The matrices of all experts, one by one on disk, as they are in memory.

    That is gate_up_proj [E, 2·I, H], the gate's rows first, and down_proj [E, H, I].

    Args:
        names: by projection and expert.
    """
    beside = next(iter(names.values()))
    experts = getattr(module.mlp, "experts", None)
    if experts is None:
        raise IntegrityError("config.json states no experts in this layer", where=f"{checkpoint.folder}, {beside}")
    stacked = {
        name: torch.empty(parameter.shape, dtype=dtype, device=device)
        for name, parameter in experts.named_parameters(recurse=False)
    }
    half = stacked["gate_up_proj"].shape[1] // 2
    places = {
        "gate_proj": stacked["gate_up_proj"][:, :half],
        "up_proj": stacked["gate_up_proj"][:, half:],
        "down_proj": stacked["down_proj"],
    }
    left = dict(names)
    for projection, place in places.items():
        for expert in range(len(place)):
            name = left.pop((projection, expert), None)
            if name is None:
                where = f"{checkpoint.folder}, beside {beside}"
                raise IntegrityError(f"expert {expert} has no {projection}", where=where)
            place[expert].copy_(checked(checkpoint, name, place[expert].shape))
    for name in left.values():
        raise IntegrityError("config.json states fewer experts", where=f"{checkpoint.folder}, {name}")
    return {f"mlp.experts.{name}": tensor for name, tensor in stacked.items()}
