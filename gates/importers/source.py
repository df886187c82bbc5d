"""What an importer is given and gives back, and how it reads numbers that others wrote."""

from __future__ import annotations

import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NoReturn

from pydantic import ValidationError

from gates import canonical
from gates.errors import InvalidEvidence, UsageError
from gates.records import Conditions, Row, Score, Totals

LARGEST = 2**30
"""Bytes of one file. What is larger is no result of a benchmark, or a trap."""

_SECRET = re.compile(
    r"api_?key|bearer|passw|(^|[_-])(keys?|token|secret|auth\w*|headers?|credentials?|cookies?)$", re.IGNORECASE
)
_WEIGHTS = {"pretrained", "model", "model_path", "model_name", "tokenizer", "tokenizer_path", "revision", "subfolder"}
_ONLY_RECORDED = {"batch_size", "device", "gpu_memory_utilization", "max_batch_size", "num_concurrent", "timeout"}
_ADDRESS = re.compile(r"url|host|endpoint", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Source:
    """One file: its name without folders, and its bytes."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Choice:
    """What a person chose where a file holds several: a metric, a task, a model. None takes the tool's default."""

    metric: str | None = None
    task: str | None = None
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Imported:
    """One pack's results as they were read: all of an evidence but the candidate.

    `rows` is None where the source has totals alone. `notes` say, for people, what was read otherwise than one might
    expect.
    """

    pack: str
    conditions: Conditions
    totals: Totals
    rows: tuple[Row, ...] | None = None
    repeats: int = 1
    recorded: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def written(self) -> bytes:
        """The rows as a blob holds them: one in canonical JSON a line.

        Raises:
            ValueError: something in them has no such form.
        """
        return b"".join(row.to_bytes() + b"\n" for row in self.rows or ())


@lru_cache(maxsize=8)
def parsed(source: Source) -> dict[str, Any]:
    """The JSON object that a file holds, to be read and not changed: it is kept, since each importer asks.

    NaN is let through, for some tools write it where nobody looks: `share` and `count` refuse it.

    Raises:
        UsageError: it is not one JSON object, whole.
    """
    value = value_of(source.data, where=source.name)
    if not isinstance(value, dict):
        raise UsageError("this is no JSON object", where=source.name, remedy=WRONG_FILE)
    return value


def first_letter(source: Source) -> bytes:
    """The first byte that says something; none of an empty file."""
    return source.data[:256].removeprefix(b"\xef\xbb\xbf").lstrip()[:1]


def value_of(data: bytes, *, where: str) -> Any:
    """The JSON value in `data`.

    Raises:
        UsageError: it is not one JSON value, whole, each key once.
    """
    if len(data) > LARGEST:
        raise UsageError(f"this is larger than {LARGEST >> 30} GiB", where=where, remedy=WRONG_FILE)
    try:
        return json.loads(data.decode("utf-8-sig"), object_pairs_hook=_each_key_once)
    except (ValueError, RecursionError) as error:
        what = "it is nested too deep" if isinstance(error, RecursionError) else str(error)
        raise UsageError(f"not readable as JSON: {what}", where=where, remedy=WRONG_FILE) from None


WRONG_FILE = "give the file as the tool wrote it, whole; --from says which tool that was"

AS_WRITTEN = "nothing was added; give the file as the tool wrote it"

SAY = "write the scores, each with the number of its items, into a YAML file (--from totals)"
"""What remains where a file does not say enough."""

_WRAPPED = {
    b"version https://git-lfs": ("Git LFS keeps this file elsewhere, and this only points to it", "git lfs pull"),
    b"\x1f\x8b": ("this is compressed with gzip", "gunzip it"),
    b"\x28\xb5\x2f\xfd": ("this is compressed with Zstandard", "unzstd it"),
    b"\xff\xfe": ("this is UTF-16", "save it as UTF-8"),
    b"\xfe\xff": ("this is UTF-16", "save it as UTF-8"),
}
"""How a file begins that was wrapped up after a tool wrote it, what that is, and what undoes it."""


def unwrapped(file: Source) -> None:
    """
    Raises:
        UsageError: `file` is not as a tool wrote it, but packed, in another encoding, or not there at all.
    """
    if not file.data or file.data.isspace():
        raise UsageError("this file is empty", where=file.name, remedy=WRONG_FILE)
    for start, (what, remedy) in _WRAPPED.items():
        if file.data.startswith(start):
            raise UsageError(what, where=file.name, remedy=f"{remedy}, and give the file that it is then")


def share(value: Any, *, where: str, whole: int = 1, remedy: str = AS_WRITTEN) -> float:
    """A score from 0 to `whole`, from a number or a truth, as a share of it.

    Raises:
        InvalidEvidence: it is none.
    """
    if not isinstance(value, bool | int | float):
        refuse(f"{_shown(value)} is no score", where, remedy=remedy)
    if not 0 <= value <= whole:  # NaN is not either
        refuse(f"{_shown(value)} is no score from 0 to {whole}", where, remedy=remedy)
    return float(value) / whole


def count(value: Any, *, where: str, least: int = 0) -> int:
    """A whole number.

    Raises:
        InvalidEvidence: it is none, or below `least`.
    """
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**53:
        refuse(f"{_shown(value)} is no whole number from {least}", where)
    return int(value)


def table(value: Any, *, where: str) -> dict[str, Any]:
    """
    Raises:
        InvalidEvidence: `value` is no JSON object.
    """
    if not isinstance(value, dict):
        refuse(f"{_shown(value)} is no JSON object", where)
    return dict(value)


def listed(value: Any, *, where: str) -> list[Any]:
    """
    Raises:
        InvalidEvidence: `value` is no list.
    """
    if not isinstance(value, list):
        refuse(f"{_shown(value)} is no list", where)
    return list(value)


def text(value: Any, *, where: str) -> str:
    """
    Raises:
        InvalidEvidence: `value` is no text that says something.
    """
    if not isinstance(value, str) or not value.strip() or any("\ud800" <= letter <= "\udfff" for letter in value):
        refuse(f"{_shown(value)} is no name", where)
    return str(value)


def refuse(what: str, where: str, *, remedy: str = AS_WRITTEN) -> NoReturn:
    raise InvalidEvidence(what, where=where, remedy=remedy)


def agree(stated: float, found: float, *, where: str, within: float = 1e-6) -> None:
    """
    Raises:
        InvalidEvidence: the total that the source states is not what its rows come to.
    """
    if not math.isfinite(stated) or abs(stated - found) > within:
        refuse(f"the stated total is {stated:g}, and its rows come to {found:g}", where)


def row(item: str, points: float | None, *, outcome: Any, repeat: int = 0, category: str = "all", **more: Any) -> Row:
    """A row of 1 point; what the source does not say is left out."""
    known = {name: value for name, value in more.items() if value is not None}
    got = {} if points is None else {"points": points}
    return Row(item=item, repeat=repeat, category=category, of=1, outcome=outcome, **got, **known)


def of_one_category(rows: Iterable[Row]) -> list[Row]:
    """The rows, each item in one category. One that is said to be of several is of none (`all`)."""
    rows = list(rows)
    said: dict[str, set[str]] = defaultdict(set)
    for each in rows:
        said[each.item].add(each.category)
    return [each if len(said[each.item]) == 1 else each.model_copy(update={"category": "all"}) for each in rows]


def score(mean: float, items: int) -> Score:
    """A mean from 0 to 1 over so many items. That of whole points is whole: 0.333… of 3 is 1."""
    points = mean * items
    return Score(points=round(points) if abs(points - round(points)) < 1e-6 else points, of=items, items=items)


def known(**conditions: Any) -> Conditions:
    """Conditions, of which None is left out: unknown.

    Raises:
        InvalidEvidence: one is not what it must be.
    """
    try:
        return Conditions(**{name: value for name, value in conditions.items() if value is not None})
    except ValidationError as error:
        first = error.errors()[0]
        refuse(f"this is no {first['loc'][0]}: {first['msg']}", "its conditions")


def identity(*said: Any) -> str:
    """The digest of what a source says: two that say the same have the same."""
    return canonical.digest(canonical.dumps([plain(each) for each in said]))


def plain(value: Any) -> Any:
    """`value` as JSON that has a canonical form. Half letters, NaN and addresses in memory differ and mean nothing."""
    if isinstance(value, dict):
        return {str(plain(str(key))): plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    if isinstance(value, str):
        return re.sub(r" at 0x[0-9a-fA-F]+", "", value.encode("utf-8", "replace").decode())
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) >= 2**53:
        return str(value)
    return value


def flags(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """How a model was run: without its weights' names, addresses, secrets, and what need not agree."""
    apart = _WEIGHTS | _ONLY_RECORDED | {"reasoning_parser", "tool_call_parser"}
    return settings({name: each for name, each in arguments.items() if name not in apart and not _ADDRESS.search(name)})


def served(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What arguments of a model that was served say of its parsers and its length, as conditions."""
    length = arguments.get("max_model_len", arguments.get("max_length"))
    return {
        "reasoning_parser": arguments.get("reasoning_parser"),
        "tool_parser": arguments.get("tool_call_parser"),
        "max_length": length if type(length) is int and length > 0 else None,
    }


def settings(given: Mapping[str, Any]) -> dict[str, Any]:
    """What was set, as JSON: without secrets, at any depth, and without what was left unset (None)."""
    return {
        name: _open(value) for name, value in plain(given).items() if value is not None and not _SECRET.search(name)
    }


def _open(value: Any) -> Any:
    if isinstance(value, dict):
        return settings(value)
    return [_open(each) for each in value] if isinstance(value, list) else value


def pack_name(name: str) -> str:
    """A tool's name for a task as a pack's: arc_challenge|0 is arc_challenge-0."""
    slug = re.sub(r"[^a-z0-9._-]+", "-", name.lower()).strip("-._")[:64]
    if not slug:
        raise UsageError(f"{name!r} cannot name a pack", remedy="name it: --pack NAME")
    return slug


def one_of(chosen: str | None, there: Iterable[str], *, what: str, where: str) -> str:
    """The one that was chosen, or the only one there is.

    Args:
        what: the option that chooses: "model".

    Raises:
        UsageError: there is no such one, or there are several and none was chosen.
    """
    found = list(there)
    if chosen is None and len(found) == 1:
        return found[0]
    if chosen in found and chosen is not None:
        return chosen
    listed_ = ", ".join(found) or "none"
    what_is = f"there is no {what} {chosen!r} here" if chosen is not None else f"there is not one {what} here"
    raise UsageError(what_is, where=where, remedy=f"choose with --{what} from: {listed_}")


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice!r} is given twice")
    return value


def _shown(value: Any) -> str:
    shown = repr(value)
    return "nothing" if value is None else shown if len(shown) <= 40 else f"{shown[:40]}…"
