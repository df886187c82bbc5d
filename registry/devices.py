"""The devices that work is done on: what they are called, and whether their memory is really free.

A GPU is called by its UUID, which is the same in every container. NVML tells who holds its memory without taking any;
where no NVIDIA driver answers there is one device, `cpu`, of which nothing is asked.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from gates.errors import BusyError, UsageError
from registry import output
from registry.sizes import parse_size

Kind = Literal["auto", "cpu", "cuda"]

CPU = "cpu"
CUDA = "cuda"
"""What is leased where tensors are computed on a device that NVML does not know, such as another maker's."""

ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
"""Numbers in CUDA_VISIBLE_DEVICES mean what they mean to NVML and nvidia-smi only under this setting."""

TAKEN = "SLUICE_DEVICE_TAKEN"
ALLOWED = 1 << 30
"""Bytes of a GPU's memory that may be taken when work begins: a desktop that is shown on it, what the driver keeps."""

SETTLES = 20.0
"""Seconds until the memory of a process that has ended is given back at the latest."""

_LOOK = 0.5


@dataclass(frozen=True, slots=True)
class Process:
    pid: int
    """On the machine: in a container it may have another."""
    name: str
    used: int | None
    """Bytes; None where the driver does not tell."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Of one device, in bytes, and who holds it as far as the driver tells (in a container often nobody is named)."""

    model: str
    """What its maker calls it."""
    used: int
    total: int
    processes: tuple[Process, ...]


def names(kind: Kind) -> list[str]:
    """What is leased for work on `kind`: every GPU that this process can see, or `cpu`. `auto`: GPUs where there are.

    Raises:
        UsageError: there is an NVIDIA driver that fails, or nothing to ask it with.
    """
    if kind == CPU:
        return [CPU]
    seen = visible(os.environ.get("CUDA_VISIBLE_DEVICES"), _gpus())
    return seen or [CUDA if kind == CUDA else CPU]


def visible(setting: str | None, there: Sequence[str]) -> list[str]:
    """Which GPUs a process sees under this setting of CUDA_VISIBLE_DEVICES, as CUDA reads it.

    Everything from the first entry on that names none is ignored; -1 names none. An entry is a number or the beginning
    of one UUID.

    Args:
        there: the UUIDs of all, in the order of their slots.
    """
    if setting is None:
        return list(there)
    found: list[str] = []
    for entry in (part.strip() for part in setting.split(",")):
        if entry.isascii() and entry.isdecimal():
            named = list(there[int(entry) : int(entry) + 1])
        else:
            named = [each for each in there if entry.startswith(("GPU-", "MIG-")) and each.startswith(entry)]
        if len(named) != 1:
            break
        found += named
    return list(dict.fromkeys(found))


def memory(name: str) -> Memory | None:
    """The memory of the GPU with this UUID; None where nobody tells (`cpu`, memory that it shares with the machine)."""
    if not name.startswith(("GPU-", "MIG-")):
        return None
    with _nvml() as nvml:
        if nvml is None:
            return None
        try:
            return _memory(nvml, nvml.nvmlDeviceGetHandleByUUID(name))
        except _refusals(nvml):
            return None


def complaint(name: str, found: Memory, allowed: int) -> str | None:
    """What is wrong with a device on which work is to begin: more than `allowed` bytes are taken, and by whom."""
    if found.used <= allowed:
        return None
    holders = sorted(found.processes, key=lambda process: (-(process.used or 0), process.pid))
    listed = ", ".join(
        f"{each.name} (pid {each.pid}{', ' + output.size(each.used) if each.used is not None else ''})"
        for each in holders
    )
    by = f"by {listed}" if listed else "by a process that the driver does not name"
    return f"{output.size(found.used)} of {output.size(found.total)} of {found.model} ({name}) are taken {by}"


def demand_free(name: str, *, read: Callable[[str], Memory | None] = memory, within: float = SETTLES) -> None:
    """Waits for the memory of whoever has just ended.

    Raises:
        BusyError: it is held by somebody without a lease.
        UsageError: the setting of what may be taken is no size.
    """
    allowed = _allowed()
    wrong = _settled(name, allowed, read, within)
    if wrong is not None:
        raise BusyError(
            wrong,
            where=name,
            remedy="end what holds it (kill PID; nvidia-smi lists it), or work on another GPU (CUDA_VISIBLE_DEVICES); "
            f'if it may stay, say how much: {TAKEN}="4 GiB"',
        )


def not_back(name: str, *, read: Callable[[str], Memory | None] = memory, within: float = SETTLES) -> str | None:
    """Waits until the memory of work that has ended is back; what is said if it is not."""
    return _settled(name, _allowed(), read, within)


def _settled(name: str, allowed: int, read: Callable[[str], Memory | None], within: float) -> str | None:
    deadline = time.monotonic() + within
    while True:
        found = read(name)
        wrong = complaint(name, found, allowed) if found else None
        if wrong is None or time.monotonic() >= deadline:
            return wrong
        time.sleep(min(_LOOK, within))


def _allowed() -> int:
    stated = os.environ.get(TAKEN)
    if not stated:
        return ALLOWED
    try:
        return parse_size(stated)
    except ValueError as error:
        raise UsageError(str(error), where=TAKEN) from None


def _gpus() -> list[str]:
    """The UUIDs of all GPUs here; of one that is cut in parts (MIG), those of its parts."""
    found: list[str] = []
    with _nvml() as nvml:
        if nvml is None:
            return []
        try:
            for number in range(nvml.nvmlDeviceGetCount()):
                handle = nvml.nvmlDeviceGetHandleByIndex(number)
                found += _parts(nvml, handle) or [str(nvml.nvmlDeviceGetUUID(handle))]
        except _refusals(nvml) as error:
            raise UsageError(f"the NVIDIA driver fails: {error}", remedy="see what nvidia-smi says") from None
    return found


def _parts(nvml: Any, handle: Any) -> list[str]:
    found = []
    with suppress(*_refusals(nvml)):
        for number in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle)):
            with suppress(*_refusals(nvml)):
                found.append(str(nvml.nvmlDeviceGetUUID(nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, number))))
    return found


def _memory(nvml: Any, handle: Any) -> Memory:
    try:
        found = nvml.nvmlDeviceGetMemoryInfo(handle, nvml.nvmlMemory_v2)  # what the driver keeps is not in its `used`
    except _refusals(nvml):
        found = nvml.nvmlDeviceGetMemoryInfo(handle)
    processes = {}
    for ask in (nvml.nvmlDeviceGetGraphicsRunningProcesses, nvml.nvmlDeviceGetComputeRunningProcesses):
        with suppress(*_refusals(nvml)):
            for each in ask(handle):
                processes[each.pid] = Process(each.pid, _name(nvml, each.pid), each.usedGpuMemory)
    return Memory(
        str(nvml.nvmlDeviceGetName(handle)),
        int(found.used),
        int(found.total),
        tuple(processes[pid] for pid in sorted(processes)),
    )


def _name(nvml: Any, pid: int) -> str:
    try:
        return Path(str(nvml.nvmlSystemGetProcessName(pid)).partition(" ")[0]).name or "unknown"
    except _refusals(nvml):
        return "unknown"


def _refusals(nvml: Any) -> tuple[type[Exception], ...]:
    """What is raised where a driver, perhaps an older one, does not answer."""
    return nvml.NVMLError, nvml.NVMLLibraryMismatchError


@contextmanager
def _nvml() -> Iterator[Any]:
    """The module, ready to be asked; None where no driver answers.

    Raises:
        UsageError: there is a driver, and the module is not installed: another environment of this machine would lease
            the GPU under its UUID, and this one could not.
    """
    try:
        import pynvml
    except ImportError:
        if Path("/dev/nvidiactl").exists():
            raise UsageError(
                "the Python package nvidia-ml-py is not installed, and there is an NVIDIA GPU to be leased",
                remedy="make envs, or make images",
            ) from None
        yield None
        return
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        yield None
        return
    try:
        yield pynvml
    finally:
        with suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()
