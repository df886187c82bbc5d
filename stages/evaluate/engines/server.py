"""A server's process: started below a keeper, watched, and ended with everything that it started."""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from gates.errors import InvalidEvidence
from registry.processes import kept
from stages.evaluate.client import Client, connect
from stages.evaluate.together import CONCURRENCY

SLOWEST_START = 900.0
"""Seconds until a server must be ready: a large checkpoint is read from disk and compiled first."""


@dataclass(frozen=True, slots=True)
class Description:
    """What an engine is, as far as it bears on answers. A parser called `none` is switched off."""

    engine: str
    version: str
    device: str | None
    """None where somebody else has started it."""
    reasoning_parser: str
    tool_parser: str
    server_flags: Mapping[str, Any]
    """The flags that stand in the conditions beside the parsers."""
    program: Path | None
    """What is executed: an environment's Python, or its `vllm`."""
    base_url: str | None = None
    """Where it is, and what it calls the candidate, if somebody else has started it."""
    model: str | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """A server that is running, at `base_url`."""

    base_url: str
    server: Server | None
    """None where somebody else has started it."""
    model: str | None = None
    """What it calls the candidate; None for one that has no other model."""
    key: str | None = field(default=None, repr=False)

    def connected(self) -> AbstractAsyncContextManager[Client]:
        return connect(self.base_url, concurrency=CONCURRENCY, model=self.model, key=self.key)

    def check(self) -> None:
        """
        Raises:
            InvalidEvidence: the server has ended by itself; the message holds the end of its log.
        """
        code = self.server.process.poll() if self.server is not None else None
        if self.server is not None and code is not None:
            raise InvalidEvidence(
                f"the server ended with {code} while it was asked:\n{self.server.last_lines()}",
                remedy="run this again: what was answered is kept",
            )


@dataclass(frozen=True, slots=True)
class Server:
    process: subprocess.Popen[str]
    """Its keeper, which ends as it does."""
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
    """Runs the command as a server until the context ends, or this process; then nothing of it is left.

    Args:
        speaks: its stdout is meant for us, and is a pipe; otherwise all that it writes goes to the log.
        keep: descriptors that it inherits: while it lives, and has the device's memory, so does the lease.
    """
    with (
        tempfile.TemporaryFile() as log,
        kept(
            list(map(str, command)),
            keep=keep,
            env=dict(environment),
            stdin=subprocess.PIPE,  # kept open: the embedded server ends when it is closed
            stdout=subprocess.PIPE if speaks else log,
            stderr=log,
            text=True,
            start_new_session=True,  # Ctrl-C is for this process
        ) as process,
    ):
        yield Server(process, log)
