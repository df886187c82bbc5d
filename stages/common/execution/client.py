"""The harness's side of the verifier: one connection an execution, and somebody to blame when the verifier dies."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from gates.errors import SluiceError, UsageError
from stages.common.execution import protocol
from stages.common.execution.limits import LIMITS
from stages.common.execution.records import Execution, Result
from stages.common.execution.spawn import local_server

Run = Callable[[Execution], Awaitable[Result]]

SOCKET = "SLUICE_VERIFIER"
"""The environment variable that names the socket of the verifier's container; compose sets it."""

_COMES_BACK = 60.0
"""Seconds within which a verifier that died is up again."""
_SILENCE = LIMITS.wall + 60.0
"""Seconds without a word after which a verifier is taken for dead. One that is alive says at least that it is busy."""
_TURNED_AWAY = 20
"""How often a verifier may hang up before it began with an execution. Each time it was another's program's fault."""


class UnavailableError(SluiceError):
    """The verifier cannot be had: nobody's answer is at fault, and nothing is scored."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Where programs are executed: at the verifier behind `socket`, or (None) by a child process on this machine."""

    socket: Path | None


def settings_of(environment: Mapping[str, str], *, unsafe_local: bool) -> Settings:
    """The sealed verifier wherever there is one, even where `unsafe_local` allows the other.

    Raises:
        UsageError: there is no verifier here, and execution on this machine is not allowed.
    """
    socket = environment.get(SOCKET)
    if socket:
        return Settings(Path(socket))
    if unsafe_local:
        return Settings(None)
    raise UsageError(
        "this pack executes programs that the model wrote, and there is no verifier here to seal them in",
        remedy="docker compose run --rm eval brings one; or allow it on this machine, where such a program could read "
        "and harm what you can: --unsafe-local-execution",
    )


@asynccontextmanager
async def verifier(settings: Settings) -> AsyncIterator[Run]:
    """What executes: a function that any number of tasks may call at once. Executions run one after the other.

    A program that takes the verifier down with it has failed: it is executed once more, and if the verifier dies
    again, that is its result. Executions that only waited are not blamed.

    Raises:
        UnavailableError: there is no verifier behind the socket, or (from the function) it did not come back.
        UsageError: it is of another version than this harness.
    """
    if settings.socket is not None:
        client = _Client(_always(settings.socket))
        await client.reach()
        yield client.run
    else:
        async with local_server() as socket:
            client = _Client(socket)
            await client.reach()
            yield client.run


@dataclass(frozen=True, slots=True)
class _Client:
    socket: Callable[[], Awaitable[Path]]

    async def reach(self) -> None:
        async with self._connected():
            pass

    async def run(self, execution: Execution) -> Result:
        """
        Raises:
            UnavailableError: no verifier answers any more.
        """
        deaths = 0
        for _ in range(_TURNED_AWAY):
            began = False
            try:
                async with self._connected() as (reader, writer):
                    writer.write(execution.request + b"\n")
                    await writer.drain()
                    while not began:
                        began = await _line(reader) == protocol.RUNNING
                    return protocol.result_of(await _line(reader), execution)
            except protocol.UnableError as error:
                raise UnavailableError(f"the verifier cannot execute this: {error}") from None
            except (OSError, EOFError, TimeoutError, ValueError):
                deaths += began
            if deaths == 2:
                return Result("failed", detail="the verifier died while it ran this, twice")
        raise UnavailableError(
            "the verifier hangs up on every request",
            remedy="see what its container says (docker ps --all --filter name=verifier; docker logs)",
        )

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """A connection on which the verifier has said hello."""
        reader, writer, hello = await self._hello()
        try:
            if hello != protocol.hello():
                raise UsageError(
                    "the verifier is of another version than this harness: it has other limits",
                    remedy="build both again: docker compose build eval verifier",
                )
            yield reader, writer
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _hello(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
        deadline = time.monotonic() + _COMES_BACK
        pause = 0.02
        while True:
            socket = await self.socket()
            try:
                reader, writer = await asyncio.open_unix_connection(socket, limit=protocol.LONGEST_LINE)
                try:
                    return reader, writer, await _line(reader)
                except BaseException:
                    writer.close()
                    raise
            except (OSError, EOFError, TimeoutError, ValueError) as error:
                if time.monotonic() > deadline:
                    raise UnavailableError(
                        f"no verifier answers: {type(error).__name__}: {error}",
                        where=str(socket),
                        remedy="see whether its container runs (docker ps --all --filter name=verifier) and what it "
                        "says (docker logs), then run this again",
                    ) from None
            await asyncio.sleep(pause)
            pause = min(2 * pause, 1.0)


async def _line(reader: asyncio.StreamReader) -> bytes:
    """
    Raises:
        EOFError, OSError, TimeoutError, ValueError: there is none, or one that is too long.
    """
    async with asyncio.timeout(_SILENCE):
        line = await reader.readline()
    if not line.endswith(b"\n"):
        raise EOFError("the connection ended")
    return line[:-1]


def _always(path: Path) -> Callable[[], Awaitable[Path]]:
    async def socket() -> Path:
        return path

    return socket
