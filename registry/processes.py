"""Processes that must not outlive the one that started them. For Linux.

The kernel tells a child that its parent has died (`end_with_parent`), but not the child's own children: a server whose
front process is killed leaves its workers behind, and they the device's memory. So what holds a device is started below
a keeper (`kept`, `run`): this file once more, run as a program of Python's own library. Orphans below it become its
children, whatever session or descriptors they have. When the command ends, or who started it does, however that comes
about, the keeper ends all that is left, and then itself: it has inherited the lease, which is so given back last.
"""

from __future__ import annotations

import ctypes
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any, NoReturn

PATIENCE = 10.0
"""Seconds that a command has to end by itself when it is no longer wanted, or nobody is there who wanted it."""
_LEFT = 3.0
"""Seconds that what a command has left behind has for that."""
_LOOK = 0.05

_HANDED_ON = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}
_GONE = signal.SIGIO
"""By which the keeper tells itself that the lifeline has ended."""

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NAME, _PR_SET_CHILD_SUBREAPER = 1, 4, 15, 36
"""prctl(2)."""


def end_with_parent() -> None:
    """Asks Linux for SIGTERM when the parent dies, even by kill -9. To be run in the new process (preexec_fn)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def run(command: Sequence[str], environment: Mapping[str, str], *, keep: Sequence[int] = ()) -> int:
    """Runs the command below a keeper to its end and gives its exit code, 128 and the signal's number if one ended it.

    A signal that somebody sends to this process is handed on. Those of the terminal (Ctrl-C) reach the command by
    themselves, and this process ends when that has.

    Args:
        keep: descriptors that it inherits: those of the lease on its device.

    Raises:
        UsageError: it cannot be started.
    """
    from gates.errors import UsageError  # here, for a keeper has only Python's own library

    try:
        with kept(command, env=environment, keep=keep) as process:
            code = _ended(process)
    except OSError as error:
        raise UsageError(
            f"this cannot be started: {error.strerror}",
            where=command[0],
            remedy="name a program, by its path or one of those on the PATH",
        ) from None
    return code if code >= 0 else 128 - code


@contextmanager
def kept(command: Sequence[str], *, keep: Sequence[int] = (), **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Starts the command below a keeper, and gives the keeper, which ends as the command does.

    When the block ends, or this process, whatever is left of the command and of all that it started is ended: asked
    (SIGTERM), and killed after a while. The block has ended when nothing is there any more.

    Args:
        keep: descriptors that the command inherits, and the keeper holds until all has ended.
        options: of subprocess.Popen.

    Raises:
        OSError: it cannot be started.
    """
    ours, lifeline = socket.socketpair()
    with ours:
        with lifeline:
            number = lifeline.fileno()
            program = [sys.executable, "-I", "-S", __file__, str(number), ",".join(map(str, keep))]
            process = subprocess.Popen([*program, *command], pass_fds=(number, *keep), **options)
        with process:
            try:
                if error := int(ours.recv(16) or 0):  # nothing: the keeper itself was ended, which its exit code says
                    raise OSError(error, os.strerror(error))
                yield process
            finally:
                ours.close()
                process.wait()  # before its pipes are closed


def adopt_orphans() -> None:
    """Makes this process the parent of all orphans below it."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def descendants() -> set[int]:
    """All processes below this one, as /proc has them."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, IndexError, ValueError):
            # the second field is a name, which may hold spaces and brackets
            parent = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    level = [os.getpid()]
    while level:
        level = [child for process in level for child in children.get(process, ()) if child not in found]
        found.update(level)
    return found


def _ended(process: subprocess.Popen[Any]) -> int:
    """Waits for the process, and hands on to it what others send to this one meanwhile."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*_HANDED_ON, signal.SIGCHLD})
    try:
        while (code := process.poll()) is None:
            heard = signal.sigwaitinfo({*_HANDED_ON, signal.SIGCHLD})
            # what the terminal sends (a positive code: from the kernel) it sends to the command as well
            if heard.si_signo in _HANDED_ON and heard.si_code <= 0:
                process.send_signal(heard.si_signo)
        return code
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _keep(lifeline: socket.socket, keep: Sequence[int], command: Sequence[str]) -> NoReturn:
    """The keeper: starts the command, waits until nothing of it is left, and ends as it did.

    Args:
        lifeline: takes the number of the error that kept the command from starting, or 0; ends when the command is no
            longer wanted.
    """
    heeded = {*_HANDED_ON, signal.SIGQUIT, signal.SIGCHLD, _GONE}
    before = signal.pthread_sigmask(signal.SIG_BLOCK, heeded)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # where it was ignored, children would vanish unseen
    _prctl(_PR_SET_NAME, b"sluice-keeper")
    adopt_orphans()
    front = _started(lifeline, keep, command, before)
    Thread(target=_watch, args=[lifeline], daemon=True).start()
    status: int | None = None
    until = math.inf  # or when what is left is killed
    asked: set[int] = set()
    while True:
        reaped, none_left = _reaped()
        if front.pid in reaped and status is None:
            status, until = reaped[front.pid], min(until, time.monotonic() + _LEFT)
        if none_left:
            _end_like(status or 0)
        if until < math.inf:
            _end(descendants(), asked, kill=time.monotonic() >= until)
        heard = signal.sigtimedwait(heeded, _LOOK if until < math.inf else 1e6)
        if heard is None:
            continue
        if heard.si_signo == _GONE:
            until = min(until, time.monotonic() + PATIENCE)
        # what is sent to all of a group or a session has reached the command already
        elif heard.si_signo in _HANDED_ON and heard.si_pid == os.getppid() and status is None:
            os.kill(front.pid, heard.si_signo)


def _started(
    lifeline: socket.socket, keep: Sequence[int], command: Sequence[str], mask: set[Any]
) -> subprocess.Popen[bytes]:
    def begin() -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        end_with_parent()

    try:
        front = subprocess.Popen(command, pass_fds=keep, preexec_fn=begin)
    except OSError as error:
        lifeline.sendall(str(error.errno).encode())
        os._exit(1)
    with suppress(OSError):  # nobody is there any more: then the lifeline has ended, too
        lifeline.sendall(b"0")
    return front


def _reaped() -> tuple[dict[int, int], bool]:
    """The statuses of children that have ended since the last time, and whether there are no others."""
    found = {}
    try:
        while (ended := os.waitpid(-1, os.WNOHANG))[0]:
            found[ended[0]] = ended[1]
    except ChildProcessError:
        return found, True
    return found, False


def _watch(lifeline: socket.socket) -> None:
    with suppress(OSError):
        lifeline.recv(1)
    os.kill(os.getpid(), _GONE)


def _end(processes: set[int], asked: set[int], *, kill: bool) -> None:
    for each in processes if kill else processes - asked:
        with suppress(ProcessLookupError, PermissionError):  # of another user (sudo): it is waited for
            os.kill(each, signal.SIGKILL if kill else signal.SIGTERM)
    asked |= processes


def _end_like(status: int) -> NoReturn:
    """Ends this process with the status that another one had."""
    if os.WIFSIGNALED(status):
        _prctl(_PR_SET_DUMPABLE, 0)  # one core is enough
        with suppress(OSError):  # SIGKILL
            signal.signal(os.WTERMSIG(status), signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        os.kill(os.getpid(), os.WTERMSIG(status))
    os._exit(os.waitstatus_to_exitcode(status))


def _prctl(option: int, value: int | bytes) -> None:
    ctypes.CDLL(None).prctl(option, value)


if __name__ == "__main__":
    _keep(
        socket.socket(fileno=int(sys.argv[1])),
        [int(number) for number in sys.argv[2].split(",") if number],
        sys.argv[3:],
    )
