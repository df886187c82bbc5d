"""What every bench shares: one command timed, its peak memory, a table, and an aim that a ratio is held against.

A figure means little by itself: machines differ, and the same machine at two o'clock. So everything is measured side by
side in one run, and an aim is a ratio between two of its rows.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
import venv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
PEERS = PROJECT / "build" / "peers"
SLACK = 2.0
"""`--small` fails when a ratio is worse than its aim by more than this: small inputs and busy machines are noisy."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One row of a table: wall time (s) and the largest resident set of any one of its processes (bytes)."""

    label: str
    seconds: float
    peak: int
    output: str = ""


@dataclass(frozen=True, slots=True)
class Aim:
    """`ratio` should be at most `limit`; or at least, where more is better."""

    name: str
    ratio: float
    limit: float
    at_least: bool = False

    @property
    def reached(self) -> bool:
        return self.ratio >= self.limit if self.at_least else self.ratio <= self.limit

    @property
    def near(self) -> bool:
        """Whether it is within twice the aim."""
        return self.ratio >= self.limit / SLACK if self.at_least else self.ratio <= self.limit * SLACK


def measure(label: str, command: Sequence[str | Path], *, env: Mapping[str, str] | None = None) -> Measured:
    """Runs a command to its end.

    Raises:
        SystemExit: it failed; what it wrote is shown.
    """
    begun = time.perf_counter()
    with subprocess.Popen(
        [str(word) for word in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT), **(env or {})},
    ) as process:
        assert process.stdout is not None
        output = process.stdout.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begun
    if process.returncode != 0:
        sys.exit(f"{label} ended with {process.returncode}:\n{output}")
    return Measured(label, seconds, usage.ru_maxrss * 1024, output)


def peer(name: str) -> Path:
    """The Python of the environment that holds a peer, made from bench/peers/<name>.txt if it is not there yet."""
    folder = PEERS / name
    python, stamp = folder / "bin" / "python", folder / ".done"
    needs = PROJECT / "bench" / "peers" / f"{name}.txt"
    wanted = needs.read_text(encoding="utf-8")
    if not stamp.is_file() or stamp.read_text(encoding="utf-8") != wanted:
        venv.create(folder, with_pip=True, clear=True)
        install = [
            python,
            "-m",
            "pip",
            "install",
            "-qq",
            "--disable-pip-version-check",
            "-r",
            f"bench/peers/{name}.txt",
        ]
        measure(f"installing the peer {name}", install)
        stamp.write_text(wanted, encoding="utf-8")
    return python


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join([" --- ", *[" ---: "] * (len(head) - 1)]) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)])


def machine() -> str:
    """What this ran on, for the line above a table."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        lines = info.read_text(encoding="utf-8").splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return f"{os.cpu_count()} cores, {model}, Python {platform.python_version()}"


def end(aims: Sequence[Aim], *, small: bool) -> None:
    """Prints how each ratio stands to its aim, and exits: with 1 if `small` and one is outside twice its aim."""
    rows = [
        (
            aim.name,
            f"{aim.ratio:.2f}",
            f"{'≥' if aim.at_least else '≤'} {aim.limit:g}",
            "yes" if aim.reached else "no",
        )
        for aim in aims
    ]
    print(table(("aim", "ratio", "limit", "reached"), rows))
    sys.exit(1 if small and not all(aim.near for aim in aims) else 0)
