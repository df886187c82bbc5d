"""Scores alone, as a table in a report has them: a YAML file that a person writes.

    source: the story of one GPU, table 2       # where they are from; optional
    scores:                                     # by pack, from 0 to 100, over so many items
      toolcall-15: {score: 93, items: 15}
      bugfind-15:
        score: 25
        items: 15
        categories: {traps: {score: 0, items: 3}}   # optional
    repeats: 1                                  # how often each item was asked; optional
    conditions:                                 # what is known of how they were taken; optional
      chat_template: v19
      sampling: {temperature: 0}

A template, tokenizer, pack, grader or dataset that is not a digest is a name, which stands for itself: v19 agrees with
v19 and with nothing else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any, Literal

from pydantic import Field

from gates import canonical
from gates.errors import UsageError
from gates.importers import source
from gates.importers.source import Choice, Imported, Source
from gates.records import Name, Score, Totals
from gates.strict_yaml import Strict, parse

TOOL = "totals"

NAMED = ("chat_template", "tokenizer", "pack", "grader", "dataset")
"""The conditions that are digests."""

_Percent = Annotated[int, Field(ge=0, le=100, strict=True)] | Annotated[Decimal, Field(ge=0, le=100, strict=True)]
_Count = Annotated[int, Field(ge=1, lt=2**31, strict=True)]
_Word = Annotated[str, Field(min_length=1)]


class Part(Strict):
    """A score, from 0 to 100, over so many items."""

    score: _Percent
    items: _Count


class Whole(Part):
    categories: dict[_Word, Part] = Field(default_factory=dict)


class Stated(Strict):
    """What is known of the conditions (`gates.records.Conditions`)."""

    engine: _Word | None = None
    engine_version: _Word | None = None
    server_flags: dict[str, Any] | None = None
    reasoning_parser: _Word | None = None
    tool_parser: _Word | None = None
    chat_template: _Word | None = None
    tokenizer: _Word | None = None
    sampling: dict[str, Any] | None = None
    thinking: Literal["on", "off"] | None = None
    pack: _Word | None = None
    grader: _Word | None = None
    dataset: _Word | None = None
    max_tokens: _Count | None = None
    max_length: _Count | None = None


class TotalsFile(Strict):
    scores: Annotated[dict[Name, Whole], Field(min_length=1)]
    source: _Word | None = None
    repeats: _Count = 1
    conditions: Stated = Stated()


def recognises(files: Sequence[Source]) -> bool:
    return all(
        source.first_letter(each) not in (b"{", b"[") and re.search(rb"(?m)^(\xef\xbb\xbf)?scores\s*:", each.data)
        for each in files
    )


def read(files: Sequence[Source], _: Choice) -> list[Imported]:
    """Each pack of each file. Raises as `gates.importers.read`."""
    return [each for file in files for each in _file(file)]


def conditions_of(stated: Mapping[str, Any]) -> dict[str, Any]:
    """Conditions as a person states them, as evidence has them: names of templates and the like become digests."""
    return {
        field: _digest(value) if field in NAMED else _exact(value)
        for field, value in stated.items()
        if value is not None
    }


def stated(field: str, text: str) -> Any:
    """One condition out of the command line, held against what it must be.

    Raises:
        UsageError: it is not that.
    """
    given = parse(f"{field}: {text}", Stated, where=f"--state {field}")
    return given.model_dump()[field]


def _file(file: Source) -> list[Imported]:
    try:
        written = file.data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError("it is not UTF-8 text", where=file.name, remedy=source.WRONG_FILE) from None
    given = parse(written, TotalsFile, where=file.name)
    conditions = source.known(**conditions_of(given.conditions.model_dump()))
    return [
        Imported(
            pack=pack,
            conditions=conditions,
            totals=_totals(whole, f"{file.name}, scores, {pack}"),
            repeats=given.repeats,
            recorded={"tool": TOOL} | ({"source": given.source} if given.source else {}),
        )
        for pack, whole in given.scores.items()
    ]


def _totals(whole: Whole, where: str) -> Totals:
    if sum(part.items for part in whole.categories.values()) > whole.items:
        raise UsageError(
            f"its categories have more items than the {whole.items} of the pack",
            where=f"{where}, categories",
            remedy="each item is of one category",
        )
    return Totals(
        overall=_score(whole),
        categories={name: _score(part) for name, part in sorted(whole.categories.items())},
        missing=0,
    )


def _score(part: Part) -> Score:
    return Score(points=float(part.score), of=100, items=part.items)


def _digest(value: str) -> str:
    return value if re.fullmatch("[0-9a-f]{64}", value) else canonical.digest(value.encode())


def _exact(value: Any) -> Any:
    """Decimals, which strict YAML has, as JSON's numbers."""
    if isinstance(value, dict):
        return {name: _exact(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_exact(each) for each in value]
    return float(value) if isinstance(value, Decimal) else value
