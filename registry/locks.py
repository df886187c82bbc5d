"""Do locks lock? On some network and container file systems they succeed for everybody. Nothing rests on them alone."""

from __future__ import annotations

import errno
import fcntl
import os
import shlex
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from gates.errors import IntegrityError
from registry import fs

NONE = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP}
"""What a file system answers that has no locks."""

_PROBE = "probe"
_CHILD = """
import fcntl, os, sys
try:
    fcntl.flock(os.open(sys.argv[1], os.O_RDWR), fcntl.LOCK_EX | fcntl.LOCK_NB)
except BlockingIOError:
    sys.exit(3)
"""


def opened(path: Path, flags: int) -> int:
    """A descriptor of the file that a lock is held on.

    Raises:
        IntegrityError: something that is no file has its name.
        OSError: it is missing, or the system refuses it.
    """
    try:
        return fs.opened(path, flags)
    except OSError:
        refuse_others(path)
        raise


def refuse_others(path: Path) -> None:
    """
    Raises:
        IntegrityError: something that is no file has the name of a lock's file.
    """
    if os.path.lexists(path) and not stat.S_ISREG(os.lstat(path).st_mode):
        raise IntegrityError(
            "a lock's file belongs here, and this is no file",
            where=str(path),
            remedy=f"mv {shlex.quote(str(path))} /somewhere/else; whoever needs the lock makes the file again",
        ) from None


def held(path: Path) -> bool:
    """Whether somebody has the lock on the file `path` (False too where locks do not lock).

    Raises:
        IntegrityError: as `opened`.
    """
    try:
        descriptor = opened(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    except PermissionError:  # it cannot be known
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that look do not see each other
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return False


def written(path: Path) -> bool:
    """Whether somebody has the file `path` open for writing; False too where the system does not tell (not Linux, a
    network, another's file).

    A read lease is given only where nobody has (fcntl(2)). It is given back at once; whoever wants to write in between
    waits for that, and the signal about it is one that nobody heeds.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    finally:
        os.close(descriptor)
    return False


def work(folder: Path) -> bool:
    """Whether a lock on a file in `folder` keeps another descriptor out."""
    return _probed(folder, held)


def work_between_processes(folder: Path) -> bool:
    """Whether it keeps another process out."""
    command = [sys.executable, "-I", "-c", _CHILD]
    return _probed(folder, lambda path: subprocess.run([*command, str(path)], check=False).returncode == 3)


def _probed(folder: Path, excluded: Callable[[Path], bool]) -> bool:
    path = folder / f"{_PROBE}.lock"
    try:
        fs.make_lock(path)
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except OSError:  # where nothing can be written no lock can be tried
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return excluded(path)
    except BlockingIOError:
        return True  # another probe has it
    except OSError:
        return False
    finally:
        os.close(descriptor)
