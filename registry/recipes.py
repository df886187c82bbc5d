"""Recipes and mixes: the YAML that says how candidates are made.

A recipe is a line of steps in an order that makes sense: prune, then quantise (quantised weights are never pruned),
with evaluations and gates between. The last candidate made carries the recipe's name; one on the way is called after
its step, such as `v7b.prune`.
"""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from gates.errors import UsageError
from gates.records import Name
from gates.strict_yaml import Strict, parse

Criterion = Literal["reap", "random"]

Whole = Annotated[int, Field(strict=True)]
"""A whole number, and neither `true` nor a text that looks like one."""
Exact = Annotated[Decimal, Field(decimal_places=12)]
"""A decimal that is kept as it is written."""


class Prune(Strict):
    """Remove experts: of E in each layer ceil(E·(1 - compression)) stay."""

    compression: Annotated[Exact, Field(gt=0, lt=1)]
    mix: str
    criterion: Criterion = "reap"
    renormalize_router: bool | None = None
    """Whether the score uses router weights renormalised over the chosen top-k; None does as the model does. It changes
    the score alone, never the forward pass."""
    sequence_length: Annotated[Whole, Field(ge=8)] = 2048
    seed: Annotated[Whole, Field(ge=0)] = 0


class Quantize(Strict):
    format: Literal["fp8-block"] = "fp8-block"


class Evaluate(Strict):
    """Ask the candidate every item of these packs."""

    packs: Annotated[list[str], Field(min_length=1)]
    engine: Literal["embedded", "vllm"] | None = None
    """None leaves the choice to SLUICE_ENGINE, and is `embedded` without it."""
    tool_parser: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")] = "hermes"
    """How the model writes a tool call, as vLLM's --tool-call-parser has it; `none` switches the parser off."""
    reasoning_parser: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")] = "qwen3"
    server_flags: dict[Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]*$")], bool | int | Decimal | str] = Field(
        default_factory=dict
    )
    """Further flags of `vllm serve`, without the dashes, such as {max-model-len: 32768}."""
    repeats: Annotated[Whole, Field(ge=1)] = 1
    temperature: Annotated[Exact, Field(ge=0, le=2)] = Decimal(0)
    thinking: bool = True

    @model_validator(mode="after")
    def _repeats_need_sampling(self) -> Self:
        if self.repeats > 1 and self.temperature == 0:
            raise ValueError("repeats at temperature 0 ask the same question for the same answer: set a temperature")
        return self


class Gate(Strict):
    policy: str
    baseline: str | None = None
    """A candidate, a channel, or nothing where the policy compares with nothing."""


class Step(Strict):
    """Exactly one of the kinds."""

    prune: Prune | None = None
    quantize: Quantize | None = None
    evaluate: Evaluate | None = None
    gate: Gate | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if len(self.model_fields_set) != 1 or self.settings is None:
            raise ValueError("a step is one of: " + ", ".join(type(self).model_fields))
        return self

    @property
    def kind(self) -> str:
        return next(iter(self.model_fields_set))

    @property
    def settings(self) -> Any:
        return getattr(self, self.kind)


MAKES = ("prune", "quantize")
"""The kinds that make a candidate, in the only order that is allowed."""


class Recipe(Strict):
    name: Name
    parent: Name
    steps: Annotated[list[Step], Field(min_length=1)]

    @model_validator(mode="after")
    def _order(self) -> Self:
        made = [step.kind for step in self.steps if step.kind in MAKES]
        for kind in MAKES:
            if made.count(kind) > 1:
                raise ValueError(f"steps: {kind} stands twice; one recipe does each once")
        if made != sorted(made, key=MAKES.index):
            raise ValueError(f"steps: {' then '.join(made)} cannot be: quantised weights are not pruned")
        if self.name == self.parent and made:
            raise ValueError("name: a recipe cannot make its own parent")
        return self

    def candidate_of(self, number: int) -> str:
        """The candidate that step `number` (from 0) makes, or works on if it makes none."""
        making = [index for index, step in enumerate(self.steps) if step.kind in MAKES]
        done = [index for index in making if index <= number]
        if not done:
            return self.parent
        return self.name if done[-1] == making[-1] else f"{self.name}.{self.steps[done[-1]].kind}"

    def input_of(self, number: int) -> str:
        """The candidate that step `number` starts from."""
        return self.candidate_of(number - 1) if number else self.parent


class Dataset(Strict):
    """So many rows of one dataset: a JSONL file of chats, its path relative to the project's folder."""

    path: str
    count: Annotated[Whole, Field(ge=1)]


class Mix(Strict):
    name: Name
    datasets: Annotated[list[Dataset], Field(min_length=1)]
    seed: Annotated[Whole, Field(ge=0)] = 0


def read_recipe(path: Path) -> Recipe:
    return parse(read_text(path, "recipe"), Recipe, where=str(path))


def read_mix(path: Path) -> Mix:
    return parse(read_text(path, "mix"), Mix, where=str(path))


def read_text(path: Path, kind: str) -> str:
    """
    Raises:
        UsageError: there is no such file, or it is not text.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise UsageError(
            f"the {kind} cannot be read: {reason}", where=str(path), remedy="paths are relative to the project's folder"
        ) from None


def experts_kept(experts: int, compression: Decimal, *, top_k: int, groups: int = 1) -> int:
    """How many of `experts` stay: ceil(E·(1 - c)), exactly, up to a multiple of `groups`.

    Raises:
        UsageError: nothing would be removed, or fewer than `top_k` would stay.
    """
    kept = ceil(experts * (1 - Fraction(compression)))
    kept = -(-kept // groups) * groups
    if kept < top_k:
        raise UsageError(
            f"compression {compression} leaves {kept} of {experts} experts, but each token is routed to {top_k}",
            remedy=f"choose at most {largest_compression(experts, top_k, groups)}",
        )
    if kept >= experts:
        raise UsageError(
            f"compression {compression} of {experts} experts removes none",
            remedy=f"choose at least {_rounded_up(Fraction(groups, experts))}",
        )
    return kept


def largest_compression(experts: int, top_k: int, groups: int) -> str:
    least = -(-top_k // groups) * groups
    return _rounded_up(Fraction(experts - least, experts))


def _rounded_up(compression: Fraction) -> str:
    """To four digits. A little more still keeps as many experts, because their number is rounded up too."""
    return f"{ceil(compression * 10_000) / 10_000:.4f}"
