"""Where every byte of a model that is trained went, read from the tensors that are held and not from what was asked.

Tools pass over experts in 3D tensors without a word, so an expert that is not in four bits is an error here, as one
that was not quantised is in the quantize stage.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from gates.errors import IntegrityError
from registry.recipes import Train
from stages.train.experts4bit import Experts4bit


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """Bytes that the model's tensors take where they are held; what training adds (gradients, the optimiser,
    activations) is not among them.

    matrices: of experts, each by itself; `in_4bit` of them are in four bits.
    experts: of all their weights; scales: of what turns the four bits back into numbers.
    adapters: of what is trained; other: of all else.
    """

    matrices: int
    in_4bit: int
    experts: int
    scales: int
    adapters: int
    other: int

    @property
    def total(self) -> int:
        return self.experts + self.scales + self.adapters + self.other

    def record(self) -> dict[str, int]:
        """For JSON."""
        return asdict(self) | {"total": self.total}


def of(model: nn.Module, settings: Train) -> Account:
    """The account of `model`, as `loading.load` or `adapters.attach` gave it.

    Raises:
        IntegrityError: an expert is missing, or not in four bits where the settings say that it is; named.
    """
    layers = [(name, module) for name, module in model.named_modules() if name.endswith("mlp.experts")]
    matrices = in_4bit = experts = 0
    scales: dict[int, int] = {}
    for name, module in layers:
        if isinstance(module, Experts4bit):
            for weight in _weights(name, module):
                experts += weight.nbytes
                scales |= {tensor.data_ptr(): tensor.nbytes for tensor in _scales(weight.quant_state)}  # some shared
                in_4bit += 1
                matrices += 1
        elif settings.experts == "nf4":
            raise IntegrityError(f"the experts were not quantised: a {type(module).__name__}", where=name)
        else:
            experts += sum(weight.nbytes for weight in module.parameters())
            matrices += 2 * module.num_experts  # type: ignore[operator]
    if not layers:
        raise IntegrityError("the model has no experts", where=type(model).__name__)
    unique = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}.values()
    adapters = sum(tensor.nbytes for tensor in unique if tensor.requires_grad)
    other = sum(tensor.nbytes for tensor in unique) - adapters - experts
    return Account(
        matrices=matrices,
        in_4bit=in_4bit,
        experts=experts,
        scales=sum(scales.values()),
        adapters=adapters,
        other=other,
    )


def _weights(name: str, module: Experts4bit) -> Iterator[Any]:
    """The matrix of every expert, each found to be in four bits.

    Raises:
        IntegrityError: one is missing, of another shape, or in another form.
    """
    for projection, shape in module.shapes.items():
        linears = getattr(module, projection)
        if len(linears) != module.num_experts:
            raise IntegrityError(
                f"{len(linears)} of {module.num_experts} experts are there", where=f"{name}.{projection}"
            )
        for expert, linear in enumerate(linears):
            weight: Any = linear.weight
            state = getattr(weight, "quant_state", None)
            packed = weight.dtype == torch.uint8 and weight.numel() == -(-shape[0] * shape[1] // 2)
            if state is None or not packed or tuple(state.shape) != shape:
                raise IntegrityError(
                    f"this expert was not quantised: {weight.dtype} {list(weight.shape)}",
                    where=f"{name}.{projection}.{expert}",
                )
            yield weight


def _scales(state: Any) -> Iterator[torch.Tensor]:
    """The tensors of a `QuantState`, its own and those of the quantised scales."""
    for value in vars(state).values():
        if isinstance(value, torch.Tensor):
            yield value
    if state.state2 is not None:
        yield from _scales(state.state2)
