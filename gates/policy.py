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
from typing import Annotated, Self

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
    """What the policy demands, a sentence for each rule."""
    return [f"{gate.name}: {rule.sentence()}" for gate in policy.gates for rule in gate.rules]


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


class Rule(Strict):
    """Exactly one of the kinds."""

    floor: Floor | None = None
    drop: Drop | None = None
    gain: Gain | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if len([kind for kind in (self.floor, self.drop, self.gain) if kind is not None]) != 1:
            raise ValueError("a rule is one of: " + ", ".join(type(self).model_fields))
        return self

    @property
    def demand(self) -> Floor | Drop | Gain:
        demand = self.floor or self.drop or self.gain
        assert demand is not None
        return demand

    def sentence(self) -> str:
        return self.demand.sentence()


class Gate(Strict):
    """Rules that belong together; a candidate that breaks one of them is called Fail<name>."""

    name: Annotated[str, Field(pattern=r"^[A-Z][A-Za-z0-9]*$", max_length=64)]
    rules: Annotated[tuple[Rule, ...], Field(min_length=1)]


class Policy(Strict):
    name: Name
    gates: Annotated[tuple[Gate, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _no_gate_twice(self) -> Self:
        names = [gate.name for gate in self.gates]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"gates: {name} stands twice")
        return self

    def to_bytes(self) -> bytes:
        """The policy as canonical JSON, which is itself a policy's text: what means the same has the same bytes."""
        return canonical.dumps(
            {
                "name": self.name,
                "gates": [
                    {"name": gate.name, "rules": [_plain_rule(rule) for rule in gate.rules]} for gate in self.gates
                ],
            }
        )

    def identity(self) -> str:
        """The digest that names this policy; comments, order of keys and `5` or `5.0` make no difference."""
        return canonical.digest(self.to_bytes())

    def compared(self) -> tuple[str, ...]:
        """The packs that a rule compares with the baseline, each once, in the file's order."""
        demands = [rule.demand for gate in self.gates for rule in gate.rules]
        return tuple(dict.fromkeys(name for each in demands if not isinstance(each, Floor) for name in each.names))


def plain(number: Decimal) -> str:
    """A number in the one way that its value is written: 5 for 5, 5.0 and 5.00."""
    return format((number + 0).normalize(), "f")


def _plain_rule(rule: Rule) -> dict[str, dict[str, object]]:
    fields: dict[str, object] = {
        name: plain(value) if isinstance(value, Decimal) else value
        for name, value in rule.demand.model_dump(exclude_none=True).items()
        if name not in ("pack", "packs")
    }
    return {type(rule.demand).__name__.lower(): fields | {"packs": list(rule.demand.names)}}


def _amount(points: Decimal) -> str:
    return "1 point" if points == 1 else f"{plain(points)} points"


def _list(names: tuple[str, ...]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
