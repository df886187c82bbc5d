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
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,6})?) ?([KMGT]?i?B)", re.IGNORECASE | re.ASCII)


def parse_size(text: Any) -> int:
    """Bytes, rounded down.

    Raises:
        ValueError: it is no number with a unit.
    """
    match = _SIZE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise ValueError(f"{text!r} is no size: write a number and a unit, such as 4 GiB or 500 MB")
    return int(Decimal(match[1]) * _UNITS[match[2].upper()])
