"""The processes that an execution may leave behind, and how they go."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from pathlib import Path

_PR_SET_DUMPABLE, _PR_SET_CHILD_SUBREAPER = 4, 36


def guard() -> None:
    """Makes this process the parent of all orphans below it, and keeps what runs as the same user out of its memory."""
    prctl = ctypes.CDLL(None).prctl
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    prctl(_PR_SET_DUMPABLE, 0)


def alone() -> bool:
    """Whether no process but this one (and an init) exists, as in a container of its own. To be asked at the start."""
    return {int(name) for name in os.listdir("/proc") if name.isdecimal()} <= {1, os.getpid()}


def end_processes(*, everything: bool) -> None:
    """Kills every process below this one, and comes back when they are gone.

    Args:
        everything: kills all processes that there are but init. Only in a container where this one was `alone`: there
            it is one call, which no program can outrun by forking.
    """
    while True:
        try:
            reaped, _ = os.waitpid(-1, os.WNOHANG)
            if reaped:
                continue
            if everything:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(-1, signal.SIGKILL)
            else:
                for process in _descendants():
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(process, signal.SIGKILL)
            os.waitpid(-1, 0)
        except ChildProcessError:
            return


def _descendants() -> set[int]:
    children: dict[int, list[int]] = {}
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError, IndexError, ValueError):
                parent = int(Path("/proc", name, "stat").read_bytes().rpartition(b")")[2].split()[1])
                children.setdefault(parent, []).append(int(name))
    found: set[int] = set()
    level = [os.getpid()]
    while level:
        level = [child for process in level for child in children.get(process, ()) if child not in found]
        found.update(level)
    return found
