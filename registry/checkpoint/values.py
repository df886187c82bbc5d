"""Look at the numbers of a tensor: is there a NaN or an infinity among them?

No weight is either, and a model with one answers nonsense from then on. numpy looks at billions of them in a second and
lets other threads work meanwhile.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from registry.checkpoint.facts import is_scale
from registry.tensors import Tensor

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


def all_positive(dtype: str, data: bytes | memoryview) -> bool:
    """Whether every number in `data` is above 0 and finite, as a scale must be. `dtype` and `data` as above, floats."""
    whole, least = _EXPONENTS[dtype]
    bits = _numbers(data, whole)
    return not bits.size or (int(bits.min()) > 0 and int(bits.max()) < least)  # a sign makes it negative


def possible(name: str, dtype: str, data: bytes | memoryview) -> bool:
    """Whether `data` can be numbers of the tensor `name`: finite, and scales above 0 too."""
    if is_scale(name) and dtype in _EXPONENTS:
        return all_positive(dtype, data)
    return not holds_no_number(dtype, data)


def impossible_scales(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    """Those of `tensors` that are scales and hold an impossible number. They alone are read, a few bytes each.

    Raises:
        OSError: a file cannot be read.
    """
    files: dict[Path, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        if is_scale(name):
            files[tensor.file].append(name)
    for path, names in files.items():
        with path.open("rb", buffering=0) as file:
            for name in names:
                tensor = tensors[name]
                if not possible(name, tensor.dtype, os.pread(file.fileno(), tensor.size, tensor.begin)):
                    yield name


def _numbers(data: bytes | memoryview, dtype: str) -> numpy.ndarray[Any, Any]:
    import numpy

    size = numpy.dtype(dtype).itemsize
    return numpy.frombuffer(data, dtype, count=len(data) // size)
