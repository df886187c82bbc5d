"""The vllm engine: the real server, from an environment of its own that is only executed.

VLLM names that environment (a folder with bin/vllm); without it, `vllm` is taken from the PATH, as in vLLM's own image.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gates.errors import InvalidEvidence, UsageError
from registry import serving
from registry.manifests import Shape
from registry.progress import progress
from registry.recipes import Evaluate
from stages.evaluate.engines.server import SLOWEST_START, Description, Engine, Server, running

PROOF = {"structured-outputs-config.enable_in_reasoning": True}
"""What lets the proof force a text through the parsers. It changes no answer that is not forced."""

_OURS = {"port", "host", "served-model-name", "model", "reasoning-parser", "tool-call-parser"} | PROOF.keys()
_CANDIDATES = {"chat-template", "tokenizer"}
"""Flags that would put another file in the place of the candidate's own, or flags that no evidence states."""

WITHOUT_GPU = {"enforce-eager": True, "kv-cache-memory-bytes": 256 * 2**20}
"""Compiling costs a CPU minutes, and by default the cache takes nearly all memory."""

FEW_CORES = 4
"""With no more than these, vLLM on a CPU is to compute in the process that schedules, as it does on one GPU. By default
it computes in another and spins while it waits for that, which takes the core that requests are taken in on."""

_VERSION = "import importlib.metadata as m; print(m.version('vllm'))"


def describe(settings: Evaluate, project: Path, shape: Shape, *, where: str) -> Description:  # noqa: ARG001
    """vLLM as it is installed here, with the recipe's flags, and without a GPU those that a CPU needs.

    Raises:
        UsageError: vLLM is not installed, a flag is ours to set, or this CPU cannot run the candidate.
    """
    stated = flags(settings, where)
    program = serving.program()
    version = _installed(program)
    device = "cuda" if Path("/dev/nvidiactl").exists() and not version.endswith("+cpu") else "cpu"
    if device == "cpu" and shape.quantization is not None and not _amx():
        raise UsageError(
            f"vLLM runs experts in {shape.quantization} on a CPU only with AMX, and this CPU has none "
            "(no amx_tile in /proc/cpuinfo)",
            where=where,
            remedy="evaluate it on a machine with a GPU or AMX, or with engine: embedded; or evaluate the candidate "
            "that it was quantised from (--candidate NAME)",
        )
    return Description(
        engine="vllm",
        version=version.partition("+")[0],
        device=device,
        reasoning_parser=settings.reasoning_parser,
        tool_parser=settings.tool_parser,
        server_flags={**(WITHOUT_GPU if device == "cpu" else {}), **stated},
        program=program,
    )


def flags(settings: Evaluate, where: str) -> dict[str, Any]:
    """The recipe's flags as they stand in conditions; exact decimals as text, as on a command line.

    Raises:
        UsageError: one of them is ours to set, or runs code.
    """
    # vLLM reads underscores in a flag as dashes
    taken = sorted(flag for flag in settings.server_flags if flag.replace("_", "-") in _OURS | _CANDIDATES)
    if foreign := serving.running_code(settings.server_flags):
        raise UsageError(
            f"server_flags: {', '.join(foreign)} would run code that did not come with vLLM",
            where=where,
            remedy="leave it out: no model's or file's code is run here",
        )
    if taken:
        raise UsageError(
            f"server_flags: {', '.join(taken)} is set by the stage, or is the candidate's own",
            where=where,
            remedy="leave it out: what is served is what was judged",
        )
    return {
        flag: value if isinstance(value, bool | int | str) else str(value)
        for flag, value in settings.server_flags.items()
    }


@contextmanager
def start(description: Description, folder: Path, *, keep: Sequence[int] = ()) -> Iterator[Engine]:
    """
    Args:
        keep: descriptors that the server inherits.

    Raises:
        InvalidEvidence: the server did not come up, or says that it is another version or has other flags.
    """
    port = _free_port()
    # A name that no other server has: one that got hold of the port refuses every request that names it.
    name = f"candidate-{secrets.token_hex(8)}"
    command = [description.program, *arguments(description, folder, port=port, served_as=name)]
    environment = _sharing_cores(description) | os.environ | serving.OFFLINE
    with running(command, environment, keep=keep) as server:
        base_url = f"http://127.0.0.1:{port}"
        _wait(server, base_url, folder)
        _confirm(server, base_url, description, served_as=name)
        yield Engine(base_url, server)


def arguments(description: Description, folder: Path, *, port: int, served_as: str) -> list[str]:
    """The words after `vllm`."""
    return serving.words(
        folder.resolve(),
        served_as=served_as,
        host="127.0.0.1",
        port=port,
        reasoning_parser=description.reasoning_parser,
        tool_parser=description.tool_parser,
        flags={**description.server_flags, **PROOF},
    )


def _sharing_cores(description: Description) -> dict[str, str]:
    cores = len(os.sched_getaffinity(0))
    if description.device != "cpu" or cores > FEW_CORES:
        return {}
    # one core is left to taking requests in, as vLLM itself would leave it
    return {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "OMP_NUM_THREADS": str(max(1, cores - 1))}


def _installed(program: Path) -> str:
    """The version of the package beside the program, read without starting it."""
    # the first line names the environment's Python; in an image it may be elsewhere than beside the program
    with program.open("rb") as file:
        first = file.readline().decode(errors="replace")
    python = first.removeprefix("#!").strip() if first.startswith("#!/") else str(program.parent / "python")
    done = subprocess.run([*python.split(), "-c", _VERSION], capture_output=True, text=True, check=False)
    if done.returncode:
        raise UsageError("vLLM's environment is broken: no package vllm in it", where=python, remedy="install it again")
    return done.stdout.strip()


def _amx() -> bool:
    try:
        return "amx_tile" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])


def _wait(server: Server, base_url: str, folder: Path) -> None:
    """Until the server is ready; shows the seconds, and the last line of its log."""
    begun = shown = time.monotonic()
    with progress("start vllm", total=SLOWEST_START, unit="s") as bar:
        while time.monotonic() - begun < SLOWEST_START:
            if server.process.poll() is not None:
                raise InvalidEvidence(
                    f"vLLM ended with {server.process.returncode} before it was ready:\n{server.last_lines(40)}",
                    where=str(folder),
                )
            if _get(f"{base_url}/health") is not None:
                return
            time.sleep(0.5)
            now = time.monotonic()
            bar.advance(now - shown, note=_readable(server.last_lines(1)))
            shown = now
    raise InvalidEvidence(
        f"vLLM was not ready after {SLOWEST_START:.0f} s:\n{server.last_lines(40)}", where=str(folder)
    )


def _confirm(server: Server, base_url: str, description: Description, *, served_as: str) -> None:
    """Holds what the running server says of itself against the description that evidence will carry."""
    if served_as not in (_get(f"{base_url}/v1/models") or b"").decode(errors="replace"):
        raise InvalidEvidence("another server answers at this port", where=base_url, remedy="run this again")
    told = json.loads(_get(f"{base_url}/version") or b"{}").get("version")
    if told != description.version:
        raise InvalidEvidence(
            f"the server says that it is vLLM {told}, its environment holds {description.version}", where=base_url
        )
    # vLLM logs, in Python's notation, the arguments that differ from its defaults
    line = next((line for line in server.last_lines(10_000).splitlines() if "non-default args" in line), "")
    for option, value in (
        ("reasoning_parser", description.reasoning_parser),
        ("tool_call_parser", description.tool_parser),
        ("chat_template", "none"),
        ("tokenizer", "none"),
    ):
        said = re.search(rf"'{option}': '([^']*)'", line)
        if (said[1] if said else "none") != value:
            raise InvalidEvidence(f"the server has {option} {said[1] if said else 'none'}, not {value}", where=base_url)


def _get(url: str) -> bytes | None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # 127.0.0.1 needs no proxy
    try:
        with opener.open(url, timeout=5) as answer:
            return bytes(answer.read())
    except (urllib.error.URLError, OSError):
        return None


def _readable(line: str) -> str:
    """A log line without vLLM's prefix."""
    return re.sub(r"^\([^)]*\)\s*|\b(INFO|WARNING) \d\d-\d\d [\d:]+ |\[[^\]]*\] ", "", line).strip()[:70]
