"""Packs: what a candidate is asked, and how its answers are graded.

`packs/<name>.yaml` names a JSONL file of items, one JSON object a line:

    {"id": …, "category": …, "messages": […], "tools": […], "expected": {"name": …, "arguments": {…}} | {"answer": …}}

`tools` may be left out, and so may `arguments`, where the right tool is all that counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator

from gates import canonical
from gates.errors import IntegrityError, UsageError
from gates.records import Name
from gates.strict_yaml import Strict, parse
from registry.recipes import Whole, read_text
from stages.common.grading import Expected, Grader, grader_digest

Text = Annotated[str, Field(min_length=1)]


class PackFile(Strict):
    """What `packs/<name>.yaml` may say."""

    name: Name
    description: str
    grader: Grader
    items: str
    max_tokens: Annotated[Whole, Field(ge=1)]


class Right(Strict):
    """Either a text, or a tool's name and perhaps its arguments."""

    answer: Text | None = None
    name: Text | None = None
    arguments: dict[str, Any] | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.answer is None) == (self.name is None):
            raise ValueError("give an answer, or the name of a tool")
        if self.name is None and self.arguments is not None:
            raise ValueError("arguments belong to the name of a tool")
        if self.answer is not None and self.answer != self.answer.strip():
            raise ValueError("an answer has no white space at its ends: it could never be given")
        return self


class Item(Strict):
    id: Text
    category: Text
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    tools: Annotated[list[dict[str, Any]], Field(min_length=1)] | None = None
    expected: Right

    @model_validator(mode="after")
    def _can_be_answered(self) -> Self:
        if self.expected.name is not None and not self.tools:
            raise ValueError("tools: a call is expected, but no tool is offered")
        return self

    @property
    def right(self) -> Expected:
        return Expected(self.expected.answer, self.expected.name, self.expected.arguments)


@dataclass(frozen=True, slots=True)
class Pack:
    """A pack, read and checked. The digests are what evidence records of it."""

    name: str
    grader: Grader
    max_tokens: int
    items: tuple[Item, ...]
    digest: str
    """Of what the YAML settles: name, grader, limits, parser. Its description and the items' path decide nothing."""
    dataset: str
    """Of the items' file, byte for byte."""

    @property
    def grader_digest(self) -> str:
        return grader_digest(self.grader)


def read_pack(project: Path, name: str) -> Pack:
    """The pack `name` of the project.

    Raises:
        UsageError: no such pack, or a field or a row that is not as it must be; file, line and field are named.
    """
    path = project / "packs" / f"{name}.yaml"
    if not path.is_file():
        known = sorted(each.stem for each in path.parent.glob("*.yaml"))
        raise UsageError(
            f"there is no pack {name}", where=str(path), remedy=f"the packs here are {', '.join(known) or '(none)'}"
        )
    file = parse(read_text(path, "pack"), PackFile, where=str(path))
    if file.name != name:
        raise UsageError(f"the pack is called {file.name}, its file {path.name}", where=f"{path}, name")
    items = project / file.items
    text = read_text(items, "pack's items")
    settled = file.model_dump(mode="json", exclude={"description", "items"})
    return Pack(
        name=file.name,
        grader=file.grader,
        max_tokens=file.max_tokens,
        items=_items(text, file.grader, where=str(items)),
        digest=canonical.digest(canonical.dumps(settled)),
        dataset=canonical.digest(items.read_bytes()),
    )


def _items(text: str, grader: Grader, *, where: str) -> tuple[Item, ...]:
    items: dict[str, Item] = {}
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        at = f"{where}, line {number}"
        item = _item(line, at)
        if item.id in items:
            raise UsageError(f"the id {item.id!r} is given twice", where=f"{at}, id")
        if grader == "exact-text" and item.expected.name is not None:
            raise UsageError("a pack graded as exact-text cannot expect a tool call", where=f"{at}, expected")
        items[item.id] = item
    if not items:
        raise UsageError("the pack has no items", where=where)
    return tuple(items.values())


def _item(line: str, at: str) -> Item:
    try:
        value = canonical.loads(line.encode())
        canonical.dumps(value)  # what JSON cannot say exactly (1e999) cannot be expected either
        return Item.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the row"
        message = (
            "unknown key" if first["type"] == "extra_forbidden" else str(first["msg"]).removeprefix("Value error, ")
        )
        raise UsageError(f"{field}: {message}", where=f"{at}, {field}", remedy=_SHAPE) from None
    except (IntegrityError, ValueError) as error:
        raise UsageError(f"not one JSON object: {error}", where=at, remedy=_SHAPE) from None


_SHAPE = 'a row is {"id", "category", "messages", "tools"?, "expected": {"name", "arguments"?} or {"answer"}}'
