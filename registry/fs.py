"""The only place that creates, renames, links, fsyncs or removes anything inside a registry.

Every function either does its work or leaves what was there; what it leaves behind when the process is killed is a name
that begins with `.tmp-`, which no reader looks at. Data is durable before the name that leads to it: file, then folder.
Every change passes `registry/syscalls.py`, where tests count it, let it fail or kill the process.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TypeVar

from gates.errors import IntegrityError
from registry import syscalls
from registry.bulk import copy_in, hash_file, naming, write_all

Result = TypeVar("Result")

TEMPORARY = ".tmp-"
"""How the name of everything unfinished begins."""

RESTORE = "restore it from a backup, or make again what it belongs to; registry doctor says what else is damaged"

RESERVE = "locks/reserve"
"""A file below a registry's root whose room is given up for records when the disk is full."""

_RESERVED = 1 << 20
_RECORD = 64 << 10
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP}


def write_new(path: Path, data: bytes) -> None:
    """Makes the file `path`: durable, read-only and complete from the moment that it is there.

    Raises:
        FileExistsError: there is one already, complete and durable.
    """
    temporary = _written_beside(path, data)
    try:
        _sparing(path, lambda: syscalls.link(temporary, path))
    finally:  # also where another made it: that its name is durable is not known
        _unlink(temporary)
        sync_folder(path.parent)


def write_content(path: Path, data: bytes) -> bool:
    """As `write_new`, for a file whose name follows from its content: one that is there is renewed (`renew`), and one
    that holds anything else is damaged and is replaced.

    Returns:
        whether the file is new.
    """
    while True:
        with contextlib.suppress(FileExistsError):
            write_new(path, data)
            return True
        with contextlib.suppress(FileNotFoundError):  # gc has just taken it away
            renew(path)
            if not _holds(path, data):
                temporary = _written_beside(path, data)
                syscalls.rename(temporary, path)
                sync_folder(path.parent)
            return False


def replace_link(path: Path, target: str) -> None:
    """Makes `path` a symbolic link to `target`. Whoever reads it sees the old target or the new one, never none."""

    def replace() -> None:
        with _temporary(path) as temporary:
            syscalls.symlink(target, temporary)
            syscalls.rename(temporary, path)
        sync_folder(path.parent)

    _sparing(path, replace)


def new_link(path: Path, target: str) -> None:
    """A symbolic link in a folder that nobody sees yet (`sync_folder` is the caller's)."""
    syscalls.symlink(target, path)


def link_in(file: Path, blob: Path, digest: str) -> bool:
    """Makes `file`, whose SHA-256 is `digest`, the blob too: durable, read-only, without copying a byte.

    A blob that is there already is renewed (`renew`) and read: if it holds what its name says it stays, otherwise it is
    replaced.

    Returns:
        whether the blob is new.
    """
    syscalls.chmod(file, 0o444)
    renew(file)
    sync_file(file)
    while not _linked(file, blob):
        with contextlib.suppress(FileNotFoundError):  # gc has just taken it away
            renew(blob)
            if os.path.samefile(file, blob) or hash_file(blob)[0] == digest:
                sync_folder(blob.parent)
                return False
            with _temporary(blob) as temporary:
                syscalls.link(file, temporary)
                syscalls.rename(temporary, blob)
            break
    sync_folder(blob.parent)
    return True


def renew(path: Path) -> None:
    """Says that somebody relies on the file from now on: gc removes nothing that was renewed a moment ago.

    Raises:
        FileNotFoundError: it is not there, or gc has just taken it away.
    """
    with contextlib.suppress(PermissionError):  # another user's; `registry doctor` names it
        syscalls.touch(path)


def take_away(path: Path, aside: Path) -> bool:
    """Gives the file or folder `path` the name `aside`; whether it was there (`sync_folder` is the caller's)."""
    try:
        syscalls.rename(path, aside)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST):  # another gc is at it
            return False
        raise
    return True


def put_back(aside: Path, path: Path) -> None:
    """Undoes `take_away`. What has taken the place meanwhile stays; of two folders, what either holds."""
    try:
        if not stat.S_ISDIR(os.lstat(aside).st_mode):
            _linked(aside, path)
            sync_folder(path.parent)
            _unlink(aside)
            return
        if not take_away(aside, path):
            for name in _names(aside):
                put_back(aside / name, path / name)
            syscalls.rmdir(aside)
        sync_folder(path.parent)
    except FileNotFoundError:
        return  # another process did it


def unshare(folder: Path) -> None:
    """Makes the files below `folder` writable again after `link_in`: those that are blobs too become copies."""
    for base, _, names in os.walk(folder):
        for name in names:
            file = Path(base, name)
            state = os.lstat(file)
            if not stat.S_ISREG(state.st_mode):
                continue
            if state.st_nlink > 1:
                with _temporary(file) as temporary:
                    copy_in(file, temporary, lambda _: None)
                    sync_file(temporary)
                    syscalls.rename(temporary, file)
            elif not state.st_mode & stat.S_IWUSR:
                syscalls.chmod(file, 0o644)


def make_folders(path: Path) -> None:
    """Makes the folder `path` and those above it, as far as they are missing; what is made is durable."""
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):
            _sparing(folder, lambda folder=folder: syscalls.mkdir(folder))  # type: ignore[misc]
        sync_folder(folder.parent)


def make_lock(path: Path, *, shared: bool = False) -> None:
    """Makes the empty file that a lock is held on, if it is missing.

    Args:
        shared: whoever may write in its folder may write in it too, whatever the umask of who makes it.
    """
    if not path.exists():
        with contextlib.suppress(FileExistsError):
            os.close(_sparing(path, lambda: syscalls.create(path, 0o644)))
            if shared:
                syscalls.chmod(path, 0o644 | path.parent.stat().st_mode & 0o022)


def write_lock(descriptor: int, line: bytes) -> None:
    """Makes `line`, shorter than a block, what stands in a lock file. Whoever reads meanwhile finds the old line or it.

    Raises:
        OSError: the disk is full, or the file is open for reading alone.
    """
    os.lseek(descriptor, 0, os.SEEK_SET)
    syscalls.write(descriptor, memoryview(line))
    syscalls.truncate(descriptor, len(line))


def keep_reserve(root: Path) -> None:
    """Sets room aside below `root`, as far as the disk has it, so that records can be written when the disk is full."""
    path = root / RESERVE
    with contextlib.suppress(OSError):
        if path.exists() and path.stat().st_size >= _RESERVED:
            return
        _unlink(path)  # of a process that was killed here
        descriptor = syscalls.create(path, 0o600)
        try:
            syscalls.allocate(descriptor, _RESERVED)
        except OSError:
            _unlink(path)
        finally:
            os.close(descriptor)


def rename_folder(source: Path, target: Path) -> None:
    """Gives a complete folder its name.

    Raises:
        FileExistsError: something that is not an empty folder is called so.
    """
    try:
        syscalls.rename(source, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target)) from None
        raise
    sync_folder(target.parent)
    sync_folder(source.parent)


def rename_file(source: Path, target: Path) -> None:
    """Gives a complete file its name, durably; what was called so is replaced whole."""
    sync_file(source)
    syscalls.rename(source, target)
    sync_folder(target.parent)


def link_work(file: Path, name: Path) -> None:
    """A second name, in a step's folder, for a file that is never written again (`sync_folder` is the caller's)."""
    syscalls.link(file, name)


def replace_work(path: Path, parts: Iterable[bytes | memoryview]) -> None:
    """Makes the file `path` of a step's work, of these parts; what was called so is replaced whole.

    Not forced to the disk: after a power cut either may be there, or a torn one, and whoever reads it has to tell.
    """
    with _temporary(path) as temporary:
        writing = syscalls.create(temporary, 0o644)
        try:
            for part in parts:
                write_all(writing, part, path)
        finally:
            os.close(writing)
        syscalls.rename(temporary, path)


def exchange(mine: Path, theirs: Path) -> None:
    """Swaps two folders, so that `theirs` is at no moment missing or half there.

    Where the file system cannot (NFS, macOS), three renames do it: then `theirs` is missing between the first and the
    second, never half there. A process killed in that gap leaves `theirs` under a temporary name beside `mine`.
    """
    try:
        exchange_at_once(mine, theirs)
    except OSError as error:
        if error.errno not in _NO_EXCHANGE:
            raise
        aside = beside(mine)
        syscalls.rename(theirs, aside)
        syscalls.rename(mine, theirs)
        syscalls.rename(aside, mine)
    sync_folder(theirs.parent)
    sync_folder(mine.parent)


def exchange_at_once(mine: Path, theirs: Path) -> None:
    """As `exchange`, for those to whom a gap is worse than an OSError (`sync_folder` is the caller's)."""
    syscalls.exchange(mine, theirs)


def remove_tree(path: Path) -> None:
    """Removes what is at `path`, if anything is; of a link the link alone. For work in progress only."""
    try:
        is_folder = stat.S_ISDIR(os.lstat(path).st_mode)
    except FileNotFoundError:
        return
    if not is_folder:
        _unlink(path)
        return
    with contextlib.suppress(FileNotFoundError):  # somebody else removes it too
        for name in _names(path):
            remove_tree(path / name)
        syscalls.rmdir(path)


def read(path: Path, what: str) -> bytes:
    """
    Raises:
        IntegrityError: `what` is missing, or something that is no file is in its place.
    """
    try:
        return contents(path)
    except PermissionError:  # whose registry it is, not what is in it
        raise
    except OSError as error:
        reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise IntegrityError(f"the {what} {reason}", where=str(path), remedy=RESTORE) from None


def contents(path: Path) -> bytes:
    """What a file holds.

    Raises:
        OSError: as `opened`.
    """
    with os.fdopen(opened(path), "rb") as file:
        return file.read()


def opened(path: Path, flags: int = os.O_RDONLY) -> int:
    """A descriptor of a file. A pipe that somebody put in its place is not waited for.

    Raises:
        OSError: there is none, or something that is no file.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", str(path))
    return descriptor


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


def walk(folder: Path) -> Iterator[tuple[str, list[str], list[str]]]:
    """As `os.walk`; but a folder that cannot be read is an error, and none without files. What is gone is passed over.

    Raises:
        OSError: where `os.walk` says nothing and goes on.
    """

    def refused(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            raise error

    return os.walk(folder, onerror=refused)


def _linked(file: Path, path: Path) -> bool:
    """Whether `path` was free, and is the file too now."""
    try:
        syscalls.link(file, path)
    except FileExistsError:
        return False
    return True


def _holds(path: Path, data: bytes) -> bool:
    try:
        return contents(path) == data
    except FileNotFoundError:
        raise
    except OSError:
        return False


def _sparing(path: Path, work: Callable[[], Result], size: int = 0) -> Result:
    """What `work` gives. If the disk is full, the registry's reserve is given up for it, and `work` is done again."""
    try:
        return work()
    except OSError as error:
        if error.errno not in _FULL or size > _RECORD:
            raise
        reserve = next((folder / RESERVE for folder in path.parents if (folder / RESERVE).exists()), None)
        if reserve is None:
            raise
        _unlink(reserve)
    return work()


@contextlib.contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`, which is gone again if the block fails."""
    temporary = beside(path)
    try:
        yield temporary
    except BaseException:
        with contextlib.suppress(OSError):  # what failed first is what is told
            _unlink(temporary)
        raise


def _written_beside(path: Path, data: bytes) -> Path:
    """A temporary file beside `path` that holds `data`, durable and read-only."""

    def write() -> Path:
        with _temporary(path) as temporary:
            writing = syscalls.create(temporary, 0o444)
            try:
                write_all(writing, data, temporary)
                with naming(temporary):
                    syscalls.sync(writing)
            finally:
                os.close(writing)
        return temporary

    return _sparing(path, write, len(data))


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        with naming(path):
            syscalls.sync(descriptor)
    finally:
        os.close(descriptor)


def _unlink(path: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        syscalls.unlink(path)


def _names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))
