"""Packs: what a candidate is asked, and how its answers are graded.

`packs/<name>.yaml` names a grader, and items, whose shape is the grader's own `Item`. They are a file of the project, a
JSON object a line (.jsonl) or a list in strict YAML (.yaml), which suits scenarios that people read; or the rows of a
public set, which are kept in the registry (`registry.packs`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gates import canonical
from gates.errors import IntegrityError, SluiceError, UsageError
from gates.strict_yaml import parse_list
from registry import packs
from registry.recipes import read_text
from registry.store import Store
from stages.common.grading import Grader, grader
from stages.common.grading.items import Item


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack, read and checked. The digests are what evidence records of it."""

    name: str
    grader: Grader
    max_tokens: int
    max_turns: int
    items: tuple[Item, ...]
    digest: str
    """Of what the YAML settles: name, grader, limits. Its description and the items' path decide nothing."""
    dataset: str
    """Of the items, as they are read: remarks and the order of keys decide nothing."""


def read_pack(project: Path, name: str, store: Store | None = None) -> Pack:
    """The pack `name` of the project.

    Args:
        store: where the rows of a public set are kept.

    Raises:
        UsageError: no such pack, a public set that was not fetched, or a field or a row that is not as it must be;
            file, line and field are named.
        IntegrityError: the kept rows of a public set are damaged.
    """
    path = project / "packs" / f"{name}.yaml"
    file = packs.read_file(project, name)
    try:
        graded = grader(file.grader)
    except SluiceError as error:
        error.where = f"{path}, grader"
        raise
    items = _held(
        _placed(project, file, graded, store, where=str(path)), str(project / file.items if file.items else path)
    )
    settled = file.model_dump(mode="json", exclude={"description", "items", "dataset"}, exclude_defaults=True)
    rows = [item.model_dump(mode="json", exclude_unset=True) for item in items]
    return Pack(
        name=file.name,
        grader=graded,
        max_tokens=file.max_tokens,
        max_turns=file.max_turns,
        items=items,
        digest=canonical.digest(canonical.dumps(settled)),
        dataset=canonical.digest(canonical.dumps(rows)),
    )


def _placed(
    project: Path, file: packs.PackFile, graded: Grader, store: Store | None, *, where: str
) -> Iterator[tuple[str, Item]]:
    """The items as they are read, each with its place."""
    if file.dataset is not None:
        if store is None:
            packs.demand(None, file.name, file.dataset, where=where)
            return
        for value in packs.items(store, file.name, file.dataset, where=where):
            at = f"{where}, dataset, {value['id']}"
            yield at, _valid(value, graded, at)
    elif file.items is not None:
        yield from _in_file(project / file.items, graded)


def _in_file(path: Path, graded: Grader) -> Iterator[tuple[str, Item]]:
    where, text = str(path), read_text(path, "pack's items")
    if path.suffix == ".yaml":
        for number, item in enumerate(parse_list(text, graded.item, where=where)):
            yield f"{where}, [{number}]", item
        return
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else [], 1):
        at = f"{where}, line {number}"
        yield at, _item(line, graded, at)


def _held(placed: Iterator[tuple[str, Item]], where: str) -> tuple[Item, ...]:
    items: dict[str, Item] = {}
    for at, item in placed:
        if item.id in items:
            raise UsageError(f"the id {item.id!r} is given twice", where=f"{at}, id")
        items[item.id] = item
    if not items:
        raise UsageError("the pack has no items", where=where)
    return tuple(items.values())


def _item(line: str, graded: Grader, at: str) -> Item:
    try:
        value = canonical.loads(line.encode())
        canonical.dumps(value)  # what JSON cannot say exactly (1e999) cannot be expected either
    except (IntegrityError, ValueError) as error:
        raise UsageError(f"not one JSON object: {error}", where=at, remedy=_remedy(graded)) from None
    return _valid(value, graded, at)


def _valid(value: Any, graded: Grader, at: str) -> Item:
    try:
        return graded.item.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the row"
        message = (
            "unknown key" if first["type"] == "extra_forbidden" else str(first["msg"]).removeprefix("Value error, ")
        )
        raise UsageError(f"{field}: {message}", where=f"{at}, {field}", remedy=_remedy(graded)) from None


def _remedy(graded: Grader) -> str:
    return f"a row of a pack graded by {graded.name} has {', '.join(graded.item.model_fields)}"
