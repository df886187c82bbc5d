"""Memory: how much there is, and how to let it go back to the system."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import subprocess
from pathlib import Path

_M_MMAP_THRESHOLD = -3
_LARGE = 1 << 20


def give_back_large_blocks() -> None:
    """Has the allocator take every block from 1 MiB up from the system, and give it back when it is freed.

    glibc raises that limit to up to 32 MiB as a program frees large blocks, and keeps what is freed below it: the
    memory of a layer loaded and dropped forty times then grows with the number of layers (docs/experiments.md). Other
    allocators are left as they are.
    """
    name = ctypes.util.find_library("c")
    mallopt = getattr(ctypes.CDLL(name), "mallopt", None) if name else None
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, _LARGE)


def available() -> int | None:
    """Bytes of memory that this process may still take: of the machine, and of the container it is in; None where
    the system does not tell."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            found.append(max(0, int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text(encoding="ascii"))))
    except (OSError, ValueError):
        pass  # another system, or another version of control groups
    return min(found, default=None)


def used() -> int:
    """Bytes of memory that this process has now, in RAM."""
    try:
        return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return 0


def on_device() -> tuple[str, int | None]:
    """The first CUDA device: its name, and how many bytes of its memory are free; None if the driver does not tell.

    The driver's own program is asked: whatever asks through torch takes some hundred megabytes of that memory.
    """
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    command = ["nvidia-smi", f"--id={first}", "--query-gpu=name,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        name, _, free = done.stdout.strip().rpartition(", ")
        return name, int(free) << 20
    except (OSError, ValueError, subprocess.SubprocessError):
        return "cuda", None
