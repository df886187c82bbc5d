"""The processes that an execution may leave behind, and how they go."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal

from registry.processes import adopt_orphans, descendants

_PR_SET_DUMPABLE = 4
"""prctl(2)."""


def guard() -> None:
    """Makes this process the parent of all orphans below it, and keeps what runs as the same user out of its memory."""
    adopt_orphans()
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0)


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
                for process in descendants():
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(process, signal.SIGKILL)
            os.waitpid(-1, 0)
        except ChildProcessError:
            return
