"""Files of public sets, read to their rows: JSON lines, a list of JSON, either compressed by gzip, or Parquet."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from typing import Any

from gates.errors import UsageError

Json = dict[str, Any]

KINDS = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet")
LARGEST = 1 << 30
"""Bytes that one file may have, unpacked."""


def rows_in(name: str, data: bytes, *, where: str) -> list[Json]:
    """The rows of a file called `name`.

    Raises:
        UsageError: it is not of a kind that can be read here, or not what its name says.
    """
    if name.endswith(".parquet"):
        return _parquet(data, where)
    if name.endswith(".gz"):
        data = _unpacked(data, where)
    return rows_of(data, where=where)


def rows_of(data: bytes, *, where: str) -> list[Json]:
    """The objects in `data`: one a line (blank lines are passed over), or a list of them. Numbers stay what they are:
    1.0 is not 1, and no whole number is too large.

    Raises:
        UsageError: it is not that, NaN and a key given twice included; the line is named.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UsageError("this is not UTF-8 text", where=where) from None
    if text.lstrip().startswith("["):
        values = _value(text, where)
        return [_object(value, f"{where}, [{number}]") for number, value in enumerate(values)]
    lines = ((f"{where}, line {number}", line) for number, line in enumerate(text.split("\n"), 1) if line.strip())
    return [_object(_value(line, at), at) for at, line in lines]


def _object(value: Any, where: str) -> Json:
    if not isinstance(value, dict):
        raise UsageError("not a JSON object", where=where)
    return value


def _value(text: str, where: str) -> Any:
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"not readable as JSON: {error}", where=where) from None


def _unpacked(data: bytes, where: str) -> bytes:
    try:
        with gzip.open(io.BytesIO(data)) as file:
            found = file.read(LARGEST + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UsageError(f"this cannot be unpacked: {error}", where=where) from None
    if len(found) > LARGEST:
        raise UsageError(f"this unpacks to more than {LARGEST >> 30} GiB", where=where)
    return found


def _parquet(data: bytes, where: str) -> list[Json]:
    try:
        from pyarrow import ArrowException, BufferReader, parquet
    except ImportError:
        raise UsageError(
            "this set is published as Parquet, and pyarrow, which reads that, is not installed here",
            where=where,
            remedy="do this where it is, with the same words after .venv-prune/bin/registry; or name a copy in JSON "
            "lines: --from PATH",
        ) from None
    try:
        rows: list[Json] = parquet.ParquetFile(BufferReader(data)).read().to_pylist()
    except ArrowException as error:
        raise UsageError(f"this is no Parquet file: {error}", where=where) from None
    return rows


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> Json:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is given twice")
    return value


_DECODER = json.JSONDecoder(parse_constant=_refuse, object_pairs_hook=_unique)
