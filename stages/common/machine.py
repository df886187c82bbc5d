"""What this machine has: devices, and memory, asked without taking any."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from gates.errors import UsageError

if TYPE_CHECKING:
    import torch

_GROUP = Path("/sys/fs/cgroup")
_LIMITS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
"""Where control groups of the second version and of the first say what may be taken, what is, and how much of that are
files that were read: those go when somebody needs the memory."""


def device_of(name: str) -> torch.device:
    """The device called `name`; of `auto`, CUDA where there is one.

    Raises:
        UsageError: there is no such device here.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("there is no CUDA device here", where="--device", remedy="leave --device out, or say cpu")
    return torch.device(name)


def available_memory() -> int | None:
    """Bytes of memory that may still be taken: of the machine, and of the container that this runs in.

    None where the system does not tell.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError):
        return None
    for limit, taken, parts, cached in _LIMITS:
        try:
            may, has = (int((_GROUP / name).read_text(encoding="ascii")) for name in (limit, taken))
            rows = dict(line.split() for line in (_GROUP / parts).read_text(encoding="ascii").splitlines())
            found.append(max(0, may - has + int(rows[cached])))
        except (OSError, ValueError, KeyError):
            pass  # the other version, or no limit ("max")
    return min(found, default=None)


def used_memory() -> int:
    """Bytes of memory that this process has now; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0
