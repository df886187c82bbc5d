"""Work in processes of their own, for what only shows between processes: races, and ends without any cleaning up."""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable, Iterable
from types import ModuleType
from typing import Any

from registry import fs

KILLED = 77
"""The exit status of a process that `dying_at` ended."""

CHANGES = ("chmod", "fsync", "link", "mkdir", "rename", "rmdir", "symlink", "unlink", "write")


def start(work: Callable[[], Any]) -> int:
    """Runs `work` in a forked process and gives its id; an exception in it is printed and ends it with 1."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # threads of other tests' libraries take no part
        process = os.fork()
    if process:
        return process
    status = 1
    try:
        work()
        status = 0
    except BaseException:  # noqa: BLE001 - the child must not come back into the parent's test run
        traceback.print_exc()
    finally:
        os._exit(status)


def end(process: int) -> int:
    """Waits for a process and gives its exit status."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def together(works: Iterable[Callable[[], Any]]) -> list[int]:
    """Runs all of `works` at once and gives their exit statuses."""
    return [end(process) for process in [start(work) for work in works]]


def dying_at(number: int, work: Callable[[], Any]) -> Callable[[], Any]:
    """`work`, ended without warning just before its `number`-th change to a file, link or folder (from 1).

    For a process of its own only: it stays spoilt.
    """

    def run() -> None:
        changes = _Dying(number)
        fs.os = changes  # type: ignore[assignment]
        exchange = fs._rename_exchange

        def counted(*paths: Any) -> None:
            changes.count()
            exchange(*paths)

        fs._rename_exchange = counted
        work()

    return run


class _Dying(ModuleType):
    """The module os, until the fatal change."""

    def __init__(self, number: int) -> None:
        super().__init__("os")
        self._left = number

    def count(self) -> None:
        self._left -= 1
        if self._left == 0:
            os._exit(KILLED)

    def open(self, path: Any, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            self.count()
        return os.open(path, flags, mode)

    def __getattr__(self, name: str) -> Any:
        function = getattr(os, name)
        if name not in CHANGES:
            return function

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.count()
            return function(*args, **kwargs)

        return counted
