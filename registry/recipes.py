"""Recipes and mixes: the YAML that says how candidates are made.

A recipe is a line of steps in an order that makes sense: prune, then train, then quantise (quantised weights are
neither pruned nor trained), with evaluations, gates and promotions between. The last candidate made carries the
recipe's name; one on the way is called after its step, such as `v7b.prune`.
"""

from __future__ import annotations

import errno
from decimal import Decimal
from fractions import Fraction
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from gates.errors import UsageError
from gates.records import Name
from gates.strict_yaml import Strict, parse
from registry.sizes import parse_memory, parse_size

Criterion = Literal["reap", "frequency", "soft_counting", "activation_norm", "random"]
"""What an expert is scored by; stages/prune/criteria.py has the formulas."""

Target = Literal["attention", "shared_expert", "router"]
"""The parts of a layer that can be trained; experts are frozen."""

Whole = Annotated[int, Field(strict=True)]
"""A whole number, and neither `true` nor a text that looks like one."""
Exact = Annotated[Decimal, Field(decimal_places=12)]
"""A decimal that is kept as it is written."""
Size = Annotated[int, Field(ge=1), BeforeValidator(parse_size)]
"""Bytes, written with a unit."""
Memory = Annotated[int, Field(ge=1), BeforeValidator(parse_memory)]
"""Bytes of a card; in GiB where no unit is written, as --card takes them."""


class Prune(Strict):
    """Remove experts: of E in each layer ceil(E·(1 - compression)) stay."""

    compression: Annotated[Exact, Field(gt=0, lt=1)]
    mix: str
    criterion: Criterion = "reap"
    renormalize_router: bool | None = None
    """Whether the score uses router weights renormalised over the chosen top-k; None does as the model does. It changes
    the score alone, never the forward pass."""
    mtp: Literal["prune", "drop"] = "prune"
    """What becomes of the multi-token-prediction layers, where the checkpoint has them: pruned by their own scores, or
    left out."""
    stacked: bool = False
    """Whether a candidate that is pruned already may be pruned again."""
    sequence_length: Annotated[Whole, Field(ge=8)] = 2048
    packing: bool = False
    """Whether whole rows share a sequence, as many as fit; each then sees those before it."""
    seed: Annotated[Whole, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _renormalize_what_is_used(self) -> Self:
        if self.renormalize_router is not None and self.criterion not in ("reap", "soft_counting"):
            raise ValueError(f"renormalize_router: {self.criterion} does not look at the router's weights")
        return self


class Lora(Strict):
    """The adapters that are trained: to a matrix W is added alpha/rank · B·A, and both are of this rank."""

    rank: Annotated[Whole, Field(ge=1)] = 16
    alpha: Annotated[Whole, Field(ge=1)] = 32
    dropout: Annotated[Exact, Field(ge=0, lt=1)] = Decimal(0)
    targets: Annotated[tuple[Target, ...], Field(min_length=1)] | None = None
    """What gets adapters; None is everything of these that the family has."""

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if self.targets is not None and len(set(self.targets)) != len(self.targets):
            raise ValueError("targets: one stands twice")
        return self


class Train(Strict):
    """Fine-tune adapters over frozen weights, on what assistants say in the chats of a mix, and merge them.

    The rate falls along half a cosine from `learning_rate` to 0 over all steps, after a rise over the first `warmup`.
    """

    mix: str
    reference: str
    """A mix of held-out answers: the model is measured on them, as it is trained and as it would ship."""
    experts: Literal["nf4", "bf16"] = "nf4"
    """In what the frozen experts are held while training. With nf4 a large model fits; what ships is BF16 all the
    same, and the adapters can learn the noise of the 4 bits: that is what is measured."""
    double_quantization: bool = True
    """Whether the scales of NF4 are quantised too: 0.37 bits a number less."""
    lora: Lora = Field(default_factory=Lora)
    epochs: Annotated[Exact, Field(gt=0)] = Decimal(1)
    max_steps: Annotated[Whole, Field(ge=1)] | None = None
    """Steps of the optimiser; None is what `epochs` come to."""
    learning_rate: Annotated[Exact, Field(gt=0)] = Decimal("0.0001")
    warmup: Annotated[Exact, Field(ge=0, lt=1)] = Decimal("0.03")
    """The part of all steps in which the learning rate rises to its height."""
    batch_size: Annotated[Whole, Field(ge=1)] = 1
    """Sequences that go through the model at a time."""
    gradient_accumulation: Annotated[Whole, Field(ge=1)] = 8
    """How many such batches make a step."""
    sequence_length: Annotated[Whole, Field(ge=8)] = 2048
    packing: bool = True
    """Whether whole chats share a sequence, as many as fit; none sees another."""
    seed: Annotated[Whole, Field(ge=0, lt=2**32)] = 0
    """As large as numpy, which the trainer seeds too, takes it."""
    evaluate_every: Annotated[Whole, Field(ge=1)] = 50
    """Steps between two looks at the model as it would ship; what is lost when a run is killed is at most so many."""
    limit_gap: Annotated[Exact, Field(ge=0)] = Decimal("0.1")
    """In nats a token: training stops when the loss of the model as it would ship is more than this above that of the
    model as it is trained."""
    tolerance: Annotated[Exact, Field(ge=0)] = Decimal("0.01")
    """In nats a token: training stops when the loss of the model as it would ship is more than this above where it
    began."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.max_steps is not None and "epochs" in self.model_fields_set:
            raise ValueError("epochs and max_steps both say how long it trains: state one")
        return self


class Quantize(Strict):
    """Write the weights in fewer bits."""

    format: Literal["fp8-block"] = "fp8-block"
    shard_size: Size = 4 * 1024**3
    """Of the files that hold the tensors: 4 GiB, 500 MiB, 5 GB."""
    card: Memory | None = None
    """The memory of the card that the model is for: what is larger is refused before it is written."""


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
    thinking: bool | Literal["both"] = True
    """Whether the model may reason before it answers; `both` takes evidence of each pack with and without."""

    @model_validator(mode="after")
    def _repeats_need_sampling(self) -> Self:
        if self.repeats > 1 and self.temperature == 0:
            raise ValueError("repeats at temperature 0 ask the same question for the same answer: set a temperature")
        return self

    @model_validator(mode="after")
    def _each_once(self) -> Self:
        if len(set(self.packs)) != len(self.packs):
            raise ValueError("packs: one stands twice; repeats asks it again")
        return self


class Gate(Strict):
    policy: str
    baseline: str | None = None
    """A candidate, a channel, or nothing where the policy compares with nothing."""


class Promote(Strict):
    """Serve what passed the gate before this step, under that gate's policy."""

    channel: Name = "best"


class Step(Strict):
    """Exactly one of the kinds."""

    prune: Prune | None = None
    train: Train | None = None
    quantize: Quantize | None = None
    evaluate: Evaluate | None = None
    gate: Gate | None = None
    promote: Promote | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if len(self.model_fields_set) != 1:
            raise ValueError("a step is one of: " + ", ".join(type(self).model_fields))
        if self.settings is None:
            raise ValueError(f"{self.kind}: its settings are missing; where all are as they come, write {{}}")
        return self

    @property
    def kind(self) -> str:
        return next(iter(self.model_fields_set))

    @property
    def settings(self) -> Any:
        return getattr(self, self.kind)


MAKES = ("prune", "train", "quantize")
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
            raise ValueError(f"steps: {' then '.join(made)} cannot be: the order is {', '.join(MAKES)}")
        if self.name == self.parent and made:
            raise ValueError("name: a recipe cannot make its own parent")
        for number, step in enumerate(self.steps):
            if step.promote is not None and self._gates_before(number) == []:
                raise ValueError(
                    f"steps[{number}]: a gate has to judge {self.candidate_of(number)} before this promotes it"
                )
        return self

    def candidate_of(self, number: int) -> str:
        """The candidate that step `number` (from 0) makes, or works on if it makes none."""
        making = [index for index, step in enumerate(self.steps) if step.kind in MAKES]
        done = [index for index in making if index <= number]
        if not done:
            return self.parent
        return self.name if done[-1] == making[-1] else f"{self.name}.{self.steps[done[-1]].kind}"

    def gate_before(self, number: int) -> Gate:
        """The last gate before step `number`, a promotion, on the same candidate."""
        return self._gates_before(number)[-1]

    def _gates_before(self, number: int) -> list[Gate]:
        name = self.candidate_of(number)
        before = enumerate(self.steps[:number])
        return [step.gate for index, step in before if step.gate is not None and self.candidate_of(index) == name]

    def input_of(self, number: int) -> str:
        """The candidate that step `number` starts from."""
        return self.candidate_of(number - 1) if number else self.parent


class Dataset(Strict):
    """So many rows of one dataset: a local file, or a dataset of the Hub.

    `hub: null` stands where the id is not known for sure; such a mix is read, and refused when its rows are wanted.
    """

    path: str | None = None
    """A JSONL or Parquet file, relative to the project's folder."""
    hub: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+/[A-Za-z0-9._-]+$")] | None = None
    """The id on the Hugging Face Hub: org/name."""
    revision: str | None = None
    """A commit, a branch or a tag there; None is its main branch."""
    config: str | None = None
    """Which of a dataset's configurations, where there are several."""
    split: str = "train"
    gated: bool = False
    """Whether its publisher asks for an account that has accepted terms."""
    adapter: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")] = "chat"
    """What turns its rows into chats: a module of stages/common/calibration/adapters."""
    count: Annotated[Whole, Field(ge=1)]
    pool: Annotated[Whole, Field(ge=1)] | None = None
    """Rows are drawn from the first so many alone: for what is too large to be read to the end."""
    skip: tuple[Annotated[Whole, Field(ge=1)], ...] = ()
    """Rows to leave out, by number: single ones that are broken where they were published."""

    @model_validator(mode="after")
    def _one_place(self) -> Self:
        if (self.path is not None) + ("hub" in self.model_fields_set) != 1:
            raise ValueError("a dataset is either path: FILE or hub: ORG/NAME (null, if the id is not known)")
        if self.path is not None and (stray := self.model_fields_set & {"revision", "config", "split", "gated"}):
            raise ValueError(f"{', '.join(sorted(stray))}: a local file has none")
        if self.pool is not None and self.pool < self.count:
            raise ValueError(f"pool: {self.count} rows cannot be drawn from {self.pool}")
        return self


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
    except UnicodeDecodeError as error:
        what = f"the {kind} cannot be read: it is not UTF-8 text (byte {error.start + 1})"
        raise UsageError(what, where=str(path), remedy="save it as UTF-8") from None
    except OSError as error:
        remedies = {
            errno.ENOENT: "paths are relative to the project's folder",
            errno.EISDIR: "name one of its files",
        }
        remedy = remedies.get(error.errno or 0, f"name a {kind} that can be read")
        raise UsageError(f"the {kind} cannot be read: {error.strerror}", where=str(path), remedy=remedy) from None


def experts_kept(
    experts: int, compression: Decimal, *, top_k: int, groups: int = 1, groups_used: int | None = None
) -> int:
    """How many of `experts` stay: ceil(E·(1 - c)), exactly, up to a multiple of `groups`.

    Args:
        groups: n_group, the equal groups that a router chooses from first.
        groups_used: topk_group, how many of them a token's experts come from; None is all, or a router without groups.

    Raises:
        UsageError: nothing would be removed, or fewer would stay than the router needs for `top_k`.
    """
    kept = ceil(experts * (1 - Fraction(compression)))
    kept = -(-kept // groups) * groups
    grouped = groups > 1 or groups_used is not None
    least = _least_experts(top_k, groups, groups_used or groups) if grouped else top_k
    if kept < least:
        needs = f"each token is routed to {top_k}"
        if grouped:
            needs += f" from {groups_used or groups} of {groups} groups, which takes {least}"
        raise UsageError(
            f"compression {compression} leaves {kept} of {experts} experts, but {needs}",
            remedy=f"choose at most {_rounded_up(Fraction(experts - least, experts))}"
            if least < experts
            else "this model has no expert to spare",
        )
    if kept >= experts:
        raise UsageError(
            f"compression {compression} of {experts} experts removes none",
            remedy=f"choose at least {_rounded_up(Fraction(groups, experts))}",
        )
    return kept


def _least_experts(top_k: int, groups: int, groups_used: int) -> int:
    """A group is ranked by its best two experts (DeepSeek-V3), be it the only one, so two stay in each."""
    return groups * max(-(-top_k // groups_used), 2)


def _rounded_up(compression: Fraction) -> str:
    """To four digits. A little more still keeps as many experts, because their number is rounded up too."""
    return f"{ceil(compression * 10_000) / 10_000:.4f}"
