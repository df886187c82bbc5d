"""What a file is by its first bytes, whatever it is called: loading a pickle runs the code in it, so none gets in."""

from __future__ import annotations

import mmap
import pickletools
import warnings
from pathlib import Path
from typing import IO, cast

from registry.tensors import LARGEST_HEADER

_HIGHEST_PROTOCOL = 5
_ARCHIVES = {
    b"PK\x03\x04": "a zip archive (as torch.save writes)",
    b"PK\x05\x06": "an empty zip archive",
    b"PK\x07\x08": "a spanned zip archive",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ\x00": "an xz archive",
    b"\x28\xb5\x2f\xfd": "a zstandard archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!\x1a\x07": "a rar archive",
}
_CALLS = {"REDUCE", "BUILD", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX"}


def forbidden(path: Path) -> str | None:
    """What the file is, such as 'a pickle', if it may not lie in a model's folder; None if it may.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(512)
        for magic, kind in _ARCHIVES.items():
            if start.startswith(magic):
                return kind
        if start[257:262] == b"ustar":
            return "a tar archive"
        marked = len(start) > 1 and start[0] == 0x80 and 2 <= start[1] <= _HIGHEST_PROTOCOL
        if marked and not _begins_as_safetensors(start):
            return "a pickle"
        return "a pickle" if start and _runs_as_pickle(file.fileno()) else None


def _begins_as_safetensors(start: bytes) -> bool:
    """One length of a safetensors header in 2,048 begins with the bytes that mark a pickle of protocol 2 to 5."""
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= LARGEST_HEADER


def _runs_as_pickle(descriptor: int) -> bool:
    """Protocols 0 and 1 have no mark at the start, and 0 is text: such a file is a pickle if it reads as opcodes up to
    the last one, and one of them calls something. Any other text ends at the first letter that is no opcode."""
    calls = False
    with (
        mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as content,  # gives no more than there is, however asked
        warnings.catch_warnings(action="ignore"),  # text that is no pickle may hold what looks like a bad escape
    ):
        try:
            for opcode, _, _ in pickletools.genops(cast("IO[bytes]", content)):
                calls = calls or opcode.name in _CALLS
        except (ValueError, OverflowError):
            return False
    return calls
