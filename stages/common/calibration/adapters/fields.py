"""Reading a row's fields, strictly."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

Row = dict[str, Any]
Adapter = Callable[[Row], Row]


class Drift(Exception):
    """A row is not of the schema: which field, and what is wrong with it."""

    def __init__(self, field: str, what: str) -> None:
        super().__init__(f"{field}: {what}")
        self.field = field
        self.what = what


def text(row: Row, field: str, *, path: str = "") -> str:
    """A field that holds text which is not empty."""
    value = present(row, field, path=path)
    if not isinstance(value, str):
        raise Drift(path + field, f"must be text, and is {_kind(value)}")
    if not value.strip():
        raise Drift(path + field, "empty")
    return value


def listed(row: Row, field: str, *, path: str = "") -> list[Any]:
    """A field that holds a list which is not empty; as JSON text too, since some publishers write it so."""
    value = present(row, field, path=path)
    if isinstance(value, str):
        value = parsed(value, path + field)
    if not isinstance(value, list):
        raise Drift(path + field, f"must be a list, and is {_kind(value)}")
    if not value:
        raise Drift(path + field, "empty")
    return value


def present(row: Row, field: str, *, path: str = "") -> Any:
    if not isinstance(row, dict):
        raise Drift(path.rstrip("."), f"must be an object, and is {_kind(row)}")
    if row.get(field) is None:
        has = ", ".join(sorted(map(str, row))) or "nothing"
        raise Drift(path + field, f"missing; the row has {has}")
    return row[field]


def parsed(value: str, field: str) -> Any:
    """JSON that is written as text."""
    try:
        return json.loads(value)
    except (ValueError, RecursionError) as error:
        raise Drift(field, f"must be JSON: {error}") from None


def asked(question: str, answer: str) -> Row:
    """A question with its answer."""
    return {"messages": [{"role": "user", "content": question}, spoken(answer)]}


def spoken(answer: str) -> Row:
    """What a model said; reasoning between <think> and </think> at its start goes into a field of its own."""
    begin, end = "<think>", "</think>"
    thought, closed, rest = answer.lstrip().removeprefix(begin).partition(end)
    if not (answer.lstrip().startswith(begin) and closed and thought.strip()):
        return {"role": "assistant", "content": answer}
    return {"role": "assistant", "reasoning_content": thought.strip(), "content": rest.strip()}


def call(value: Any, field: str) -> Row:
    """A tool call {name, arguments}; arguments are an object, be they written as one or as JSON text."""
    if not isinstance(value, dict):
        raise Drift(field, f"must be an object, and is {_kind(value)}")
    name, arguments = text(value, "name", path=f"{field}."), present(value, "arguments", path=f"{field}.")
    if isinstance(arguments, str):
        arguments = parsed(arguments, f"{field}.arguments")
    if not isinstance(arguments, dict):
        raise Drift(f"{field}.arguments", f"must be an object, and is {_kind(arguments)}")
    return {"type": "function", "function": {"name": name, "arguments": arguments}}


def _kind(value: Any) -> str:
    names = {bool: "a truth value", int: "a number", float: "a number", str: "text", list: "a list", dict: "an object"}
    return names.get(type(value), "nothing" if value is None else type(value).__name__)
