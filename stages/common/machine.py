"""What this machine has: its memory and that of its device, asked without taking any."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")


def available_memory() -> int | None:
    """Bytes of memory that may still be taken: of the machine, and of the container that this runs in.

    None where the system does not tell.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except (OSError, ValueError):
        return None
    try:
        limit, taken = ((_GROUP / f"memory.{name}").read_text(encoding="ascii").strip() for name in ("max", "current"))
        found += [max(0, int(limit) - int(taken))] if limit != "max" else []
    except (OSError, ValueError):
        pass  # the first version of control groups, or none
    return min(found, default=None)


def used_memory() -> int:
    """Bytes of memory that this process has now; 0 where the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def cuda_device() -> tuple[str, int | None]:
    """The first CUDA device: its name, and how many bytes of its memory are free; None if the driver does not tell.

    The driver's own program is asked: whatever asks through torch takes some hundred megabytes of that memory.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").partition(",")[0]
    command = ["nvidia-smi", f"--id={first}", "--query-gpu=name,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        name, _, free = done.stdout.strip().rpartition(", ")
        return name, int(free) << 20
    except (OSError, ValueError, subprocess.SubprocessError):
        return "cuda", None
