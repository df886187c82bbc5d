"""Progress of long work: a bar on a terminal, JSON lines elsewhere, always on stderr."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol


class Bar(Protocol):
    def advance(self, amount: float = 1, note: str = "") -> None:
        """`amount` more of the total is done, by whichever thread; `note` is worth a word beside the bar."""


@contextmanager
def progress(what: str, *, total: float, unit: str) -> Iterator[Bar]:
    """Shows how far `what` has come.

    Args:
        what: the work, such as 'prune v7b'.
        total: how much there is of `unit` (layers, items, B).
    """
    if sys.stderr.isatty():
        with _bar(what, total, unit) as bar:
            yield bar
    else:
        lines = _Lines(what, total, unit)
        try:
            yield lines
        finally:
            lines.last()


@contextmanager
def _bar(what: str, total: float, unit: str) -> Iterator[Bar]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        MofNCompleteColumn,
        Progress,
        ProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns: list[ProgressColumn] = [DownloadColumn(binary_units=True), TransferSpeedColumn()]
    if unit != "B":
        columns = [MofNCompleteColumn()]
    note = TextColumn("{task.fields[note]}")
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), *columns, TimeRemainingColumn(), note, console=console
    ) as rich:
        task = rich.add_task(what, total=total, note="" if unit == "B" else unit)

        class Shown:
            def advance(self, amount: float = 1, note: str = "") -> None:
                rich.update(task, advance=amount)
                if note:
                    rich.update(task, note=note)

        yield Shown()


class _Lines:
    """A line a second at first, then ever fewer, and always the last one. Rates are per second since the beginning."""

    def __init__(self, what: str, total: float, unit: str) -> None:
        self._state: dict[str, Any] = {"what": what, "unit": unit, "total": total}
        self._done = 0.0
        self._note = ""
        self._begun = self._written = time.monotonic()
        self._lock = threading.Lock()

    def advance(self, amount: float = 1, note: str = "") -> None:
        with self._lock:
            self._done += amount
            self._note = note or self._note
            now = time.monotonic()
            if now - self._written >= max(1, (now - self._begun) / 4):
                self._write()

    def last(self) -> None:
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        seconds = self._written - self._begun
        line = self._state | {"done": self._done, "seconds": round(seconds, 1)}
        if seconds and 0 < self._done < self._state["total"]:
            rate = self._done / seconds
            line |= {"rate": round(rate, 1), "left": round((self._state["total"] - self._done) / rate, 1)}
        sys.stderr.write(json.dumps(line | ({"note": self._note} if self._note else {})) + "\n")
        sys.stderr.flush()
