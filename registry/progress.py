"""Progress of long work: a bar on a terminal, JSON lines elsewhere, always on stderr."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Bar(Protocol):
    def advance(self, amount: float = 1, note: str = "") -> None:
        """`amount` more of the total is done; `note` is worth a word beside the bar."""


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
    from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    amount = DownloadColumn(binary_units=True) if unit == "B" else MofNCompleteColumn()
    note = TextColumn("{task.fields[note]}")
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"), BarColumn(), amount, TimeRemainingColumn(), note, console=console
    ) as rich:
        task = rich.add_task(what, total=total, note="" if unit == "B" else unit)

        class Shown:
            def advance(self, amount: float = 1, note: str = "") -> None:
                rich.update(task, advance=amount)
                if note:
                    rich.update(task, note=note)

        yield Shown()


class _Lines:
    """A line a second at first, then ever fewer, and always the last one."""

    def __init__(self, what: str, total: float, unit: str) -> None:
        self._state = {"what": what, "unit": unit, "total": total}
        self._done = 0.0
        self._note = ""
        self._begun = self._written = time.monotonic()

    def advance(self, amount: float = 1, note: str = "") -> None:
        self._done += amount
        self._note = note or self._note
        now = time.monotonic()
        if now - self._written >= max(1, (now - self._begun) / 4):
            self._write()

    def last(self) -> None:
        self._write()

    def _write(self) -> None:
        self._written = time.monotonic()
        line = self._state | {"done": self._done, "seconds": round(self._written - self._begun, 1)}
        sys.stderr.write(json.dumps(line | ({"note": self._note} if self._note else {})) + "\n")
        sys.stderr.flush()
