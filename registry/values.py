"""Look at the numbers of a tensor without a tensor library: is there a NaN or an infinity among them?

No weight is either, and a model with one answers nonsense from then on. Numbers are little-endian, so the byte that
tells comes last; slices and searches of bytes run at the speed of memory, where unpacking in Python would take hours.
"""

from __future__ import annotations

import struct


def holds_no_number(dtype: str, data: bytes) -> bool:
    """Whether one of the numbers in `data` is NaN or infinite. Whole numbers never are.

    Args:
        dtype: as safetensors calls it, such as BF16.
    """
    if dtype == "F8_E4M3":  # no infinity; NaN is all ones behind the sign
        return b"\x7f" in data or b"\xff" in data
    if dtype == "F8_E5M2":  # exponent all ones: 0x7c to 0x7f, with either sign
        return _any(data, 0x7C, 0x80)
    if dtype == "F16":
        return _any(data[1::2], 0x7C, 0x80)
    if dtype == "BF16":
        return _exponent_full(data[1::2], data[0::2], 0x80)
    if dtype == "F32":
        return _exponent_full(data[3::4], data[2::4], 0x80)
    if dtype == "F64":
        return _exponent_full(data[7::8], data[6::8], 0xF0)
    return False


def all_positive(data: bytes) -> bool:
    """Whether every F32 in `data` is above 0 and finite, as a scale must be."""
    return all(0 < value < float("inf") for (value,) in struct.iter_unpack("<f", data))


def _any(data: bytes, begin: int, end: int) -> bool:
    return any(bytes([byte | sign]) in data for byte in range(begin, end) for sign in (0, 0x80))


def _exponent_full(high: bytes, low: bytes, mask: int) -> bool:
    """`high` holds signs and the first 7 bits of exponents, `low` the rest of them in the bits of `mask`."""
    if b"\x7f" not in high and b"\xff" not in high:
        return False
    return any(first & 0x7F == 0x7F and second & mask == mask for first, second in zip(high, low, strict=True))
