"""What is known of a checkpoint once its headers are read, and how a problem with it is told."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from gates.errors import UsageError
from registry.families import Architecture, Part, Spec
from registry.families.parts import SCALE_SUFFIX
from registry.manifests import Shape
from registry.tensors import Tensor

FP8_BLOCK = "fp8-block"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with a file, or with one tensor in it, and what should be there instead."""

    file: str
    what: str
    expected: str | None = None

    def __str__(self) -> str:
        return f"{self.file}: {self.what}" + (f" (expected: {self.expected})" if self.expected else "")


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What config.json states beside what the headers hold. `block` is None for a checkpoint that is not quantised."""

    architecture: Architecture
    tensors: dict[str, Tensor]
    block: tuple[int, int] | None

    @cached_property
    def parts(self) -> dict[str, Part | None]:
        """What every tensor is, the scales of quantised ones left out."""
        return {name: spec.part if spec else None for name, spec in self.specs.items()}

    @cached_property
    def specs(self) -> dict[str, Spec | None]:
        names = (name for name in self.tensors if not (self.block and is_scale(name)))
        return {name: self.architecture.spec(name) for name in names}

    @cached_property
    def has_mtp(self) -> bool:
        return any(part.mtp for part in self.parts.values() if part)

    @property
    def kept(self) -> list[str]:
        """modules_to_not_convert."""
        stated = self.architecture.config.get("quantization_config") or {}
        return list(stated.get("modules_to_not_convert") or [])

    def shape(self) -> Shape:
        return Shape(
            family=self.architecture.family.model_type,
            layers=self.architecture.layers,
            experts=self.architecture.experts,
            top_k=self.architecture.top_k,
            quantization=FP8_BLOCK if self.block else None,
            tensor_bytes=sum(tensor.size for tensor in self.tensors.values()),
        )

    def problem(self, name: str, what: str, expected: str | None = None) -> Problem:
        return Problem(self.tensors[name].file.name, f"tensor {name}: {what}", expected)


def facts_of(architecture: Architecture, tensors: dict[str, Tensor], block: tuple[int, int] | None) -> Facts:
    """
    Raises:
        UsageError: config.json states an absurd number of layers.
    """
    if architecture.layers > len(tensors):  # what follows would be as long as the number is large
        raise UsageError(f"num_hidden_layers is {architecture.layers}, but there are only {len(tensors)} tensors")
    return Facts(architecture=architecture, tensors=tensors, block=block)


def is_scale(name: str) -> bool:
    return name.endswith(SCALE_SUFFIX)
