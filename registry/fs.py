"""The only place that creates, renames, links, fsyncs or removes anything inside a registry.

Every function either does its work or leaves what was there; what it leaves behind when the process is killed is a name
that begins with `.tmp-`, which no reader looks at. Data is durable before the name that leads to it: file, then folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import secrets
import stat
import sys
from collections.abc import Callable
from pathlib import Path

from gates.errors import IntegrityError

TEMPORARY = ".tmp-"
"""How the name of everything unfinished begins."""

CHUNK = 8 << 20
"""Bytes read at a time."""

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}


def write_new(path: Path, data: bytes) -> None:
    """Makes the file `path`: durable, read-only and complete from the moment that it is there.

    Raises:
        FileExistsError: there is one already, complete and durable.
    """
    temporary = beside(path)
    try:
        _write(temporary, data)
        os.link(temporary, path)
    finally:
        _unlink(temporary)
        sync_folder(path.parent)


def write_content(path: Path, data: bytes) -> bool:
    """As `write_new`, for a file whose name follows from its content: one that holds anything else is damaged and is
    replaced.

    Returns:
        whether the file is new.
    """
    try:
        write_new(path, data)
    except FileExistsError:
        if path.read_bytes() != data:
            temporary = beside(path)
            _write(temporary, data)
            os.rename(temporary, path)
            sync_folder(path.parent)
        return False
    return True


def replace_link(path: Path, target: str) -> None:
    """Makes `path` a symbolic link to `target`. Whoever reads it sees the old target or the new one, never none."""
    temporary = beside(path)
    os.symlink(target, temporary)
    os.rename(temporary, path)
    sync_folder(path.parent)


def new_link(path: Path, target: str) -> None:
    """A symbolic link in a folder that nobody sees yet (`sync_folder` is the caller's)."""
    os.symlink(target, path)


def link_in(file: Path, blob: Path, digest: str) -> bool:
    """Makes `file`, whose SHA-256 is `digest`, the blob too: durable, read-only, without copying a byte.

    A blob that is there already is read: if it holds what its name says it stays, otherwise it is replaced.

    Returns:
        whether the blob is new.
    """
    sync_file(file)
    os.chmod(file, 0o444)
    try:
        os.link(file, blob)
    except FileExistsError:
        if os.path.samefile(file, blob) or hash_file(blob)[0] == digest:
            sync_folder(blob.parent)
            return False
        temporary = beside(blob)
        os.link(file, temporary)
        os.rename(temporary, blob)
    sync_folder(blob.parent)
    return True


def unshare(folder: Path) -> None:
    """Makes the files below `folder` writable again after `link_in`: those that are blobs too become copies."""
    for base, _, names in os.walk(folder):
        for name in names:
            file = Path(base, name)
            state = os.lstat(file)
            if not stat.S_ISREG(state.st_mode):
                continue
            if state.st_nlink > 1:
                temporary = beside(file)
                copy_in(file, temporary, lambda _: None)
                sync_file(temporary)
                os.rename(temporary, file)
            elif not state.st_mode & stat.S_IWUSR:
                os.chmod(file, 0o644)


def make_folders(path: Path) -> None:
    """Makes the folder `path` and those above it, as far as they are missing; what is made is durable."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(folder)
        sync_folder(folder.parent)


def rename_folder(source: Path, target: Path) -> None:
    """Gives a complete folder its name.

    Raises:
        FileExistsError: something that is not an empty folder is called so.
    """
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        raise
    sync_folder(target.parent)
    sync_folder(source.parent)


def rename_file(source: Path, target: Path) -> None:
    """Gives a complete file its name, durably; what was called so is replaced whole."""
    sync_file(source)
    os.rename(source, target)
    sync_folder(target.parent)


def exchange(mine: Path, theirs: Path) -> None:
    """Swaps two folders, so that `theirs` is at no moment missing or half there.

    Where the file system cannot (NFS, macOS), three renames do it: then `theirs` is missing between the first and the
    second, never half there. A process killed in that gap leaves `theirs` under a temporary name beside `mine`.
    """
    try:
        _rename_exchange(mine, theirs)
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        aside = beside(mine)
        os.rename(theirs, aside)
        os.rename(mine, theirs)
        os.rename(aside, mine)
    sync_folder(theirs.parent)
    sync_folder(mine.parent)


def remove_tree(path: Path) -> None:
    """Removes what is at `path`, if anything is; of a link the link alone. For work in progress only."""
    try:
        is_folder = stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_folder:
        _unlink(path)
        return
    for name in _names(path):
        remove_tree(path / name)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(path)


def copy_in(source: Path, target: Path, advance: Callable[[int], None]) -> tuple[str, int]:
    """Copies a file and hashes it on the way; `advance` is told how many bytes came.

    Returns:
        SHA-256 and size (bytes) of what was written.
    """
    sha, size = hashlib.sha256(), 0
    reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        writing = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            while chunk := os.read(reading, CHUNK):
                sha.update(chunk)
                _write_all(writing, chunk)
                size += len(chunk)
                advance(len(chunk))
        finally:
            os.close(writing)
    finally:
        os.close(reading)
    return sha.hexdigest(), size


def hash_file(path: Path, advance: Callable[[int], None] | None = None) -> tuple[str, int]:
    """SHA-256 and size (bytes) of a file; `advance` is told how many bytes came."""
    sha, size = hashlib.sha256(), 0
    reading = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        while chunk := os.read(reading, CHUNK):
            sha.update(chunk)
            size += len(chunk)
            if advance:
                advance(len(chunk))
    finally:
        os.close(reading)
    return sha.hexdigest(), size


def read(path: Path, what: str) -> bytes:
    """
    Raises:
        IntegrityError: `what` is missing, or something that is no file is in its place.
    """
    try:
        return path.read_bytes()
    except PermissionError:  # whose registry it is, not what is in it
        raise
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise IntegrityError(f"the {what} {reason}", where=str(path)) from None


def sync_file(path: Path) -> None:
    _sync(path, os.O_RDONLY | os.O_CLOEXEC)


def sync_folder(path: Path) -> None:
    _sync(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def beside(path: Path) -> Path:
    """A temporary name in the same folder, which nobody else takes."""
    return path.parent / f"{TEMPORARY}{secrets.token_hex(8)}"


def entries(folder: Path) -> list[str]:
    """The names in `folder`, sorted, without hidden and unfinished ones; none if there is no such folder."""
    try:
        return [name for name in _names(folder) if not name.startswith(".")]
    except FileNotFoundError:
        return []


def _write(path: Path, data: bytes) -> None:
    writing = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444)
    try:
        _write_all(writing, data)
        os.fsync(writing)
    finally:
        os.close(writing)


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unlink(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


def _rename_exchange(mine: Path, theirs: Path) -> None:
    """renameat2(2) with RENAME_EXCHANGE, which Python has no name for."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not sys.platform.startswith("linux") or not hasattr(libc, "renameat2"):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    if libc.renameat2(_AT_FDCWD, os.fsencode(mine), _AT_FDCWD, os.fsencode(theirs), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(theirs))
