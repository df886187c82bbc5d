"""The embedded engine: a small server of our own in the torch environment (`stages/evaluate/embedded.py`)."""

from __future__ import annotations

import importlib.util
import json
import os
import selectors
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import stages
from gates.errors import InvalidEvidence, UsageError
from registry.manifests import Shape
from registry.recipes import Evaluate
from stages.evaluate.engines.server import SLOWEST_START, Description, Engine, Server, running

TOOL_PARSERS = ("hermes", "none")
REASONING_PARSERS = ("qwen3", "none")


def describe(settings: Evaluate, project: Path, shape: Shape, *, where: str) -> Description:  # noqa: ARG001
    """The embedded engine as it is on this machine. It serves every shape that transformers loads.

    Raises:
        UsageError: the recipe asks for what it has not, there is no environment with torch, or it is broken.
    """
    _refuse(settings, where)
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
        engine="embedded",
        version=told["engine_version"],
        device=told["device"],
        reasoning_parser=settings.reasoning_parser,
        tool_parser=settings.tool_parser,
        server_flags={"dtype": told["dtype"]},
        program=python,
    )


@contextmanager
def start(description: Description, folder: Path, *, keep: Sequence[int] = ()) -> Iterator[Engine]:
    """
    Args:
        keep: descriptors that the server inherits.

    Raises:
        InvalidEvidence: the server did not come up; the message holds the end of its log.
    """
    command = [description.program, "-P", "-m", "stages.evaluate.embedded", "--model", folder]
    command += ["--device", description.device, "--dtype", description.server_flags["dtype"]]
    command += ["--reasoning-parser", description.reasoning_parser, "--tool-call-parser", description.tool_parser]
    with running(command, _environment(), speaks=True, keep=keep) as server:
        yield Engine(f"http://127.0.0.1:{_port(server, folder)}", server)


def _refuse(settings: Evaluate, where: str) -> None:
    for field, known in (("tool_parser", TOOL_PARSERS), ("reasoning_parser", REASONING_PARSERS)):
        if getattr(settings, field) not in known:
            raise UsageError(
                f"the embedded engine has no {field} {getattr(settings, field)!r}",
                where=where,
                remedy=f"choose one of {', '.join(known)}, or engine: vllm",
            )
    if settings.server_flags:
        raise UsageError(
            "the embedded engine takes no server_flags", where=where, remedy="leave them out, or say engine: vllm"
        )


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


def _port(server: Server, folder: Path) -> int:
    """Waits until the server says that it is ready, and where."""
    assert server.process.stdout is not None
    deadline = time.monotonic() + SLOWEST_START
    with selectors.DefaultSelector() as selector:
        selector.register(server.process.stdout, selectors.EVENT_READ)
        ready = selector.select(max(0, deadline - time.monotonic()))
    line = server.process.stdout.readline() if ready else ""
    if not line:
        code = server.process.wait() if ready else None
        why = f"ended with {code}" if ready else f"was not ready after {SLOWEST_START:.0f} s"
        raise InvalidEvidence(f"the embedded server {why}:\n{server.last_lines()}", where=str(folder))
    return int(json.loads(line)["port"])
