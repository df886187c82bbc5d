"""Faults in the real code: every change below a registry's root passes `registry.syscalls`, and there it meets them."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections.abc import Callable, Iterator
from typing import Any

from registry import syscalls

TAKES_ROOM = {"create", "write", "allocate", "mkdir", "symlink", "link", "clone"}
"""What fails on a full disk."""

NEEDS_RIGHTS = {"create", "mkdir", "symlink", "link", "rename", "exchange", "unlink", "rmdir", "chmod", "touch"}
"""What fails in a folder that is somebody else's."""

CONCERNED = {errno.EIO: None, errno.ENOSPC: TAKES_ROOM, errno.EDQUOT: TAKES_ROOM, errno.EACCES: NEEDS_RIGHTS}
"""Which calls each error can come from; None: from all."""

injected = 0
"""How many faults were injected so far in this process's tests: the number that the test run prints."""


def count_fault() -> None:
    global injected
    injected += 1


Around = Callable[[str, tuple[Any, ...], Callable[..., Any]], Any]


@contextlib.contextmanager
def around(hook: Around) -> Iterator[None]:
    """Every call passes `hook` while the block runs."""
    syscalls.around = hook
    try:
        yield
    finally:
        syscalls.around = None


class Counting:
    """Lets every call through and counts them; `names` are theirs, in order."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def __call__(self, name: str, arguments: tuple[Any, ...], call: Callable[..., Any]) -> Any:
        self.names.append(name)
        return call(*arguments)


class Failing:
    """Lets the `number`-th call that can give this error fail (from 1), once or from then on. `failed` counts them."""

    def __init__(self, number: int, error: int, *, for_good: bool) -> None:
        self.failed = 0
        self._left, self._error, self._for_good = number, error, for_good
        self._lock = threading.Lock()

    def __call__(self, name: str, arguments: tuple[Any, ...], call: Callable[..., Any]) -> Any:
        concerned = CONCERNED[self._error]
        if concerned is None or name in concerned:
            with self._lock:
                self._left -= 1
                fails = self._left == 0 or (self._for_good and self._left < 0)
                self.failed += fails
            if fails:
                path = next((str(each) for each in arguments if not isinstance(each, int | memoryview)), None)
                raise OSError(self._error, os.strerror(self._error), path)
        return call(*arguments)


class Short:
    """Lets the `number`-th write take half of what it is given (from 1), or from then on every write."""

    def __init__(self, number: int, *, for_good: bool) -> None:
        self.failed = 0
        self._left, self._for_good = number, for_good
        self._lock = threading.Lock()

    def __call__(self, name: str, arguments: tuple[Any, ...], call: Callable[..., Any]) -> Any:
        if name == "write":
            with self._lock:
                self._left -= 1
                short = self._left == 0 or (self._for_good and self._left < 0)
                self.failed += short
            if short:
                descriptor, data = arguments
                return call(descriptor, data[: (len(data) + 1) // 2])
        return call(*arguments)
