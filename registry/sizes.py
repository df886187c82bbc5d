"""Sizes as people write them: 4 GiB, 31.84GiB, 500 MB."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

_UNITS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}
_NUMBER = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)", re.ASCII)
_SIZE = re.compile(_NUMBER.pattern + " ?([KMGT]?i?B)", re.IGNORECASE | re.ASCII)


def parse_size(text: Any) -> int:
    """Bytes, rounded down.

    Raises:
        ValueError: it is no number with a unit.
    """
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is no size: write a number and a unit, such as 4 GiB or 500 MB")
    return int(Decimal(match[1]) * _UNITS[match[2].upper()])


def parse_memory(text: Any) -> int:
    """Bytes of a card's memory: as `parse_size`, and a number without a unit is GiB.

    Raises:
        ValueError: as `parse_size`.
    """
    number = isinstance(text, int | Decimal) and not isinstance(text, bool)
    written = format(text, "f") if number else text
    if isinstance(written, str) and _NUMBER.fullmatch(written):
        written += " GiB"
    try:
        return parse_size(written)
    except ValueError:
        raise ValueError(
            f"{text!r} is no size: write GiB, such as 31.84, or a number with a unit, such as 24 GiB"
        ) from None
