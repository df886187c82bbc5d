"""The calls are those that were asked for, by the rules of the Berkeley Function Calling Leaderboard.

There are as many calls as expected, each matching another of the expected ones, in any order; where none is expected,
none. A call matches if it has all required arguments, no others than the possible ones, and of each a possible value;
one may be left out where "" is among its values. A value must be of the type that the tool states, or of the type of
the possible values; a whole number may stand for a decimal, and true is no number. Texts are compared without regard
to case, spaces and the marks ,./-_*^, an object by its keys with possible values for each, a list in its order.

That is the leaderboard's ast_checker for Python. Other than there, expected calls are paired with calls in whatever way
fits, and what holds for an argument holds inside of lists and objects too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gates.strict_yaml import Strict
from registry.published.bfcl import offered_name
from stages.common.grading import items
from stages.common.grading.answers import Answer, Call
from stages.common.grading.items import Grade, Json, Text

VERSION = 2


class Right(Strict):
    """A call that is expected: of each argument the possible values."""

    name: Text
    arguments: dict[str, list[Any]]


class Expected(Strict):
    calls: list[Right]


class Item(items.Item):
    tools: list[Json]
    expected: Expected


def grade(item: Item, answers: Sequence[Answer], results: Mapping[str, Any]) -> Grade:  # noqa: ARG001
    calls, wanted = answers[-1].calls, item.expected.calls
    if len(calls) != len(wanted):
        return Grade(0, detail=f"{len(calls)} calls, {len(wanted)} expected")
    schemas = {tool["function"]["name"]: tool["function"].get("parameters", {}) for tool in item.tools}
    fits = [[_matches(call, right, schemas.get(right.name, {})) for call in calls] for right in wanted]
    missing = _unpaired(fits)
    return Grade(1) if missing is None else Grade(0, detail=f"no call matches {wanted[missing].name}")


def _unpaired(fits: list[list[bool]]) -> int | None:
    """The first row that gets no column of its own; None if each row has one. (Kuhn's augmenting paths.)"""
    taken: dict[int, int] = {}

    def place(row: int, seen: set[int]) -> bool:
        for column, fit in enumerate(fits[row]):
            if fit and column not in seen:
                seen.add(column)
                if column not in taken or place(taken[column], seen):
                    taken[column] = row
                    return True
        return False

    return next((row for row in range(len(fits)) if not place(row, set())), None)


def _matches(call: Call, right: Right, schema: Json) -> bool:
    arguments = call.value
    if offered_name(call.name) != right.name or not isinstance(arguments, dict):
        return False
    properties = schema.get("properties", {})
    return (
        all(name in arguments for name in schema.get("required", ()))
        and all(name in properties and name in right.arguments for name in arguments)
        and all(name in arguments or "" in values for name, values in right.arguments.items())
        and all(_is_one(value, properties[name], right.arguments[name]) for name, value in arguments.items())
    )


def _is_one(value: Any, schema: Json, possible: list[Any]) -> bool:
    """Whether `value` is of the type that is stated and one of the possible values."""
    kind, usual = schema.get("type"), next((_kind(each) for each in possible if each != ""), None)
    if _kind(value) not in (kind, usual) and not (kind == "number" and _kind(value) == "integer"):
        return False
    inner = schema.get("items", {})
    if isinstance(value, list) and "type" in inner:
        lists = [each for each in possible if isinstance(each, list) and len(each) == len(value)]
        return any(all(_is_one(one, inner, [right]) for one, right in zip(value, each, strict=True)) for each in lists)
    return any(_equal(value, each) for each in possible)


def _equal(value: Any, right: Any) -> bool:
    """Whether `value` is the possible value `right`, in which an object's keys have lists of possible values."""
    if isinstance(value, bool) or isinstance(right, bool) or value is None or right is None:
        return value is right
    if isinstance(value, int | float) and isinstance(right, int | float):
        return value == right
    if isinstance(value, str) and isinstance(right, str):
        return _standard(value) == _standard(right)
    if isinstance(value, list) and isinstance(right, list):
        return len(value) == len(right) and all(map(_equal, value, right))
    if isinstance(value, dict) and isinstance(right, dict):
        return all(
            any(_equal(value[key], each) for each in _listed(values)) if key in value else "" in _listed(values)
            for key, values in right.items()
        ) and all(key in right for key in value)
    return False


def _listed(values: Any) -> list[Any]:
    return values if isinstance(values, list) else [values]


def _standard(text: str) -> str:
    return re.sub(r"[ ,./\-_*^]", "", text).lower().replace("'", '"')


def _kind(value: Any) -> str:
    """The name of a JSON value's type, as a schema has it."""
    for kind, name in _KINDS:
        if isinstance(value, kind):
            return name
    return "null"


_KINDS = (
    (bool, "boolean"),
    (int, "integer"),
    (float, "number"),
    (str, "string"),
    (list, "array"),
    (dict, "object"),
)
