"""Every system call by which a registry changes, one function each. Only `registry/fs.py` calls them, and for the bytes
of large files `registry/bulk.py`.

Each passes `around`, when it is set: tests/faults counts the calls there, kills the process, lets one fail or records
them, with nothing else of the code under test replaced.
"""

from __future__ import annotations

import ctypes
import errno
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")

around: Callable[[str, tuple[Any, ...], Callable[..., Any]], Any] | None = None
"""Is given the name of a call, its arguments and the call itself, in place of which it stands."""

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_FICLONE = 0x40049409


def create(path: Path, mode: int) -> int:
    """A descriptor for writing a file that was not there."""
    return _pass("create", _create, path, mode)


def write(descriptor: int, data: memoryview) -> int:
    """How many bytes were taken, which may be fewer than there are."""
    return _pass("write", os.write, descriptor, data)


def allocate(descriptor: int, size: int) -> None:
    """Takes the room for so many bytes, or fails now and not in the middle."""
    _pass("allocate", _allocate, descriptor, size)


def truncate(descriptor: int, size: int) -> None:
    """Gives a file a size; what it gains reads as zeros."""
    _pass("truncate", os.ftruncate, descriptor, size)


def clone(descriptor: int, source: int) -> None:
    """Lets a new file share the bytes of another.

    Raises:
        OSError: also where the system or the file system cannot.
    """
    _pass("clone", _clone, descriptor, source)


def sync(descriptor: int) -> None:
    _pass("sync", os.fsync, descriptor)


def link(source: Path, target: Path) -> None:
    _pass("link", os.link, source, target)


def symlink(target: str, path: Path) -> None:
    _pass("symlink", os.symlink, target, path)


def rename(source: Path, target: Path) -> None:
    _pass("rename", os.rename, source, target)


def exchange(mine: Path, theirs: Path) -> None:
    """
    Raises:
        OSError: also with ENOSYS, EINVAL or ENOTSUP, where the system or the file system cannot.
    """
    _pass("exchange", _exchange, mine, theirs)


def unlink(path: Path) -> None:
    _pass("unlink", os.unlink, path)


def mkdir(path: Path) -> None:
    _pass("mkdir", os.mkdir, path)


def rmdir(path: Path) -> None:
    _pass("rmdir", os.rmdir, path)


def chmod(path: Path, mode: int) -> None:
    _pass("chmod", os.chmod, path, mode)


def touch(path: Path) -> None:
    """Sets the time of the last change to now."""
    _pass("touch", os.utime, path)


def _pass(name: str, call: Callable[..., Result], *arguments: Any) -> Result:
    if around is None:
        return call(*arguments)
    result: Result = around(name, arguments, call)
    return result


def _create(path: Path, mode: int) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)


def _allocate(descriptor: int, size: int) -> None:
    if size and hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)


def _clone(descriptor: int, source: int) -> None:
    """ioctl_ficlone(2), which Python has no name for."""
    if not sys.platform.startswith("linux"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    import fcntl

    fcntl.ioctl(descriptor, _FICLONE, source)


def _exchange(mine: Path, theirs: Path) -> None:
    """renameat2(2) with RENAME_EXCHANGE, which Python has no name for."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not sys.platform.startswith("linux") or not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if libc.renameat2(_AT_FDCWD, os.fsencode(mine), _AT_FDCWD, os.fsencode(theirs), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(theirs))
