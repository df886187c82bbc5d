"""What an execution may leave behind, and how it goes: processes, files."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Collection
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


def empty(folder: Path, *, keep: Collection[str] = ()) -> None:
    """Removes all that is in `folder`, but for the names in `keep`; however deep it is nested.

    It holds one folder open at a time, and goes up by "..": nobody is left who could move a folder meanwhile.
    """
    if os.stat(folder).st_uid == os.geteuid():  # the folders that a container mounts are root's, and nobody shuts them
        os.chmod(folder, 0o700)  # where the kernel has no filter for calls, a program may have shut it
    here, names = os.open(folder, os.O_RDONLY | os.O_DIRECTORY), []
    try:
        left = [_full_folders(here, keep)]
        while True:
            if left[-1]:
                names.append(left[-1].pop())
                here = _opened(names[-1], here)
                left.append(_full_folders(here, ()))
            elif names:
                left.pop()
                here = _opened("..", here)
                os.rmdir(names.pop(), dir_fd=here)
            else:
                return
    finally:
        os.close(here)


def _full_folders(here: int, keep: Collection[str]) -> list[str]:
    """The folders in `here` that hold something, opened to us; everything else is removed.

    `here` is read once: to begin anew after every folder takes hours where a program made a hundred thousand.
    """
    with os.scandir(here) as entries:
        found = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries if entry.name not in keep]
    full = []
    for name, is_folder in found:
        if not is_folder:
            os.unlink(name, dir_fd=here)
            continue
        try:
            os.rmdir(name, dir_fd=here)
        except OSError:
            os.chmod(name, 0o700, dir_fd=here)
            full.append(name)
    return full


def _opened(name: str, here: int) -> int:
    """The folder `name` in `here`, in its place."""
    found = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=here)
    os.close(here)
    return found


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
