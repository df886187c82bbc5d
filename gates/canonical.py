"""One way to write a JSON value as bytes, so that equal values have equal digests.

The form is RFC 8785 (JSON Canonicalization Scheme): sorted keys, UTF-8, shortest numbers, no NaN and no infinity.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from typing import Any

import rfc8785

from gates.errors import IntegrityError

_LARGEST_DEPTH = 64
_DIFFERS = re.compile(rb"[\xf0-\xff]|\d\.0(?!\d)|\d[eE][-+]?\d|\d{16}")
_ENCODER = json.JSONEncoder(ensure_ascii=False, check_circular=False, sort_keys=True, separators=(",", ":"))


def dumps(value: Any) -> bytes:
    """The canonical bytes of a JSON value.

    Raises:
        ValueError: NaN, infinity, an integer beyond 2**53, or something that JSON has no form for.
    """
    return rfc8785.dumps(value)


def loads(data: bytes, *, where: str | None = None) -> Any:
    """The JSON value in `data`: strict, so NaN, infinity, a key given twice and absurd nesting are refused.

    So is any encoding but UTF-8: json would take UTF-16 and a byte order mark, which no other reader does.

    Raises:
        IntegrityError: `data` is not such a value; `where` names its file.
    """
    try:
        value = json.loads(
            data.decode(),
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_exact,
            object_pairs_hook=_refuse_duplicates,
        )
    except (ValueError, RecursionError) as error:
        raise IntegrityError(f"not a JSON record: {error}", where=where) from None
    if _depth(value) > _LARGEST_DEPTH:
        raise IntegrityError(f"a JSON record nested deeper than {_LARGEST_DEPTH}", where=where)
    return value


def is_written_as(value: Any, data: bytes) -> bool:
    """Whether `data` is the canonical bytes of `value`; as `dumps(value) == data`, and mostly much faster.

    Python's own encoder, which is written in C, differs from RFC 8785 in whole floats (which are whole numbers there),
    in very large and small ones, and in the order of keys beyond the 16-bit characters. Where nothing in `data` looks
    like these, it decides.

    Raises:
        ValueError: as `dumps`.
    """
    if not _DIFFERS.search(data) and _ENCODER.encode(_whole(value)).encode() == data:
        return True
    return dumps(value) == data


def _whole(value: Any) -> Any:
    """`value` with whole numbers for whole floats."""
    if isinstance(value, dict):
        return {key: _whole(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_whole(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def digest(data: bytes) -> str:
    """SHA-256 of `data`, 64 lower-case hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if math.isfinite(number) else _refuse_constant(text)


def _exact(text: str) -> int | float:
    """Whole numbers from 2**53 on are floats here: that is how the canonical form writes a float of that size."""
    number = int(text)
    return number if abs(number) < 2**53 else _finite(text)


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for key, item in pairs:
        if key in value:
            raise ValueError(f"the key {key!r} is given twice")
        value[key] = item
    return value


def _depth(value: Any) -> int:
    deepest, level = 0, [value]
    while level:
        level = [
            child
            for item in level
            if isinstance(item, dict | list)
            for child in (item.values() if isinstance(item, dict) else item)
        ]
        deepest += 1
    return deepest
