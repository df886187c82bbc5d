"""The rows of public sets as they are published, and the items that they are for a pack. Pure.

Each form is a module here. It has

    chosen(names, config, split) -> list[str]    which of the publisher's files hold the rows
    joined(files) -> list[Json]                  one row an item, from the rows of each file by its name
    item(row, number) -> Json                    {id, category, messages, tools?, expected} of the pack's grader

A row that has not the form raises whatever comes of reading it (`_FLAWS`); `items` says which one it was.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

from gates import canonical
from gates.errors import UsageError

Json = dict[str, Any]

_FLAWS = (AttributeError, LookupError, TypeError, ValueError, SyntaxError, RecursionError, MemoryError)


def form(name: str) -> ModuleType:
    """The module of a form, such as gsm8k."""
    return import_module(f"{__name__}.{name.replace('-', '_')}")


def chosen(name: str, files: Iterable[str], config: str | None, split: str, *, where: str) -> list[str]:
    """Of the publisher's `files` (paths with /) those with the rows.

    Raises:
        UsageError: there are none.
    """
    found: list[str] = form(name).chosen(sorted(files), config, split)
    if not found:
        wanted = f"the split {split}" + (f" of {config}" if config else "")
        raise UsageError(f"no file here holds {wanted} as a set of the form {name} has it", where=where)
    return found


def joined(name: str, files: Mapping[str, list[Json]], *, where: str) -> list[Json]:
    """One row an item.

    Raises:
        UsageError: rows that belong together are not all there.
    """
    try:
        rows: list[Json] = form(name).joined(files)
    except _FLAWS as error:
        raise UsageError(f"these are no rows of the form {name}: {_said(error)}", where=where) from None
    return rows


def items(name: str, rows: Iterable[Json], *, where: str) -> list[Json]:
    """The items that the rows of the form `name` are.

    Raises:
        UsageError: a row is not of this form, an id is given twice, or there are none.
    """
    make = form(name).item
    found: dict[str, Json] = {}
    for number, row in enumerate(rows, 1):
        at = f"{where}, row {number}"
        try:
            item = make(row, number)
            canonical.dumps(item)  # what JSON cannot say exactly cannot be asked either
        except _FLAWS as error:
            raise UsageError(f"this is no row of the form {name}: {_said(error)}", where=at) from None
        if item["id"] in found:
            raise UsageError(f"the id {item['id']!r} is given twice", where=at)
        found[item["id"]] = item
    if not found:
        raise UsageError("the set has no rows", where=where)
    return list(found.values())


def written(rows: Iterable[Json]) -> bytes:
    """Rows as they are kept: a JSON object a line. Not canonical JSON, in which 1.0 is 1: programs are called with such
    numbers."""
    write = json.JSONEncoder(allow_nan=False, sort_keys=True, separators=(",", ":")).encode
    return "".join(f"{write(row)}\n" for row in rows).encode()


def of_split(name: str, config: str | None, split: str) -> bool:
    """Whether a file is called as those of a split are on the Hub: main/test-00000-of-00001.parquet, test.jsonl."""
    folder, _, file = name.rpartition("/")
    stem = file.partition(".")[0]
    right_split = stem == split or stem.startswith((f"{split}-", f"{split}_"))
    folders = {"", "data", "default"} if config is None else {"", "data", config, f"data/{config}"}
    return right_split and folder in folders


def text(row: Json, key: str) -> str:
    """A text of the row that says something.

    Raises:
        KeyError, ValueError: there is none.
    """
    value = row[key]
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} is no text")
    return value


def _said(error: Exception) -> str:
    return f"{error.args[0]} is missing" if isinstance(error, KeyError) else str(error)
