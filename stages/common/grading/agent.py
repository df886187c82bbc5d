"""A task for somebody with tools: the right calls, no others, and an answer that says what is to be known.

An item gives the tools, what they answer (`mocks`), and what is expected. It is worth 2 points: 2 for a conversation
that is as expected, 1 for one that is so by the looser terms of `partly`, else 0. A conversation that is still calling
tools when its turns run out has no answer and gets 0.

Arguments are compared as JSON, so that 1, 1.0, "1" and true are four things. Where more than one value is right, an
argument is written as an object with one of these keys:

    $any: […]           any one of these
    $matches: […]       a text in which each of these regular expressions is found, read loosely (wording.py)
    $unordered: […]     a list of these, in any order
    $optional: …        this, or the argument is left out
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations
from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from gates.strict_yaml import Strict
from stages.common.grading import items, wording
from stages.common.grading.answers import Answer, Call, Message, same, with_results
from stages.common.grading.items import Grade, Json, Text
from stages.common.grading.wording import Pattern

VERSION = 1

UNKNOWN = {"error": "nothing is known for these arguments"}
"""What a tool answers where no mock fits."""


class Wanted(Strict):
    """A call; without `arguments` any will do."""

    name: Text
    arguments: Json | None = None

    @field_validator("arguments")
    @classmethod
    def _readable(cls, value: Json | None) -> Json | None:
        _check(value)
        return value


class Mock(Strict):
    """What a tool answers to calls with these arguments; others that a call has are not looked at.

    The first mock that fits a call answers it: with the first of its `results`, the next time with the second, and
    with the last from then on.
    """

    tool: Text
    when: Json = Field(default_factory=dict)
    results: Annotated[list[Any], Field(min_length=1)]

    @field_validator("when")
    @classmethod
    def _readable(cls, value: Json) -> Json:
        _check(value)
        return value


Steps = list[Annotated[list[Wanted], Field(min_length=1)]]
"""One step after the other; the calls of one step in any order, in one turn or in several."""
Also = list[Wanted]
"""Calls that are forgiven, wherever and however often they are made."""


class Partly(Strict):
    """What is looser where only one point is at stake; the rest is as for two."""

    steps: Steps | None = None
    also: Also | None = None
    says: list[Pattern] | None = None
    says_not: list[Pattern] | None = None


class Expected(Strict):
    """These calls and no others, then an answer that says all of `says` and nothing of `says_not`."""

    steps: Steps = Field(default_factory=list)
    also: Also = Field(default_factory=list)
    says: list[Pattern] = Field(default_factory=list)
    says_not: list[Pattern] = Field(default_factory=list)
    partly: Partly | None = None

    @property
    def loosened(self) -> Expected | None:
        """What earns one point."""
        if self.partly is None:
            return None
        given = {name: value for name, value in self.partly if value is not None}
        return self.model_copy(update={**given, "partly": None})

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        for each in (self, self.loosened):
            if each is not None and not each.steps and not each.says:
                raise ValueError("a conversation in which nothing is done and nothing said would do")
        return self


class Item(items.Item):
    tools: Annotated[list[Json], Field(min_length=1)]
    mocks: list[Mock] = Field(default_factory=list)
    expected: Expected

    @property
    def of(self) -> float:
        return 2.0

    @model_validator(mode="after")
    def _names_its_tools(self) -> Self:
        try:
            offered = {tool["function"]["name"] for tool in self.tools}
        except (KeyError, TypeError):
            raise ValueError("a tool is {type: function, function: {name, description, parameters}}") from None
        terms = [each for each in (self.expected, self.expected.loosened) if each is not None]
        named = {wanted.name for each in terms for step in each.steps for wanted in step}
        named |= {wanted.name for each in terms for wanted in each.also}
        if unknown := (named | {mock.tool for mock in self.mocks}) - offered:
            raise ValueError(f"{', '.join(sorted(unknown))} is not among the tools")
        return self


def grade(item: Item, answers: Sequence[Answer], results: Mapping[str, Any]) -> Grade:  # noqa: ARG001 - nothing is run
    fault = _fault(item.expected, answers)
    if fault is None:
        return Grade(2)
    loosened = item.expected.loosened
    return Grade(1 if loosened is not None and _fault(loosened, answers) is None else 0, detail=fault)


def reply(item: Item, answers: Sequence[Answer]) -> list[Message] | None:
    """The tools' answers; None where the model called none."""
    calls = answers[-1].calls
    if not calls:
        return None
    told = list(_told(item.mocks, [call for answer in answers for call in answer.calls]))[-len(calls) :]
    return with_results(answers, [each if isinstance(each, str) else json.dumps(each) for each in told])


def _told(mocks: Sequence[Mock], calls: Sequence[Call]) -> Iterator[Any]:
    """The result of each call, in turn."""
    used = [0] * len(mocks)
    for call in calls:
        number = next((number for number, mock in enumerate(mocks) if _answers(mock, call)), None)
        if number is None:
            yield UNKNOWN
        else:
            results = mocks[number].results
            yield results[min(used[number], len(results) - 1)]
            used[number] += 1


def _answers(mock: Mock, call: Call) -> bool:
    given = {key: value for key, value in call.arguments.items() if key in mock.when}
    return call.name == mock.tool and fits(mock.when, given)


def _fault(expected: Expected, answers: Sequence[Answer]) -> str | None:
    """Why the conversation is not as expected; None if it is."""
    if answers[-1].calls:
        return "its turns ran out before it answered"
    calls = [call for answer in answers for call in answer.calls]
    if not _made(expected, calls):
        return f"the calls made are not those expected: {', '.join(call.name for call in calls) or 'none'}"
    for pattern in expected.says:
        if not wording.says(pattern, answers[-1].content):
            return f"the answer does not say {pattern}"
    for pattern in expected.says_not:
        if wording.says(pattern, answers[-1].content):
            return f"the answer says {pattern}"
    return None


def _made(expected: Expected, calls: Sequence[Call]) -> bool:
    """Whether the calls are those of the steps, in their order, and none besides that is not forgiven.

    A call may be of more than one use. So what is followed is every state that the calls so far can have led to: a
    step, and which of its calls are still to come.
    """
    steps = expected.steps
    start = frozenset({(0, frozenset(range(len(steps[0]))) if steps else frozenset[int]())})
    states = start
    for call in calls:
        after: set[tuple[int, frozenset[int]]] = set()
        for step, left in states:
            if any(_is(wanted, call) for wanted in expected.also):
                after.add((step, left))
            for number in left:
                if _is(steps[step][number], call):
                    after.add(_next(steps, step, left - {number}))
        states = frozenset(after)
    return (len(steps), frozenset[int]()) in states


def _next(steps: Steps, step: int, left: frozenset[int]) -> tuple[int, frozenset[int]]:
    if left:
        return step, left
    step += 1
    return step, frozenset(range(len(steps[step]))) if step < len(steps) else frozenset()


def _is(wanted: Wanted, call: Call) -> bool:
    return call.name == wanted.name and (wanted.arguments is None or fits(wanted.arguments, call.arguments))


def fits(wanted: Any, value: Any) -> bool:
    """Whether a JSON value is as `wanted`, which is JSON with the keys of this module's docstring."""
    match _special(wanted):
        case "$any", choices:
            return any(fits(choice, value) for choice in choices)
        case "$matches", patterns:
            return isinstance(value, str) and all(wording.says(pattern, value) for pattern in patterns)
        case "$unordered", elements:
            if not isinstance(value, list) or len(value) != len(elements):
                return False
            return any(all(map(fits, order, value)) for order in permutations(elements))
        case "$optional", inner:
            return fits(inner, value)
    if isinstance(wanted, dict) and isinstance(value, dict):
        missing = wanted.keys() - value.keys()
        return (
            value.keys() <= wanted.keys()
            and all((_special(wanted[key]) or ("", None))[0] == "$optional" for key in missing)
            and all(fits(wanted[key], each) for key, each in value.items())
        )
    if isinstance(wanted, list) and isinstance(value, list):
        return len(wanted) == len(value) and all(map(fits, wanted, value))
    return same(wanted, value)


def _special(wanted: Any) -> tuple[str, Any] | None:
    if isinstance(wanted, dict) and len(wanted) == 1:
        ((key, value),) = wanted.items()
        if key.startswith("$"):
            return key, value
    return None


_MOST_UNORDERED = 6
"""Their orders are tried one by one."""


def _check(wanted: Any) -> None:
    """Raises ValueError where a key with $ is unknown, stands beside others, or holds what it cannot."""
    if isinstance(wanted, list):
        for each in wanted:
            _check(each)
    if not isinstance(wanted, dict):
        return
    for key, value in wanted.items():
        if key.startswith("$"):
            if len(wanted) > 1 or key not in ("$any", "$matches", "$unordered", "$optional"):
                raise ValueError(f"{key} is not one of $any, $matches, $unordered and $optional, alone in its object")
            if key != "$optional" and not (isinstance(value, list) and value):
                raise ValueError(f"{key} needs a list")
            if key == "$unordered" and len(value) > _MOST_UNORDERED:
                raise ValueError(f"{key} takes at most {_MOST_UNORDERED} elements")
            if key == "$matches":
                for pattern in value:
                    wording.compiles(pattern)
                continue
        _check(value)
