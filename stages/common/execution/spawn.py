"""A verifier of the harness's own, on this machine: for those who have no container engine and accept the risk."""

from __future__ import annotations

import asyncio
import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from registry.processes import end_with_parent
from stages.common.execution import folders

_SECONDS_TO_END = 10


@asynccontextmanager
async def local_server() -> AsyncIterator[Callable[[], Awaitable[Path]]]:
    """Runs `python -m stages.verifier` as a child that ends with this process. Gives its socket; asked again after the
    server died, it starts another.
    """
    with folders.own() as (folder, lock):
        path = folder / "verifier.sock"
        server = _start(path, lock)

        async def socket() -> Path:
            nonlocal server
            if server.poll() is not None:
                server = _start(path, lock)
            return path

        try:
            yield socket
        finally:
            server.terminate()
            try:
                await asyncio.to_thread(server.wait, _SECONDS_TO_END)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()


def _start(path: Path, lock: int) -> subprocess.Popen[bytes]:
    # one whose server died lies there still, and would refuse every connection
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    command = [sys.executable, "-P", "-m", "stages.verifier", "--socket", str(path)]
    return subprocess.Popen(
        command,
        env=os.environ | {"TMPDIR": str(path.parent)},  # what is left of its programs goes with the folder
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        preexec_fn=end_with_parent,
        pass_fds=(lock,),
    )
