"""One holder a device: a lock on leases/<device>.lock, on the registry's volume, which all containers and people share.

The kernel gives the lock to one, and takes it back when the last process that inherited it has ended, however it
ends. So the process that uses the device holds it, and a server inherits it, with its keeper
(`registry/processes.py`), who ends last: what outlives a parent keeps the device, whose memory it has. The file is
never removed, and what stands in it (who, what, since when) is for those who wait: if its writer was killed it is
stale until the next, and says nothing, for the lock is free.

Whatever was started by a holder works under its lease: `registry lease run -- python -m stages.prune` waits for nobody.
It is recognised by the descriptor that it inherited, or, where something between has closed that (a container, sudo,
Python's subprocess), by the mark that stands in the environment and in the file.
"""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from gates.errors import BusyError
from registry import devices, fs, locks, output, ownership
from registry.layout import Layout

VARIABLE = "SLUICE_LEASE"
"""By which processes that a holder started know its lease: device=descriptor:mark, separated by commas."""

WAIT = "SLUICE_LEASE_WAIT"
"""For how many seconds a device is waited for; without it, as long as it takes."""

_NOTICED = 0.3
"""Seconds: who only looks whether a lock is held has it for a moment, and is nobody to wait for."""
_LOOK = 0.2


@dataclass(frozen=True, slots=True)
class Claim:
    """What a device is wanted for."""

    what: str
    candidate: str | None = None
    manifest: str | None = None
    """The digest of the candidate's manifest: gc leaves it alone as long as the lease is held."""


@dataclass(frozen=True, slots=True)
class Holder:
    """Who holds a device, what for, and since when (UTC), as the file says."""

    what: str
    user: str
    host: str
    """The machine, or the container."""
    since: str
    mark: str
    candidate: str | None = None
    manifest: str | None = None

    def __str__(self) -> str:
        return f"{self.what}, by {self.user} on {self.host}, since {self.since}{_ago(self.since)}"


@dataclass(frozen=True, slots=True)
class Lease:
    """Devices that this process, or one that started it, holds.

    descriptors: those that a server is to inherit (`processes.kept`).
    environment: by which a process that is started knows that it works under this lease.
    """

    devices: tuple[str, ...]
    descriptors: tuple[int, ...]
    environment: dict[str, str]

    def tell_what_stays(self) -> None:
        """Waits until the memory of what has ended is back, and says who holds it if it is not."""
        for name in self.devices:
            wrong = devices.not_back(name)
            if wrong is not None:
                output.hint(f"work on {name} has ended, but {wrong}")


@dataclass(frozen=True, slots=True)
class State:
    """How it stands with a device. `memory` is None where nobody tells."""

    device: str
    held: bool
    holder: Holder | None
    memory: devices.Memory | None


@contextmanager
def hold(layout: Layout, names: Sequence[str], claim: Claim, *, wait: float | None = None) -> Iterator[Lease]:
    """Holds the devices `names` while the block runs. Whom it waits for is said, and again when that changes.

    Where the file system has no locks this is said, and nothing is waited for.

    Args:
        names: as `devices.names` gives them.
        wait: for how many seconds they are waited for; None: as long as it takes.

    Raises:
        BusyError: they were not free in time, or somebody without a lease has their memory.
        UsageError: nothing can be written in leases/.
        IntegrityError: something else than a lock's file is there.
    """
    deadline = time.monotonic() + max(wait, _NOTICED) if wait is not None else float("inf")
    with ExitStack() as held:
        # sorted: two that want the same devices ask for them in the same order
        parts = [held.enter_context(_one(layout, name, claim, deadline)) for name in sorted(set(names))]
        entries = [f"{each.device}={_number(each.descriptor)}:{each.mark}" for each in parts]
        yield Lease(
            tuple(each.device for each in parts),
            tuple(each.descriptor for each in parts if each.descriptor is not None),
            {VARIABLE: ",".join(entries)},
        )


@contextmanager
def turn(path: Path, name: str, claim: Claim) -> Iterator[None]:
    """Holds the lock `path` on something that is no device, called `name`, while the block runs; waiting is told alike.

    Raises:
        UsageError: nothing can be written beside it.
    """
    with _turn(path, name, claim, float("inf")):
        yield


def states(layout: Layout) -> list[State]:
    """Every device that was leased here or is seen from here, sorted."""
    known = {path.name.removesuffix(".lock") for path in layout.leases.glob("*.lock")}
    return [
        State(name, held, holder(layout.lease(name)) if held else None, devices.memory(name))
        for name in sorted(known.union(devices.names("auto")))
        for held in (locks.held(layout.lease(name)),)
    ]


def held_by_another(layout: Layout, names: Sequence[str]) -> bool:
    """Whether somebody whom this process does not work for holds one of the devices."""
    return any(locks.held(layout.lease(name)) and _inherited(layout, name) is None for name in names)


def holder(path: Path) -> Holder | None:
    """What stands in a lock file; None if nothing does, or it is not whole."""
    try:
        stated = json.loads(fs.contents(path).partition(b"\n")[0])
        fields = {field: stated.get(field) for field in Holder.__slots__}
    except (OSError, ValueError, AttributeError):
        return None
    whole = all(isinstance(fields[field], str) for field in ("what", "user", "host", "since", "mark"))
    return Holder(**fields) if whole else None


@dataclass(frozen=True, slots=True)
class _Part:
    """One device of a lease; without a descriptor where only the mark was inherited."""

    device: str
    descriptor: int | None
    mark: str


@contextmanager
def _one(layout: Layout, name: str, claim: Claim, deadline: float) -> Iterator[_Part]:
    inherited = _inherited(layout, name)
    if inherited is not None:
        yield inherited
        return
    with _turn(layout.lease(name), name, claim, deadline) as (descriptor, mark):
        devices.demand_free(name)
        yield _Part(name, descriptor, mark)


@contextmanager
def _turn(path: Path, name: str, claim: Claim, deadline: float) -> Iterator[tuple[int, str]]:
    """The descriptor that holds the lock, and the mark that stands in the file."""
    descriptor = _opened(path)
    try:
        _acquire(descriptor, path, name, deadline)
        mark = secrets.token_hex(8)
        _write(descriptor, claim, mark)
        yield descriptor, mark
    finally:
        os.close(descriptor)  # and no unlocking: that would take the lock from a server that inherited it


def _inherited(layout: Layout, name: str) -> _Part | None:
    """The lease on the device that this process works under, if there is one."""
    entries = (entry.partition("=") for entry in os.environ.get(VARIABLE, "").split(","))
    stated = next((value for device, _, value in entries if device == name), "")
    number, _, mark = stated.partition(":")
    path = layout.lease(name)
    if number.isdecimal() and _is_held_by(int(number), path):
        os.set_inheritable(int(number), False)  # for servers alone
        return _Part(name, int(number), mark)
    there = holder(path)
    if mark and there is not None and there.mark == mark and locks.held(path):
        return _Part(name, None, mark)
    return None


def _is_held_by(descriptor: int, path: Path) -> bool:
    try:
        if not _is(descriptor, path):
            return False
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # changes nothing for whoever shares the lock
    except (OSError, OverflowError):  # there is none, or the lock is another's
        return False
    return True


def _is(descriptor: int, path: Path) -> bool:
    """Whether the file that was opened is the one that is there now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))  # noqa: PTH116 - beside fstat
    except FileNotFoundError:
        return False


def _opened(path: Path) -> int:
    try:
        fs.make_lock(path, shared=True)
        return locks.opened(path, os.O_RDWR | os.O_NOFOLLOW)
    except OSError:
        with suppress(OSError):  # another's file, or a file system that is read-only: it can be locked all the same
            return locks.opened(path, os.O_RDONLY | os.O_NOFOLLOW)
        explained = ownership.refusal(path)
        if explained is not None and not os.access(path.parent, os.W_OK):
            raise explained from None
        raise


def _acquire(descriptor: int, path: Path, name: str, deadline: float) -> None:
    begun, told = time.monotonic(), False
    shown: Holder | None = None
    while not _locked(descriptor, path, name):
        now, who = time.monotonic(), holder(path)
        if now >= deadline:
            raise BusyError(
                f"{name} is held: {who or 'by somebody who could not say who'}",
                where=str(path),
                remedy="wait longer (--wait SECONDS), or end what holds it; registry lease ls lists devices",
            )
        if now - begun >= _NOTICED and (who != shown or not told):
            output.hint(f"waiting for {name}, which is held: {who or 'by somebody who could not say who'}")
            shown, told = who, True
        time.sleep(_LOOK if told else _NOTICED / 3)
    if told:
        output.hint(f"{name} is free after {_duration(time.monotonic() - begun)}")


def _locked(descriptor: int, path: Path, name: str) -> bool:
    """Whether the lock is this process's now, as far as it can be had."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in locks.NONE:
            raise
        output.hint(f"this file system has no locks ({error.strerror}): see to it that nobody else works on {name}")
        return True
    if not _is(descriptor, path):  # somebody has removed it: this lock would keep nobody out
        there = _opened(path)
        os.dup2(there, descriptor, inheritable=False)
        os.close(there)
        return False
    if not locks.held(path):
        output.hint(f"locks do not lock on this file system: see to it that nobody else works on {name}")
    return True


def _write(descriptor: int, claim: Claim, mark: str) -> None:
    from registry.log import signature

    signed = signature()
    line = {"since": signed["time"], "user": signed["user"], "host": signed["host"], "mark": mark, **asdict(claim)}
    with suppress(OSError):  # it is for people: a full disk, or a file that may only be read, keeps nobody from work
        fs.write_lock(descriptor, json.dumps(line).encode() + b"\n")


def _number(descriptor: int | None) -> str:
    return "" if descriptor is None else str(descriptor)


def _ago(since: str) -> str:
    try:
        begun = datetime.strptime(since, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    except ValueError:
        return ""
    return f" ({_duration((datetime.now(UTC) - begun).total_seconds())} ago)"


def _duration(seconds: float) -> str:
    whole = max(0, int(seconds))  # clocks differ, and are set back
    minutes = whole // 60
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min" if minutes else f"{whole} s"
