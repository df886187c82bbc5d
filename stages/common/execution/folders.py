"""Folders in which programs may have left anything: removed however deep they are nested, and those of a harness that
was killed by the next one."""

from __future__ import annotations

import contextlib
import fcntl
import os
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

_PREFIX = "sluice-verifier-"


@contextmanager
def own() -> Iterator[tuple[Path, int]]:
    """A folder in the temporary one, of this user's alone, that is removed at the end; and the descriptor of its lock.

    The lock ends with all processes that hold the descriptor, however they end. Whoever makes the next folder removes
    those of this user that are not locked.
    """
    _remove_abandoned(Path(tempfile.gettempdir()))
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
        held = _locked(folder)
        if held is not None:
            break  # otherwise another was faster than the lock, and removes it
    try:
        yield folder, held
    finally:
        remove(folder)
        os.close(held)


def remove(folder: Path) -> None:
    """
    Raises:
        OSError: something is left.
    """
    empty(folder)
    folder.rmdir()


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


def _remove_abandoned(temporary: Path) -> None:
    for folder in temporary.glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError):  # another removes it, or it stays for the next
            if folder.lstat().st_uid == os.geteuid() and (held := _locked(folder)) is not None:
                try:
                    remove(folder)
                finally:
                    os.close(held)


def _locked(folder: Path) -> int | None:
    """The folder, opened and locked; None where somebody holds it, or it is there no more."""
    try:
        held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(held), os.lstat(folder)):
            return held
    except OSError:
        pass
    os.close(held)
    return None


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
