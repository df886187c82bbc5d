"""Safetensors headers, read with the standard library alone: which tensors a file holds, and where.

    8 bytes     length of the header, little-endian
    header      JSON: name → {dtype, shape, data_offsets: [begin, end]}, and `__metadata__`: text → text
    data        the tensors, little-endian, in C order, without holes and without overlaps

The format is described at https://huggingface.co/docs/safetensors. Nothing here loads a tensor.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gates import canonical
from gates.errors import IntegrityError
from registry import fs

LARGEST_HEADER = 100_000_000
"""Bytes; the cap that the safetensors library has."""

DTYPES = {
    "BOOL": 1,
    "U8": 1,
    "I8": 1,
    "F8_E4M3": 1,
    "F8_E5M2": 1,
    "F8_E8M0": 1,
    "U16": 2,
    "I16": 2,
    "F16": 2,
    "BF16": 2,
    "U32": 4,
    "I32": 4,
    "F32": 4,
    "U64": 8,
    "I64": 8,
    "F64": 8,
}
"""Bytes of one number."""

_METADATA = "__metadata__"
_LARGEST_RANK = 16
_LONGEST_NAME = 512


@dataclass(frozen=True, slots=True)
class Tensor:
    """Where a tensor lies: `begin` and `end` count bytes from the start of `file`."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int
    file: Path

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.begin


def read_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, in the order in which they lie there.

    Raises:
        IntegrityError: the file is malformed: not the format, truncated, too long, tensors that overlap, leave holes or
            have another size than their shape says. It names the file, and the tensor if it is one.
    """
    header, data_begin, file_size = _header(path)
    header.pop(_METADATA, None)
    tensors = {name: _tensor(name, entry, data_begin, path) for name, entry in header.items()}
    ordered = dict(sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)))
    _fill_exactly(ordered, data_begin, file_size, path)
    return ordered


def read_metadata(path: Path) -> dict[str, str]:
    """The `__metadata__` of a safetensors file, such as {"format": "pt"}; the tensors are not looked at.

    Raises:
        IntegrityError: the file is not of the format.
    """
    return dict(_header(path)[0].get(_METADATA, {}))


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header, where the data begin, and the file's size."""
    try:
        with os.fdopen(fs.opened(path), "rb") as file:
            prefix = file.read(8)
            length = int.from_bytes(prefix, "little")
            file_size = file.seek(0, 2)
            if len(prefix) < 8 or length > min(LARGEST_HEADER, file_size - 8):
                raise IntegrityError(
                    f"not a safetensors file, or a truncated one: {file_size} bytes, and a header of {length}",
                    where=str(path),
                )
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        raise IntegrityError(f"the file cannot be read: {error.strerror}", where=str(path)) from None
    if not text.startswith(b"{") or not _is_utf8(text):
        raise IntegrityError("not a safetensors file: the header is no JSON object in UTF-8", where=str(path))
    header = canonical.loads(text, where=str(path))
    metadata = header.get(_METADATA, {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise IntegrityError(f"{_METADATA} of the safetensors header must map text to text", where=str(path))
    return header, 8 + length, file_size


def _is_utf8(text: bytes) -> bool:
    """Whether `text` is UTF-8 without NUL (with NULs the JSON reader would take it for UTF-16)."""
    try:
        text.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return b"\0" not in text


def _tensor(name: str, entry: Any, data_begin: int, path: Path) -> Tensor:
    if not name or not name.isprintable() or len(name) > _LONGEST_NAME:
        raise IntegrityError(f"{name[:80]!r} is not a name for a tensor", where=str(path))
    where = f"{path}, tensor {name}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise IntegrityError("a tensor's entry must hold dtype, shape and data_offsets", where=where)
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise IntegrityError(f"unknown dtype {dtype!r}", where=where, remedy=f"known are {', '.join(DTYPES)}")
    if not _counts(shape) or len(shape) > _LARGEST_RANK:
        raise IntegrityError(f"the shape {shape!r} is not a list of sizes", where=where)
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise IntegrityError(f"the data_offsets {offsets!r} are not a range", where=where)
    begin, end = offsets
    size = math.prod(shape) * DTYPES[dtype]
    if end - begin != size:
        raise IntegrityError(f"{dtype} {shape} takes {size} bytes, but the header gives it {end - begin}", where=where)
    return Tensor(dtype, tuple(shape), data_begin + begin, data_begin + end, path)


def _counts(value: Any) -> bool:
    """Whether `value` is a list of whole numbers from 0 to 2**53, as JSON can hold exactly."""
    return isinstance(value, list) and all(type(item) is int and 0 <= item <= 2**53 for item in value)


def _fill_exactly(tensors: dict[str, Tensor], data_begin: int, file_size: int, path: Path) -> None:
    position = data_begin
    for name, tensor in tensors.items():
        where = f"{path}, tensor {name}"
        if tensor.end > file_size:
            raise IntegrityError(
                f"the file is truncated: it has {file_size} bytes and the tensor ends at {tensor.end}", where=where
            )
        if tensor.begin < position:
            raise IntegrityError("the tensor overlaps the one before it", where=where)
        if tensor.begin > position:
            raise IntegrityError(f"{tensor.begin - position} bytes before the tensor belong to none", where=where)
        position = tensor.end
    if position < file_size:
        raise IntegrityError(f"{file_size - position} bytes after the last tensor belong to none", where=str(path))
