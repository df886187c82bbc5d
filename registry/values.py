"""Look at the numbers of a tensor: is there a NaN or an infinity among them?

No weight is either, and a model with one answers nonsense from then on. numpy looks at billions of them in a second and
lets other threads work meanwhile.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy

_EXPONENTS = {
    "F8_E4M3": ("i1", 0x7F),  # no infinity; NaN is all ones behind the sign
    "F8_E5M2": ("i1", 0x7C),
    "F16": ("<i2", 0x7C00),
    "BF16": ("<i2", 0x7F80),
    "F32": ("<i4", 0x7F80_0000),
    "F64": ("<i8", 0x7FF0_0000_0000_0000),
}
"""A dtype's numbers as whole numbers, and from which on they stand for no finite number, the sign left aside."""


def holds_no_number(dtype: str, data: bytes | memoryview) -> bool:
    """Whether one of the numbers in `data` is NaN or infinite. Whole numbers never are.

    Args:
        dtype: as safetensors calls it, such as BF16.
        data: little-endian; the part of a number at its end is passed over.
    """
    if dtype not in _EXPONENTS:
        return False
    whole, least = _EXPONENTS[dtype]
    bits = _numbers(data, whole)
    if not bits.size:
        return False
    # read without a sign, those with one are above all others: two maxima look at both, and need no memory
    sign = 1 << (8 * bits.itemsize - 1)
    return int(bits.max()) >= least or int(bits.view(whole.replace("i", "u")).max()) >= least + sign


def all_positive(data: bytes | memoryview) -> bool:
    """Whether every F32 in `data` is above 0 and finite, as a scale must be."""
    values = _numbers(data, "<f4")
    return bool(((values > 0) & (values < float("inf"))).all())


def _numbers(data: bytes | memoryview, dtype: str) -> numpy.ndarray[Any, Any]:
    import numpy

    size = numpy.dtype(dtype).itemsize
    return numpy.frombuffer(data, dtype, count=len(data) // size)
