"""A server's process: started in a session of its own, watched, and ended with everything that it started.

A server may have workers that outlive it and hold its memory. So what is ended is the whole session: first asked
(SIGTERM), then killed, and waited for until no process of it is there. The kernel asks the server to end when this
process dies, even by kill -9; and because that reaches the server but may miss its workers, each session is noted in a
file, and the next start ends what an owner that is gone has left. Process numbers mean nothing in another container, so
the notes lie in the machine's (or container's) own temporary folder.
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from gates.errors import InvalidEvidence, UsageError
from registry import output
from registry.processes import end_with_parent

SLOWEST_START = 900.0
"""Seconds until a server must be ready: a large checkpoint is read from disk and compiled first."""
SLOWEST_STOP = 30.0
"""Seconds that a session has to end by itself before it is killed."""

_STAT_SESSION, _STAT_STARTED = 5, 21
"""Fields of /proc/PID/stat, counted from 0 (proc(5) counts from 1)."""


@dataclass(frozen=True, slots=True)
class Description:
    """What an engine is, as far as it bears on answers. A parser called `none` is switched off."""

    engine: str
    version: str
    device: str
    reasoning_parser: str
    tool_parser: str
    server_flags: Mapping[str, Any]
    """The flags that stand in the conditions beside the parsers."""
    program: Path
    """What is executed: an environment's Python, or its `vllm`."""
    extra: Mapping[str, Any] = field(default_factory=dict)
    """What the start needs and the conditions do not."""


@dataclass(frozen=True, slots=True)
class Engine:
    """A server that is running, at `base_url`."""

    base_url: str
    server: Server

    def check(self) -> None:
        """
        Raises:
            InvalidEvidence: the server has ended by itself; the message holds the end of its log.
        """
        code = self.server.process.poll()
        if code is not None:
            raise InvalidEvidence(
                f"the server ended with {code} while it was asked:\n{self.server.last_lines()}",
                remedy="run this again: what was answered is kept",
            )


@dataclass(frozen=True, slots=True)
class Server:
    process: subprocess.Popen[str]
    log: IO[bytes]

    def last_lines(self, lines: int = 15) -> str:
        """The end of what the server wrote."""
        # pread: the server writes at the same file offset, which a seek would move under it
        written = os.pread(self.log.fileno(), 2**20, max(0, os.fstat(self.log.fileno()).st_size - 2**20))
        return "\n".join(written.decode(errors="replace").replace("\r", "\n").splitlines()[-lines:])


@contextmanager
def running(
    command: Sequence[str | Path], environment: Mapping[str, str], *, speaks: bool = False, keep: Sequence[int] = ()
) -> Iterator[Server]:
    """Runs the command as a server until the context ends.

    Args:
        speaks: its stdout is meant for us, and is a pipe; otherwise all that it writes goes to the log.
        keep: descriptors that it inherits: while it lives, and has the device's memory, so does the lease.
    """
    end_leftovers()
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            list(map(str, command)),
            env=dict(environment),
            stdin=subprocess.PIPE,  # kept open: the embedded server ends when it is closed
            stdout=subprocess.PIPE if speaks else log,
            stderr=log,
            text=True,
            start_new_session=True,
            preexec_fn=end_with_parent,
            pass_fds=keep,
        )
        note = _note(process.pid)
        try:
            yield Server(process, log)
        finally:
            _end(process)
            note.unlink(missing_ok=True)


def end_leftovers() -> None:
    """Ends the sessions of servers whose owner was killed. Only what a note of this user names is touched."""
    for note in sorted(_notes().glob("*.json")):
        try:
            noted = json.loads(note.read_text())
            session, started = int(noted["session"]), int(noted["started"])
            owner = (int(noted["owner"]), int(noted["owner_started"]))
        except (OSError, ValueError, KeyError, TypeError):
            continue  # half written: its owner is at work on it, or was killed before the server was started
        if _started(owner[0]) == owner[1]:
            continue
        if session < 2:  # to 0 and 1 signals mean something else
            continue
        # A session's number is not given out again while a process of it lives; a leader of another age is a stranger.
        if noted.get("boot") == _boot() and _started(session) in (None, started) and _members(session):
            output.hint(f"ending the server that an interrupted evaluation left behind (session {session})")
            _end_session(session)
        note.unlink(missing_ok=True)


def _end(process: subprocess.Popen[str]) -> None:
    _end_session(process.pid, process)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _end_session(session: int, leader: subprocess.Popen[str] | None = None) -> None:
    """SIGTERM to the whole session, SIGKILL to what is left after a while, until nothing is."""
    for each in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(session, each)
        for member in _members(session):  # a worker may have made itself a group of its own
            with suppress(ProcessLookupError):
                os.kill(member, each)
        deadline = time.monotonic() + SLOWEST_STOP
        while time.monotonic() < deadline:
            if (leader is None or leader.poll() is not None) and not _members(session):
                return
            time.sleep(0.05)


def _members(session: int) -> list[int]:
    """The processes of a session that are alive (a zombie holds no memory), as far as /proc is there to say."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        stat = _stat(int(entry.name))
        if stat and stat[0] != "Z" and int(stat[_STAT_SESSION - 2]) == session:
            found.append(int(entry.name))
    return found


def _started(process: int) -> int | None:
    """When a process was started, in clock ticks since the machine was; None if there is none."""
    stat = _stat(process)
    return int(stat[_STAT_STARTED - 2]) if stat and stat[0] != "Z" else None


def _stat(process: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third (the state) on: the second may hold spaces and brackets."""
    try:
        # bytes: a name is cut after 15 of them, perhaps in the middle of a letter
        return Path(f"/proc/{process}/stat").read_bytes().rpartition(b")")[2].decode().split()
    except OSError:
        return None


def _note(session: int) -> Path:
    note = _notes() / f"{session}.json"
    facts = {
        "session": session,
        "started": _started(session) or 0,
        "owner": os.getpid(),
        "owner_started": _started(os.getpid()) or 0,
        "boot": _boot(),
    }
    note.write_text(json.dumps(facts))
    return note


def _notes() -> Path:
    """This user's folder for notes, made if need be.

    Raises:
        UsageError: somebody else made it first. Whoever writes notes says which sessions of this user are ended.
    """
    folder = Path(tempfile.gettempdir()) / f"sluice-{os.getuid()}" / "servers"
    for each in (folder.parent, folder):
        with suppress(FileExistsError):
            each.mkdir(mode=0o700)
        facts = each.lstat()
        if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid() or facts.st_mode & 0o022:
            raise UsageError(
                "this folder must be yours alone to write to, and is not",
                where=str(each),
                remedy="remove it, or name another place for temporary files (TMPDIR=/path)",
            )
    return folder


def _boot() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
