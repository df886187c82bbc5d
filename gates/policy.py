"""Policies: the YAML that says what a candidate must show, and against what.

    name: agentic
    gates:                                        # judged in this order; the first that fails names the verdict
      - name: Toolcall                            # … as FailToolcall
        rules:                                    # all of a gate's rules must hold
          - drop: {pack: toolcall-15, at_most: 5}

Scores are percentages: 100 · points / of. A limit is exact as written, and a score that equals its limit holds.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from gates import canonical
from gates.records import Name
from gates.strict_yaml import Strict, parse


def parse_policy(text: str, where: str) -> Policy:
    """Reads a policy, as a person wrote it or as `Policy.to_bytes` did.

    Args:
        where: the file's name, for messages.

    Raises:
        UsageError: not a policy; all complaints, each with its line and field.
    """
    return parse(text, Policy, where=where)


def explain(policy: Policy) -> list[str]:
    """What the policy demands, a sentence for each rule; and what it does where the evidence does not decide."""
    sentences = [f"{gate.name}: {rule.sentence()}" for gate in policy.gates for rule in gate.rules]
    if policy.inconclusive.means == "repeat":
        sentences.append(f"What is not decided is asked again, up to {policy.inconclusive.repeats} runs in all")
    if policy.inconclusive.means == "waiver":
        sentences.append("A person may let pass what is not decided, with a reason and an end (registry waive)")
    if policy.rank_by is not None:
        sentences.append(f"Of those that pass, the best has the highest mean score on {_list(policy.rank_by)}")
    return sentences


def _number(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a number is needed")  # noqa: TRY004 - pydantic reports a ValueError as the field's complaint
    return value


def _printable(text: str) -> str:
    if not text.isprintable() or text != text.strip():
        raise ValueError("one line of text is needed, without spaces around it")
    return text


Points = Annotated[Decimal, BeforeValidator(_number), Field(max_digits=9, decimal_places=6)]
"""Points on the scale from 0 to 100."""

Category = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_printable)]

Packs = Annotated[tuple[Name, ...], Field(min_length=1)]


class _OfPacks(Strict):
    """A rule over one pack, or over several (`pack: a` means `packs: [a]`)."""

    pack: Name | None = None
    packs: Packs | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.pack is None) == (self.packs is None):
            raise ValueError("give either pack or packs")
        if len(set(self.names)) != len(self.names):
            raise ValueError("packs: a pack stands twice")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        return self.packs or ((self.pack,) if self.pack else ())


class _Each(_OfPacks):
    """A rule that holds for each pack by itself, or for one category of each."""

    category: Category | None = None

    def _subject(self, verb: str) -> str:
        part = f", category {self.category}," if self.category is not None else ""
        return f"{_list(self.names)}{part} {verb}" + (" each" if len(self.names) > 1 else "")


class Floor(_Each):
    """The score is `at_least` so much."""

    at_least: Annotated[Points, Field(gt=0, le=100)]

    def sentence(self) -> str:
        return f"{self._subject('must')} score at least {plain(self.at_least)}"


class Drop(_Each):
    """The score is `at_most` so many points below the baseline's."""

    at_most: Annotated[Points, Field(ge=0, lt=100)]

    def sentence(self) -> str:
        return f"{self._subject('may')} drop at most {_amount(self.at_most)} below the baseline"


class Gain(_OfPacks):
    """The differences to the baseline, averaged over the packs, are `at_least` so many points."""

    at_least: Annotated[Points, Field(ge=0, le=100)]

    def sentence(self) -> str:
        on_average = " on average" if len(self.names) > 1 else ""
        return f"{_list(self.names)} must gain at least {_amount(self.at_least)} on the baseline{on_average}"


class Paired(_OfPacks):
    """On the same items the candidate is at most `margin` points worse than the baseline, beyond what chance does.

    Three-way: passed when the whole interval of the difference lies above -margin; failed when the loss is not chance
    and larger than the margin; undecided otherwise. It needs the items of both.
    """

    margin: Annotated[Points, Field(gt=0, lt=100)]

    def sentence(self) -> str:
        on_average = ", on average" if len(self.names) > 1 else ""
        return (
            f"{_list(self.names)}: shown on the same items to be at most {_amount(self.margin)} "
            f"below the baseline{on_average}"
        )


class Guard(_OfPacks):
    """Each of the items named gets `at_least` so much of its points, over all runs."""

    items: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    at_least: Annotated[Points, Field(gt=0, le=100)] = Decimal(100)

    @model_validator(mode="after")
    def _of_one_pack(self) -> Self:
        if len(self.names) != 1:
            raise ValueError("items belong to one pack: give pack")
        return self

    def sentence(self) -> str:
        each = "each" if len(self.items) > 1 else "it"
        return (
            f"{_list(self.names)}, {_list(self.items)}: {each} must get at least {plain(self.at_least)} % of its points"
        )


Demand = Floor | Drop | Gain | Paired | Guard


class Rule(Strict):
    """Exactly one of the kinds."""

    floor: Floor | None = None
    drop: Drop | None = None
    gain: Gain | None = None
    paired: Paired | None = None
    guard: Guard | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if len(self._given()) != 1:
            raise ValueError("a rule is one of: " + ", ".join(type(self).model_fields))
        return self

    def _given(self) -> list[Demand]:
        kinds = (self.floor, self.drop, self.gain, self.paired, self.guard)
        return [kind for kind in kinds if kind is not None]

    @property
    def demand(self) -> Demand:
        return self._given()[0]

    def sentence(self) -> str:
        return self.demand.sentence()


class Gate(Strict):
    """Rules that belong together; a candidate that breaks one of them is called Fail<name>."""

    name: Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]*$", max_length=64)]
    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]


class Inconclusive(Strict):
    """What happens to a gate that the evidence does not decide.

    `block`: nothing passes before there is other evidence. `repeat`: the same, and the verdict asks for more runs, up
    to `repeats`. `waiver`: a person may let it pass, with a reason and a date on which that ends.
    """

    means: Literal["block", "repeat", "waiver"] = "block"
    repeats: Annotated[int, Field(strict=True, ge=2)] | None = None

    @model_validator(mode="after")
    def _repeats_where_they_mean_something(self) -> Self:
        if (self.means == "repeat") != (self.repeats is not None):
            raise ValueError("repeats belongs to `means: repeat`, which needs it")
        return self


class Policy(Strict):
    name: Name
    gates: Annotated[tuple[Gate, ...], Field(min_length=1)]
    inconclusive: Inconclusive = Inconclusive()
    rank_by: Packs | None = None
    """The packs whose mean score says which of the candidates that passed is the best (`promote --best`)."""

    @model_validator(mode="after")
    def _no_gate_twice(self) -> Self:
        names = [gate.name for gate in self.gates]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"gates: {name} stands twice")
        return self

    def to_bytes(self) -> bytes:
        """The policy as canonical JSON, which is itself a policy's text: what means the same has the same bytes."""
        plainly: dict[str, object] = {
            "name": self.name,
            "gates": [{"name": gate.name, "rules": [_plain_rule(rule) for rule in gate.rules]} for gate in self.gates],
        }
        # left out where it says nothing, so that older policies keep the digest that verdicts name them by
        if self.inconclusive != Inconclusive():
            plainly["inconclusive"] = self.inconclusive.model_dump(exclude_none=True)
        if self.rank_by is not None:
            plainly["rank_by"] = list(self.rank_by)
        return canonical.dumps(plainly)

    def identity(self) -> str:
        """The digest that names this policy; comments, order of keys and `5` or `5.0` make no difference."""
        return canonical.digest(self.to_bytes())

    def compared(self) -> tuple[str, ...]:
        """The packs that a rule compares with the baseline, each once, in the file's order."""
        demands = [rule.demand for gate in self.gates for rule in gate.rules]
        return tuple(dict.fromkeys(name for each in demands if compares(each) for name in each.names))


def compares(demand: Demand) -> bool:
    """Whether a rule needs a baseline."""
    return not isinstance(demand, Floor | Guard)


def kind(demand: Demand) -> str:
    """The word that a policy's file has for a rule."""
    return type(demand).__name__.lower()


def plain(number: Decimal) -> str:
    """A number in the one way that its value is written: 5 for 5, 5.0 and 5.00."""
    return format((number + 0).normalize(), "f")


def _plain_rule(rule: Rule) -> dict[str, dict[str, object]]:
    fields: dict[str, object] = {
        name: plain(value) if isinstance(value, Decimal) else value
        for name, value in rule.demand.model_dump(exclude_none=True).items()
        if name not in ("pack", "packs")
    }
    return {kind(rule.demand): fields | {"packs": list(rule.demand.names)}}


def _amount(points: Decimal) -> str:
    return "1 point" if points == 1 else f"{plain(points)} points"


def _list(names: tuple[str, ...]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
