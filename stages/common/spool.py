"""Hidden states on disk between the halves of layers: a file for each batch, replaced whole when it has gone further.

    spool = Spool(folder, count=len(batches), of="what the states are of")
    spool.begin(make)                  make(batch) -> the states at step 0
    spool.advance(0, 1, work)          work(batch, tensors) -> (tensors, note), from step 0 to step 1, for every batch
                                       that is not there yet

A file says what it is (the step, the batch) and carries a checksum. It is complete when it has its name, so a process
killed at any moment loses no more than the batches it was at. Files are not forced to the disk one by one: what is
small stays in the page cache, and what a power cut tore is seen by its checksum.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_EXCEPTION, wait
from functools import partial
from pathlib import Path
from typing import Any

import torch

from gates import canonical
from gates.errors import IntegrityError
from registry import fs
from registry.parallel import pool
from stages.common.checkpoint import TORCH_DTYPES

Tensors = Mapping[str, torch.Tensor]
Note = dict[str, Any]
"""Small JSON that is written with the states of a batch, such as the sums over its tokens."""
Work = Callable[[int, Tensors], tuple[Tensors, Note]]

_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}
_MARKER, _FINISHED = "spool.json", "finished"
AHEAD = 2
"""Batches that are read or written while others are worked on."""


class Spool:
    """The batches of one run.

    Args:
        folder: is made; and emptied, if it holds the states of something else, or lacks some.
        count: how many batches.
        of: what the states follow from (canonical JSON): the tokens, the precision, the libraries.
    """

    def __init__(self, folder: Path, *, count: int, of: Any) -> None:
        self.count = count
        self.worked = 0.0
        """Seconds that slots have worked."""
        self.waited = 0.0
        """Seconds that slots stood idle, for want of a batch or because others were still at work on the last ones."""
        self._folder = folder
        self._marker = canonical.dumps({"of": of, "count": count})
        if not _is(folder / _MARKER, self._marker):
            self._empty()
        for path in folder.glob(f"{fs.TEMPORARY}*"):
            fs.remove_tree(path)
        self._headers = [self._there(batch) for batch in range(count)]
        steps = {self.at(batch) for batch in range(count)}
        if not self.finished and None in steps and steps - {None, 0}:
            self._empty()
            self._headers = [None] * count

    def at(self, batch: int) -> int | None:
        """The step whose output is there; None before `begin`."""
        header = self._headers[batch]
        return int(header["step"]) if header else None

    @property
    def begun(self) -> bool:
        """Whether the states of every batch are there, of whatever step."""
        return self.finished or None not in map(self.at, range(self.count))

    def is_at(self, step: int) -> bool:
        """Whether all batches have come to `step` or further."""
        return self.finished or all((self.at(batch) or 0) >= step for batch in range(self.count))

    def notes(self, step: int) -> list[Note]:
        """What was noted with the states of each batch, all of which are at `step`.

        Raises:
            IntegrityError: they are not. The next `Spool` begins afresh.
        """
        for batch in range(self.count):
            if self.at(batch) != step:
                raise self._damaged(batch)
        return [header["note"] for header in self._headers if header]

    def begin(self, make: Callable[[int], torch.Tensor]) -> None:
        """Writes what `make` gives as step 0 of every batch that is not there."""
        for batch in range(self.count):
            if self.at(batch) is None:
                self._write(batch, 0, {"states": make(batch)}, {})

    def advance(self, after: int, step: int, work: Work, *, slots: int = 1) -> None:
        """Brings every batch from the step `after` to `step`: what it holds goes through `work`, and is replaced.

        Reading and writing go on beside the work. A batch that is at `step` or further is passed over.

        Args:
            slots: how many batches are worked on at a time; `work` is called from so many threads.

        Raises:
            IntegrityError: states on disk are damaged, or of another step. The next `Spool` begins afresh.
        """
        free = threading.Semaphore(slots)
        begun, busy = time.perf_counter(), []

        def one(batch: int) -> None:
            tensors = self._read(batch, after)
            with free:
                entered = time.perf_counter()
                made, note = work(batch, tensors)
                busy.append(time.perf_counter() - entered)
            del tensors
            self._write(batch, step, made, note)

        # In each thread one of torch's: more than there are free cores make a layer several times slower.
        with pool(slots + AHEAD, partial(torch.set_num_threads, 1)) as threads:
            waiting = [threads.submit(one, batch) for batch in range(self.count) if (self.at(batch) or 0) < step]
            for future in wait(waiting, return_when=FIRST_EXCEPTION).done:
                future.result()
        self.worked += sum(busy)
        self.waited += (time.perf_counter() - begun) * slots - sum(busy)

    def keep(self, name: str, data: bytes) -> None:
        """Keeps a small result beside the states, durably, for as long as they are valid."""
        fs.write_content(self._folder / name, data)

    def kept(self, name: str) -> bytes | None:
        """What was kept under this name."""
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None

    @property
    def finished(self) -> bool:
        return (self._folder / _FINISHED).exists()

    def finish(self) -> None:
        """Removes the states; what was kept stays."""
        fs.write_content(self._folder / _FINISHED, b"")
        for batch in range(self.count):
            fs.remove_tree(self._path(batch))

    def _empty(self) -> None:
        fs.remove_tree(self._folder)
        fs.make_folders(self._folder)
        fs.write_new(self._folder / _MARKER, self._marker)

    def _path(self, batch: int) -> Path:
        return self._folder / f"{batch:08d}.states"

    def _there(self, batch: int) -> dict[str, Any] | None:
        """The header of a batch whose file is there and as long as its header says."""
        try:
            with self._path(batch).open("rb") as file:
                line = file.readline()
                header = _header(line, batch)
                return header if header and os.fstat(file.fileno()).st_size == len(line) + header["size"] else None
        except FileNotFoundError:
            return None

    def _read(self, batch: int, step: int) -> dict[str, torch.Tensor]:
        path = self._path(batch)
        try:
            with path.open("rb") as file:
                header = _header(file.readline(), batch)
                data = bytearray(header["size"] if header else 0)
                whole = file.readinto(data) == len(data) and not file.read(1)
        except FileNotFoundError:
            header, whole = None, False
        if header is None or not whole or header["step"] != step:
            raise self._damaged(batch)
        if _crc(header, [memoryview(data)]) != header["crc32"]:
            raise self._damaged(batch)
        return dict(_tensors(header, data))

    def _damaged(self, batch: int) -> IntegrityError:
        """A power cut may leave what was replaced already, or a torn file."""
        fs.remove_tree(self._folder / _MARKER)  # what follows from these states has to be made again from the start
        return IntegrityError(
            "hidden states on disk are damaged",
            where=str(self._path(batch)),
            remedy="run the same command again: it makes them again from the first layer",
        )

    def _write(self, batch: int, step: int, tensors: Tensors, note: Note) -> None:
        parts = [part for tensor in tensors.values() for part in _bytes(tensor)]
        header: dict[str, Any] = {
            "batch": batch,
            "step": step,
            "note": note,
            "tensors": [[name, _NAMES[tensor.dtype], list(tensor.shape)] for name, tensor in tensors.items()],
            "size": sum(len(part) for part in parts),
        }
        header["crc32"] = _crc(header, parts)
        fs.replace_work(self._path(batch), (json.dumps(header).encode() + b"\n", *parts))
        self._headers[batch] = header


def _is(path: Path, data: bytes) -> bool:
    try:
        return path.read_bytes() == data
    except FileNotFoundError:
        return False


def _header(line: bytes, batch: int) -> dict[str, Any] | None:
    try:
        header = json.loads(line)
    except ValueError:
        return None
    fields = {"batch", "step", "note", "tensors", "size", "crc32"}
    right = isinstance(header, dict) and header.keys() == fields and header["batch"] == batch
    return header if right else None


def _crc(header: Mapping[str, Any], parts: list[memoryview]) -> int:
    """Of everything that the file says, but for this number."""
    crc = zlib.crc32(json.dumps({key: value for key, value in header.items() if key != "crc32"}).encode())
    for part in parts:
        crc = zlib.crc32(part, crc)
    return crc


def _tensors(header: dict[str, Any], data: bytearray) -> Iterator[tuple[str, torch.Tensor]]:
    position = 0
    for name, dtype, shape in header["tensors"]:
        kind, size = TORCH_DTYPES[dtype], math.prod(shape)
        yield name, torch.frombuffer(data, dtype=kind, count=size, offset=position).view(shape)
        position += _padded(size * kind.itemsize)


def _bytes(tensor: torch.Tensor) -> list[memoryview]:
    """The bytes of a tensor, filled up to where the next one may begin."""
    data = memoryview(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return [data, memoryview(bytes(_padded(len(data)) - len(data)))]


def _padded(size: int) -> int:
    return -(-size // 8) * 8
