"""Work in processes of their own, for what only shows between processes: races, and ends without any cleaning up."""

from __future__ import annotations

import os
import signal
import threading
import traceback
import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal

from registry import syscalls

KILLED = -signal.SIGKILL
"""What `end` gives for a process that `dying_at` killed."""


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


def dying_at(number: int, work: Callable[[], Any], *, when: Literal["before", "after"] = "before") -> Callable[[], Any]:
    """`work`, killed just before or after its `number`-th change to a file, link or folder of a registry (from 1).

    For a process of its own only: it stays spoilt.
    """

    def run() -> None:
        lock, left = threading.Lock(), number

        def around(_: str, arguments: tuple[Any, ...], call: Callable[..., Any]) -> Any:
            nonlocal left
            with lock:
                left -= 1
                last = left == 0
            if last and when == "before":
                os.kill(os.getpid(), signal.SIGKILL)
            result = call(*arguments)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        syscalls.around = around
        work()

    return run
