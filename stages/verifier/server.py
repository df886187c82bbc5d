"""The verifier's socket: takes executions from any number of connections and runs them one at a time, as they came.

One at a time, so that what a program is worth does not depend on what else is asked. Whatever it cannot clean up after
a program ends the server: whoever started it (compose, the harness) starts a fresh one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from gates.errors import UsageError
from registry import output
from stages.common.execution import folders, protocol
from stages.common.execution.limits import LIMITS, Limits
from stages.common.execution.records import Execution, Result
from stages.verifier import leavings
from stages.verifier.supervisor import execute

_WAITING_SAYS = 10.0
"""Seconds between two signs of life to somebody who waits."""
_REQUEST_TAKES = 60.0
"""Seconds within which a request has to arrive."""
_DAMAGED = 70
"""The exit status of a server that could not clean up."""


async def serve(path: Path, limits: Limits = LIMITS) -> None:
    """Serves on the Unix socket `path` until SIGTERM or SIGINT.

    Raises:
        UsageError: no socket can be made there.
    """
    leavings.guard()
    verifier = _Verifier(path, limits, leavings.alone())
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()  # of one that was killed
    try:
        server = await asyncio.start_unix_server(verifier.connection, path, limit=protocol.LONGEST_LINE, backlog=1024)
    except OSError as error:
        raise UsageError(f"no socket can be made: {error.strerror}", where=str(path)) from None
    verifier.socket = path.stat().st_ino
    path.chmod(0o600)
    output.hint("the verifier listens" + ("" if verifier.alone else "; it is not sealed in a container of its own"))
    await stop.wait()
    server.close()
    verifier.stopping = True  # of those who wait, none begins any more
    verifier.cancel()
    async with verifier.turn:  # what runs has been ended and cleaned up
        with contextlib.suppress(FileNotFoundError):
            path.unlink()


@dataclass(slots=True)
class _Verifier:
    path: Path
    limits: Limits
    alone: bool
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1))
    """One thread for all: a process that is to end with its parent ends with the thread that started it."""
    running: int | None = None
    """Where to write so that the execution that runs is given up."""
    stopping: bool = False
    socket: int = 0
    """The inode of the socket, which no program may remove or replace."""
    missing: set[str] | None = None

    async def connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, ValueError, TimeoutError):
            try:
                await self._answer(reader, writer)
            finally:
                writer.close()

    def cancel(self) -> None:
        if self.running is not None:
            os.write(self.running, b".")

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """
        Raises:
            OSError, ValueError, TimeoutError: nothing can be understood, or nobody listens.
        """
        writer.write(protocol.hello() + b"\n")
        async with asyncio.timeout(_REQUEST_TAKES):
            line = await reader.readline()
        if not line:
            return
        execution = Execution.from_request(line)
        gone = asyncio.ensure_future(reader.read(1))  # nothing more is to come: only the end of the connection
        turn = asyncio.ensure_future(self.turn.acquire())
        try:
            while not (turn.done() or gone.done()):
                await asyncio.wait({turn, gone}, timeout=_WAITING_SAYS, return_when=asyncio.FIRST_COMPLETED)
                writer.write(protocol.WAITING + b"\n")
            if turn.done() and not gone.done() and not self.stopping:
                writer.write(protocol.RUNNING + b"\n")
                await writer.drain()
                answer = await self._run(execution, gone)
                if not self.stopping:  # a program that was ended for that has not failed: it is to be run again
                    writer.write(answer)
                await writer.drain()
        finally:
            gone.cancel()
            if not turn.done():
                turn.cancel()
            elif not turn.cancelled():
                self.turn.release()

    async def _run(self, execution: Execution, gone: asyncio.Future[bytes]) -> bytes:
        """The line that answers `execution`; given up when `gone` is done."""
        cancel, self.running = os.pipe()
        gone.add_done_callback(lambda _: self.cancel())
        try:
            result = await asyncio.get_running_loop().run_in_executor(
                self.thread, partial(self._execute, execution, cancel)
            )
            return protocol.result_line(result)
        except (UsageError, OSError) as error:
            output.hint(f"error: {error}")
            return protocol.unable_line(str(error))
        finally:
            os.close(self.running)
            os.close(cancel)
            self.running = None

    def _execute(self, execution: Execution, cancel: int) -> Result:
        folder = Path(tempfile.mkdtemp(prefix="sluice-execution-"))
        sweep = partial(leavings.end_processes, everything=self.alone)
        try:
            result, confined = execute(execution, self.limits, folder, cancel=cancel, sweep=sweep)
        finally:
            self._clean(folder)
        if self.missing is None:
            self.missing = {"landlock", "seccomp"} - set(confined)
            if self.missing:
                output.hint(f"this kernel has no {' and no '.join(sorted(self.missing))} to confine programs with")
        return result

    def _clean(self, folder: Path) -> None:
        """Removes every file that the program may have left; where that fails, nothing is executed here any more."""
        try:
            folders.remove(folder)
            if self.alone:  # where the kernel could not keep the program from writing elsewhere
                folders.empty(folder.parent)
                folders.empty(self.path.parent, keep=(self.path.name,))
            intact = self.path.stat().st_ino == self.socket
        except OSError:
            intact = False
        if not intact:
            output.hint("a program left what cannot be removed; the verifier ends")
            os._exit(_DAMAGED)
