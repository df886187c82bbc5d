"""The two forms of Inspect's logs, .json and .eval (a zip), as a header and samples that are read one at a time."""

from __future__ import annotations

import io
import zipfile as plain_zip
from collections.abc import Iterator
from typing import Any

from gates.errors import SluiceError, UsageError
from gates.importers import source
from gates.importers.source import Source

_MEMBER, _WHOLE, _MEMBERS = 2**27, 2**31, 200_000
"""Bytes of one member of a .eval, of all of them, and how many there may be: a zip can claim any size."""


def is_log(file: Source) -> bool:
    """Whether this looks like a log of Inspect."""
    if _zipped(file):
        return file.name.endswith(".eval") or b"header.json" in file.data[-(2**22) :]
    try:
        value = source.parsed(file)
    except SluiceError:
        return False
    return isinstance(value.get("eval"), dict) and {"version", "status", "plan"} <= value.keys()


def _zipped(file: Source) -> bool:
    return file.data[:2] == b"PK"


def opened(file: Source) -> tuple[dict[str, Any], Iterator[tuple[str, Any]]]:
    """The header of a log, and each sample with where it stands.

    Raises:
        UsageError: it is no log, or not whole, or would unpack to more than anybody means to.
        InvalidEvidence: it is not shaped as a log.
    """
    return _archive(file) if _zipped(file) else _text(file)


def _text(file: Source) -> tuple[dict[str, Any], Iterator[tuple[str, Any]]]:
    header = source.parsed(file)
    listed = source.listed(header.get("samples") or [], where=f"{file.name}, samples")
    return header, ((f"{file.name}, samples[{number}]", each) for number, each in enumerate(listed))


def _archive(file: Source) -> tuple[dict[str, Any], Iterator[tuple[str, Any]]]:
    """The header and the samples of a .eval, which are read one at a time."""
    try:
        archive = _zip().ZipFile(io.BytesIO(file.data))
        members = {each.filename: each.file_size for each in archive.infolist()}
    except Exception as error:  # noqa: BLE001 - what is no zip comes to errors of many kinds
        raise UsageError(f"this zip cannot be read: {error}", where=file.name, remedy=source.WRONG_FILE) from None
    largest = max(members.values(), default=0)
    if largest > _MEMBER or sum(members.values()) > _WHOLE or len(archive.infolist()) > _MEMBERS:
        raise UsageError(
            f"this zip would unpack to {sum(members.values())} bytes in {len(members)} files, the largest {largest}",
            where=file.name,
            remedy=f"at most {_MEMBER >> 20} MiB a file and {_WHOLE >> 30} GiB in all are read",
        )
    if len(members) != len(archive.infolist()):
        source.refuse("a file is in this zip twice", file.name)
    if "header.json" not in members:
        raise UsageError(
            "this log was never finished: it has no header.json",
            where=file.name,
            remedy="finish it with inspect eval-retry, or recover it with inspect log",
        )
    header = source.table(_member(archive, "header.json", file), where=f"{file.name}, header.json")
    names = sorted(name for name in members if name.startswith("samples/") and name.endswith(".json"))
    return header, ((f"{file.name}, {name}", _member(archive, name, file)) for name in names)


def _zip() -> Any:
    """Newer logs are compressed with Zstandard, which Python's own zipfile reads from 3.14 on."""
    try:
        from backports.zstd import zipfile
    except ImportError:
        return plain_zip
    return zipfile


def _member(archive: Any, name: str, file: Source) -> Any:
    where = f"{file.name}, {name}"
    try:
        with archive.open(name) as opened:
            data = opened.read(_MEMBER + 1)
    except Exception as error:  # noqa: BLE001 - each compression has errors of its own
        raise UsageError(f"this zip cannot be read: {error}", where=where, remedy=source.WRONG_FILE) from None
    if len(data) > _MEMBER:
        raise UsageError(f"it is larger than {_MEMBER >> 20} MiB", where=where, remedy=source.WRONG_FILE)
    return source.value_of(data, where=where)
