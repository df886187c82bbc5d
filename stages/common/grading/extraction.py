"""A text becomes JSON of a given schema: the share of its atomic fields that are right.

    points = right fields / (fields that there are + fields that nobody asked for)

A field is right if value and JSON type are: "12" is no number and 0 is not false, though 12 and 12.0 are one number.
Texts must agree letter by letter; those that the item calls loose are read loosely (wording.py), in either case.
Lists of objects are matched by the field that the item names as their key, lists of values that it calls sets as sets,
others by position. Each field of an entry too many, or of an unknown key, counts as one that nobody asked for. A null
counts only beside a right field that is none, so that an answer of nulls earns nothing.

The answer is one JSON object, bare or in a fence. Where there are several, those in fences go before others, of those
the ones with the most keys of the schema, and of those the last.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from gates.strict_yaml import Strict
from stages.common.grading import items
from stages.common.grading.answers import JSON, Answer
from stages.common.grading.fences import blocks
from stages.common.grading.items import Grade, Json
from stages.common.grading.wording import loosely

VERSION = 2


class Expected(Strict):
    """The right answer, and how it is compared. Paths name fields by their keys ("parcels.to"), lists by their own."""

    answer: Annotated[Json, Field(min_length=1)]
    keys: Mapping[str, str] = Field(default_factory=dict)
    """For a list of objects, by its path, the field that tells its entries apart."""
    sets: tuple[str, ...] = ()
    """Lists of values whose order means nothing."""
    loose: tuple[str, ...] = ()
    """Texts, or lists of texts, whose case and typography are free."""

    @model_validator(mode="after")
    def _holds_together(self) -> Self:
        found = list(_walk(self.answer, ""))
        for path, key in self.keys.items():
            lists = [node for at, node in found if at == path and isinstance(node, list)]
            if not lists:
                raise ValueError(f"keys: there is no list {path}")
            for entries in lists:
                if not all(isinstance(entry, dict) and isinstance(entry.get(key), str | int) for entry in entries):
                    raise ValueError(f"keys: not every entry of {path} has a {key}")
                if len({entry[key] for entry in entries}) < len(entries):
                    raise ValueError(f"keys: two entries of {path} have the same {key}")
        for path in self.sets:
            if not any(at == path and isinstance(node, list) for at, node in found):
                raise ValueError(f"sets: there is no list {path}")
        for path in self.loose:
            if not any(at == path and isinstance(node, str) for at, node in found):
                raise ValueError(f"loose: there is no text {path}")
        if not any(node is not None for _, node in found if not isinstance(node, dict | list)):
            raise ValueError("answer: a field that is not null is needed")
        return self


class Item(items.Item):
    expected: Expected


def grade(item: Item, answers: Sequence[Answer], results: Mapping[str, Any]) -> Grade:  # noqa: ARG001 - nothing is run
    given = _object(answers[-1].content, item.expected.answer)
    if given is None:
        return Grade(0, detail="no JSON object")
    tally = _compared(item.expected, item.expected.answer, given, "")
    right = tally.values + (tally.nulls if tally.values else 0)
    fields = _fields(item.expected.answer)
    surplus = f", {tally.surplus} more than asked for" if tally.surplus else ""
    return Grade(right / (fields + tally.surplus), detail=f"{right} of {fields} fields{surplus}")


def _object(content: str, schema: Json) -> Json | None:
    """The JSON object that is meant as the answer: not one that an explanation quotes from it."""
    found = [value for block in blocks(content) for value in _objects(block.code)] or list(_objects(content))
    return max(reversed(found), key=lambda value: len(value.keys() & schema.keys()), default=None)


def _objects(text: str) -> Iterator[Json]:
    """The JSON objects in a text, whatever stands between them."""
    at, braces = text.find("{"), 0
    while at >= 0 and braces < _BRACES:
        try:
            value, end = JSON.raw_decode(text, at)
            yield value
        except (ValueError, RecursionError):
            end, braces = at + 1, braces + 1
        at = text.find("{", end)


_BRACES = 100
"""Braces that open no object, after which nobody looks further: each is tried up to the end of the text."""


@dataclass(frozen=True, slots=True)
class _Tally:
    """Right fields with a value, right nulls, and fields that nobody asked for."""

    values: int = 0
    nulls: int = 0
    surplus: int = 0

    def __add__(self, other: _Tally) -> _Tally:
        return _Tally(self.values + other.values, self.nulls + other.nulls, self.surplus + other.surplus)


def _compared(how: Expected, wanted: Any, given: Any, path: str) -> _Tally:
    if isinstance(wanted, dict | list) and type(given) is not type(wanted):
        return _Tally()
    if wanted in ({}, []):
        return _Tally(surplus=_fields(given)) if given else _Tally(values=1)
    if isinstance(wanted, dict):
        return _compared_objects(how, wanted, given, path)
    if isinstance(wanted, list):
        return _compared_lists(how, wanted, given, path)
    if wanted is None:
        return _Tally(nulls=given is None)
    return _Tally(values=_same(how, wanted, given, path))


def _compared_objects(how: Expected, wanted: Json, given: Json, path: str) -> _Tally:
    tally = _Tally(surplus=sum(_fields(value) for key, value in given.items() if key not in wanted))
    for key, value in wanted.items():
        if key in given:
            tally += _compared(how, value, given[key], _below(path, key))
    return tally


def _compared_lists(how: Expected, wanted: list[Any], given: list[Any], path: str) -> _Tally:
    tally, left = _Tally(), list(given)
    for each in wanted:
        at = _place(how, each, left, path)
        if at is not None:
            tally += _compared(how, each, left.pop(at), path)
    return tally + _Tally(surplus=sum(map(_fields, left)))


def _place(how: Expected, wanted: Any, left: list[Any], path: str) -> int | None:
    """Where in `left`, the entries not matched yet, the one stands that `wanted` is to be compared with, if any."""
    if path in how.keys:
        key = how.keys[path]
        matching = (
            isinstance(entry, dict) and _same(how, wanted[key], entry.get(key), _below(path, key)) for entry in left
        )
        return next((at for at, matches in enumerate(matching) if matches), None)
    if path in how.sets:
        return next((at for at, entry in enumerate(left) if _same(how, wanted, entry, path)), None)
    return 0 if left else None


def _same(how: Expected, wanted: Any, given: Any, path: str) -> bool:
    if isinstance(wanted, bool) or isinstance(given, bool):
        return wanted is given
    if isinstance(wanted, int | float):
        return isinstance(given, int | float) and wanted == given
    if not isinstance(given, str):
        return False
    return loosely(wanted).casefold() == loosely(given).casefold() if path in how.loose else wanted == given


def _fields(value: Any) -> int:
    """Atomic fields: everything that is no object and no list; an empty one of those is a field too."""
    count, left = 0, [value]
    while left:
        inside = left.pop()
        if isinstance(inside, dict | list) and inside:
            left += inside.values() if isinstance(inside, dict) else inside
        else:
            count += 1
    return count


def _walk(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, value
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _walk(each, _below(path, key))
    if isinstance(value, list):
        for each in value:
            yield from _walk(each, path)


def _below(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key
