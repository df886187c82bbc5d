"""Large files, in pieces: hashed, compared, copied while they are hashed, cloned.

What changes here is one file of a step's work at a time, which `registry/fs.py` then gives its place in the registry.
Like that module this one goes through `registry/syscalls.py`.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from registry import syscalls

CHUNK = 256 << 10
"""Bytes read at a time, into the same memory each time: few enough to be in the processor's cache still when they are
hashed and written. 4 MiB at a time took twice the processor's time (docs/experiments.md)."""

STEP = 4 << 20
"""Bytes after which it is told how far the work is."""

Advance = Callable[[int], None]
"""Is told how many bytes came; what it raises ends the work."""

_NO_CLONE = {
    errno.EOPNOTSUPP,
    errno.ENOTTY,
    errno.EINVAL,
    errno.EXDEV,
    errno.ENOSYS,
    errno.EPERM,
    errno.EACCES,
    errno.ETXTBSY,
}
_SAMPLES = 16
_SAMPLE = 16 << 10


def hash_file(path: Path, advance: Advance | None = None) -> tuple[str, int]:
    """SHA-256 and size (bytes) of a file."""
    sha, size = hashlib.sha256(), 0
    for chunk in pieces(path, advance or _nobody):
        sha.update(chunk)
        size += len(chunk)
    return sha.hexdigest(), size


def hash_beside(path: Path, other: Path, advance: Advance) -> tuple[str, int, bool]:
    """SHA-256 and size (bytes) of a file, and whether `other` holds the same bytes; one reading of each."""
    sha, size = hashlib.sha256(), 0
    theirs, same = _chunks(other), True
    for chunk in pieces(path, advance):
        sha.update(chunk)
        size += len(chunk)
        same = same and _equal(chunk, next(theirs, chunk[:0]))
    return sha.hexdigest(), size, same and next(theirs, None) is None


def alike(path: Path, other: Path, size: int) -> bool:
    """Whether two files of `size` bytes agree in a few places: a guess, which saves reading all of both."""
    step = max(1, (size - _SAMPLE) // (_SAMPLES - 1))
    with path.open("rb") as mine, other.open("rb") as theirs:
        for at in range(0, max(1, size - _SAMPLE + 1), step):
            mine.seek(at)
            theirs.seek(at)
            if mine.read(_SAMPLE) != theirs.read(_SAMPLE):
                return False
    return True


def reserve(target: Path, size: int) -> None:
    """Makes the file `target` with room for `size` bytes on the disk.

    Raises:
        OSError: with ENOSPC or EDQUOT, if there is none; the file is gone again then.
    """
    descriptor = syscalls.create(target, 0o644)
    try:
        with naming(target):
            syscalls.allocate(descriptor, size)
    except OSError as error:
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            return  # a file system that promises nothing
        syscalls.unlink(target)
        raise
    finally:
        os.close(descriptor)


def fill(source: Path, target: Path, advance: Advance) -> tuple[str, int]:
    """Writes what is in `source` into the file `target`, which is there, and forces it to the disk.

    Returns:
        SHA-256 and size (bytes) of what was written.
    """
    writing = os.open(target, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        found = _pour(source, writing, target, advance)
        with naming(target):
            syscalls.sync(writing)
    finally:
        os.close(writing)
    return found


def copy_in(source: Path, target: Path, advance: Advance) -> tuple[str, int]:
    """Copies a file and hashes it on the way. Nothing is forced to the disk.

    Returns:
        SHA-256 and size (bytes) of what was written.
    """
    writing = syscalls.create(target, 0o644)
    try:
        return _pour(source, writing, target, advance)
    finally:
        os.close(writing)


def clone(source: Path, target: Path) -> bool:
    """Makes `target` a file that shares its bytes with `source` until either is written to.

    Returns:
        whether the file system can (btrfs, XFS, bcachefs, …); if not, there is no `target`.
    """
    writing = syscalls.create(target, 0o644)
    try:
        reading = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            syscalls.clone(writing, reading)
        finally:
            os.close(reading)
    except OSError as error:
        syscalls.unlink(target)
        if error.errno in _NO_CLONE:
            return False
        raise
    finally:
        os.close(writing)
    return True


def hollow(target: Path, begin: bytes, size: int) -> None:
    """Makes a file of `size` bytes which begins with `begin`; the rest reads as zeros and takes no room."""
    writing = syscalls.create(target, 0o644)
    try:
        write_all(writing, begin, target)
        syscalls.truncate(writing, size)
    finally:
        os.close(writing)


def write_chunks(target: Path, chunks: Iterable[bytes], advance: Advance) -> tuple[str, int]:
    """Makes the file `target` of what comes, and hashes it on the way. Nothing is forced to the disk.

    Returns:
        SHA-256 and size (bytes) of what was written.
    """
    writing = syscalls.create(target, 0o644)
    sha, size = hashlib.sha256(), 0
    try:
        for chunk in chunks:
            sha.update(chunk)
            write_all(writing, chunk, target)
            size += len(chunk)
            advance(len(chunk))
    finally:
        os.close(writing)
    return sha.hexdigest(), size


def pieces(path: Path, advance: Advance) -> Iterator[memoryview]:
    """The file's bytes, each piece good until the next is asked for; `advance` is told of those that are done."""
    done = 0
    for chunk in _chunks(path):
        yield chunk
        done += len(chunk)
        # A short piece is the file's end; what comes after it somebody is writing at this moment.
        if done >= STEP or len(chunk) < CHUNK:
            advance(done)
            done = 0
    if done:
        advance(done)


def write_all(descriptor: int, data: bytes | memoryview, path: Path) -> None:
    """Writes all of `data` to the open file `path`."""
    view = memoryview(data)
    with naming(path):
        while view:
            view = view[syscalls.write(descriptor, view) :]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Errors of calls on descriptors name no file; this one."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def _pour(source: Path, writing: int, target: Path, advance: Advance) -> tuple[str, int]:
    sha, size = hashlib.sha256(), 0
    for chunk in pieces(source, advance):
        sha.update(chunk)
        write_all(writing, chunk, target)
        size += len(chunk)
    return sha.hexdigest(), size


def _nobody(_: int) -> None:
    """Nobody wants to know."""


def _chunks(path: Path) -> Iterator[memoryview]:
    """The file's bytes; each chunk is good until the next is asked for."""
    buffer = memoryview(bytearray(CHUNK))
    reading = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe reads as empty
    try:
        while count := os.readv(reading, [buffer]):
            yield buffer[:count]
    finally:
        os.close(reading)


def _equal(one: memoryview, other: memoryview) -> bool:
    """Views are compared number by number, what they are views of at once."""
    if len(one) == len(other) == CHUNK:
        return bool(one.obj == other.obj)
    return bytes(one) == bytes(other)
