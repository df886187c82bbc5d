"""Engines: what serves a candidate while it is asked.

An engine describes itself before it is started, so that evidence taken under the same conditions is found without
starting anything; then it serves a folder until it is stopped. One kind so far: `embedded`, in the torch environment.
"""

from __future__ import annotations

import importlib.util
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import stages
from gates.errors import InvalidEvidence, UsageError

SLOWEST_START = 600.0
"""Seconds until a server must be ready: a large checkpoint is read from disk first."""
SLOWEST_STOP = 5.0


@dataclass(frozen=True, slots=True)
class Description:
    """What an engine is, as far as it bears on answers. None for a parser means that it is switched off."""

    python: Path
    engine: str
    version: str
    device: str
    dtype: str
    reasoning_parser: str | None
    tool_parser: str | None

    @property
    def server_flags(self) -> dict[str, Any]:
        """The flags that stand in the conditions beside the parsers."""
        return {"dtype": self.dtype}


@dataclass(frozen=True, slots=True)
class Engine:
    """A server that is running."""

    base_url: str
    process: subprocess.Popen[str]
    log: IO[bytes]

    def check(self) -> None:
        """
        Raises:
            InvalidEvidence: the server has ended by itself; the message holds the end of its log.
        """
        code = self.process.poll()
        if code is not None:
            raise InvalidEvidence(
                f"the server ended with {code} while it was asked:\n{_end_of(self.log)}",
                remedy="run this again: what was answered is kept",
            )


def embedded(
    project: Path, *, tool_parser: str | None = "hermes", reasoning_parser: str | None = "qwen3"
) -> Description:
    """The embedded engine as it is on this machine.

    Raises:
        UsageError: there is no environment with torch, or it is broken.
    """
    python = _torch_python(project)
    command = [str(python), "-P", "-m", "stages.evaluate.embedded", "--describe"]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it says nothing"]
        raise UsageError(
            f"the torch environment cannot run the embedded engine: {last[0]}",
            where=str(python),
            remedy="make envs (or SLUICE_TORCH_PYTHON=/path/to/python with torch, transformers, fastapi, uvicorn)",
        )
    told = json.loads(done.stdout)
    return Description(
        python=python,
        engine=told["engine"],
        version=told["engine_version"],
        device=told["device"],
        dtype=told["dtype"],
        reasoning_parser=reasoning_parser,
        tool_parser=tool_parser,
    )


@contextmanager
def start(description: Description, folder: Path) -> Iterator[Engine]:
    """Serves `folder` as the description says, until the context ends; then nothing of it is left.

    Raises:
        InvalidEvidence: the server did not come up; the message holds the end of its log.
    """
    command = [str(description.python), "-P", "-m", "stages.evaluate.embedded"]
    command += ["--model", str(folder), "--device", description.device, "--dtype", description.dtype]
    command += ["--reasoning-parser", description.reasoning_parser or "none"]
    command += ["--tool-call-parser", description.tool_parser or "none"]
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            env=_environment(),
            stdin=subprocess.PIPE,  # kept open: the server ends when it is closed, as when this process is killed
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )
        try:
            yield Engine(f"http://127.0.0.1:{_port(process, log, folder)}", process, log)
        finally:
            _stop(process)


def _torch_python(project: Path) -> Path:
    named = os.environ.get("SLUICE_TORCH_PYTHON")
    usual = project / ".venv-prune" / "bin" / "python"
    if named:
        if not Path(named).is_file():
            raise UsageError(
                "SLUICE_TORCH_PYTHON names no Python", where=named, remedy="name a file, such as .venv-prune/bin/python"
            )
        return Path(named)
    if usual.is_file():
        return usual.absolute()
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        return Path(sys.executable)
    raise UsageError(
        "there is no environment with torch to serve the candidate from",
        where=str(usual),
        remedy="make envs (or SLUICE_TORCH_PYTHON=/path/to/python)",
    )


def _environment() -> dict[str, str]:
    """This environment, and in it the code that is running now.

    From a checkout the server runs this very code; an installed harness finds the server installed in the other
    environment, whose packages must not mix with its own.
    """
    home = Path(stages.__file__).resolve().parents[1]
    rest = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "false"}
    return rest | offline | ({} if home.name == "site-packages" else {"PYTHONPATH": str(home)})


def _port(process: subprocess.Popen[str], log: IO[bytes], folder: Path) -> int:
    """Waits until the server says that it is ready, and where."""
    assert process.stdout is not None
    deadline = time.monotonic() + SLOWEST_START
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        ready = selector.select(max(0, deadline - time.monotonic()))
    line = process.stdout.readline() if ready else ""
    if not line:
        why = f"ended with {process.wait(SLOWEST_STOP)}" if ready else f"was not ready after {SLOWEST_START:.0f} s"
        raise InvalidEvidence(f"the embedded server {why}:\n{_end_of(log)}", where=str(folder))
    return int(json.loads(line)["port"])


def _stop(process: subprocess.Popen[str]) -> None:
    """SIGTERM to the whole group, SIGKILL to what is left after a while."""
    for each in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, each)
        except ProcessLookupError:
            break
        try:
            process.wait(SLOWEST_STOP)
            break
        except subprocess.TimeoutExpired:
            continue
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


def _end_of(log: IO[bytes], lines: int = 15) -> str:
    # pread: the server writes at the same file offset, which a seek would move under it
    written = os.pread(log.fileno(), 2**20, max(0, os.fstat(log.fileno()).st_size - 2**20))
    return "\n".join(written.decode(errors="replace").replace("\r", "\n").splitlines()[-lines:])
