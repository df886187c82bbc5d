"""What is wrong with a registry and with the disk that it lies on, each with the command that mends it.

Nothing is changed but for probes in locks/ and staging/. A finding is one of three: `damage` (a model or a record is
not what it should be, or could be lost), `obstacle` (the registry cannot do its work here) or `hint`.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from gates.errors import IntegrityError, SluiceError, UsageError
from registry import channels, fs, garbage, generations, links, locks, marker, output, ownership, reachable
from registry.layout import Layout

if TYPE_CHECKING:
    from registry.store import Store
    from registry.verify import Problem

Severity = Literal["damage", "obstacle", "hint"]

_LITTLE = 64 << 20
"""Bytes: with less than this free, records are soon refused."""


@dataclass(frozen=True, slots=True)
class Finding:
    severity: Severity
    what: str
    where: str
    remedy: str
    """A command, or what else to do."""


def examine(root: Path) -> list[Finding]:
    """Everything that is wrong, the worst first.

    Raises:
        UsageError: there is no registry in `root`, or a newer Sluice made it.
    """
    from registry.store import Store

    layout = Layout(root.absolute())
    marker.check(layout)
    store = Store(layout)  # as it is: opening it would mend what is to be seen
    found = list(_ownership(layout))
    looks = (_disk, _blobs, _candidates, _records, _datasets, _removals, _left)
    for look in looks if found else (_locks, _links, *looks):
        found += _looked(store, look)
    order = ("damage", "obstacle", "hint")
    return sorted(found, key=lambda finding: order.index(finding.severity))


def exit_code(found: list[Finding]) -> int:
    """5 if anything is damaged, 2 if something keeps the registry from its work, 0 if there are hints alone."""
    severities = {finding.severity for finding in found}
    return 5 if "damage" in severities else 2 if "obstacle" in severities else 0


def render(found: list[Finding]) -> str:
    if not found:
        return "nothing is wrong"
    return "\n".join(f"{each.severity}: {each.what}\n  where: {each.where}\n  to do: {each.remedy}" for each in found)


def _looked(store: Store, look: Callable[[Store], Iterator[Finding]]) -> Iterator[Finding]:
    """What `look` finds, and what it cannot look at."""
    try:
        yield from look(store)
    except SluiceError as error:
        yield Finding(
            "damage", error.what, error.where or str(store.layout.root), error.remedy or "registry verify --all"
        )
    except OSError as error:
        where = str(error.filename or store.layout.root)
        remedy = output.remedy(error) or "run this as the registry's owner"
        yield Finding("obstacle", f"the system refuses: {error.strerror}", where, remedy)


def _ownership(layout: Layout) -> Iterator[Finding]:
    """Folders that are missing, or that this process may not write in; files of another user."""
    ours = os.getuid()
    take_over = f"sudo chown -R $(id -u):$(id -g) {shlex.quote(str(layout.root))}"
    closed: dict[str, list[Path]] = {}  # by what mends it: one cause is one finding
    for folder in (layout.root, *layout.folders()):
        if not folder.is_dir():
            yield Finding("hint", "this folder is missing", str(folder), "any command makes it, such as registry ls")
        elif not os.access(folder, os.W_OK | os.X_OK):
            mode = "chmod u+rwx " + shlex.quote(str(folder))
            remedy = mode if folder.stat().st_uid == ours else take_over
            if os.statvfs(folder).f_flag & os.ST_RDONLY:
                remedy = ownership.REMOUNT
            closed.setdefault(remedy, []).append(folder)
    for remedy, folders in closed.items():
        more = f", nor in {len(folders) - 1} more" if len(folders) > 1 else ""
        yield Finding("obstacle", f"nothing can be written in this folder{more}", str(folders[0]), remedy)
    foreign = {path: state.st_uid for path, state in _states(_everything(layout.root)) if state.st_uid != ours}
    if foreign:
        users = ", ".join(str(uid) for uid in sorted(set(foreign.values())))
        what = f"{len(foreign)} files and folders belong to another user ({users}); this process runs as {ours}"
        yield Finding("obstacle", what, str(next(iter(foreign))), take_over)


def _everything(root: Path) -> Iterator[Path]:
    yield root
    for base, folders, names in os.walk(root):
        yield from (Path(base, name) for name in (*folders, *names))


def _states(paths: Iterable[Path]) -> Iterator[tuple[Path, os.stat_result]]:
    """Without what is gone since it was listed: registries are looked at while others write."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            yield path, path.lstat()


def _locks(store: Store) -> Iterator[Finding]:
    folder = store.layout.locks
    for works, whom in ((locks.work, "a second descriptor"), (locks.work_between_processes, "another process")):
        if not works(folder):
            what = (
                f"locks do not lock here: {whom} gets one that is held. Nothing is lost by it; work may be done twice"
            )
            remedy = "let one process at a time work on the registry, or move it to a file system of this machine"
            yield Finding("hint", what, str(folder), remedy)


def _links(store: Store) -> Iterator[Finding]:
    folder = store.layout.staging
    for kind, error in links.refused(folder).items():
        if kind == "exchange":
            what = f"two folders cannot be exchanged in one step here ({error}): --replace leaves a gap of a moment"
            yield Finding("hint", what, str(folder), "let nothing load a candidate while its name is replaced")
        else:
            what = f"the file system refuses {kind}: {error}"
            yield Finding("obstacle", what, str(folder), "move the registry to ext4, XFS, Btrfs, ZFS or APFS")


def _disk(store: Store) -> Iterator[Finding]:
    root = store.layout.root
    free = shutil.disk_usage(root).free
    sizes = {name: candidate.manifest.size for name, candidate in store.sound().items()}
    largest = max(sizes, key=lambda name: sizes[name], default=None)
    remedy = "registry gc --dry-run lists what could go; registry df says what is large"
    if free < _LITTLE:
        yield Finding("obstacle", f"the disk is full: {output.size(free)} are free", str(root), remedy)
    elif largest is not None and free < sizes[largest]:
        what = f"{output.size(free)} are free; {largest}, the largest candidate, has {output.size(sizes[largest])}"
        yield Finding("hint", what, str(root), remedy)
    inodes = os.statvfs(root)
    if inodes.f_files and inodes.f_favail < 1000:
        yield Finding("obstacle", f"only {inodes.f_favail} more files can be made", str(root), remedy)


def _blobs(store: Store) -> Iterator[Finding]:
    """Blobs are read-only regular files: nothing but a mistake could change one."""
    writable = []
    for path, state in _states(garbage.blobs(store)):
        if not stat.S_ISREG(state.st_mode):
            yield Finding("damage", "this is called like a blob but is no regular file", str(path), _aside(path))
        elif state.st_mode & 0o222:
            writable.append(path)
    if writable:
        blobs = shlex.quote(str(store.layout.root / "blobs"))
        remedy = f"find {blobs} -type f -exec chmod a-w {{}} +; then registry verify --all"
        yield Finding("damage", f"{len(writable)} blobs can be written", str(writable[0]), remedy)


def _candidates(store: Store) -> Iterator[Finding]:
    from registry.verify import verify

    for name in store.names():
        problems: list[Problem] = []
        with contextlib.suppress(UsageError):  # removed since it was listed, as where it is gone below
            problems = verify(store, name, full=False)
        if problems and os.path.lexists(store.layout.candidate(name)):
            what = f"{name} is damaged: {problems[0]}" + f" (and {len(problems) - 1} more)" * (len(problems) > 1)
            folder = store.layout.candidate(name)
            yield Finding("damage", what, str(folder), f"registry verify {name}; make it again, or registry rm {name}")


def _records(store: Store) -> Iterator[Finding]:
    store.log.verify()
    channels.verify(store)
    for channel in generations.channels(store.layout):
        generation = generations.newest(store.layout, channel)
        link = store.layout.channel(channel)
        target = store.layout.channel_target(generation.candidate) if generation else None
        if not link.is_symlink() or str(link.readlink()) != target:
            what = f"the channel {channel} does not lead to what was promoted last"
            yield Finding("damage", what, str(link), "any command mends it, such as registry ls")


def _datasets(store: Store) -> Iterator[Finding]:
    """Rows of public sets that cannot be read any more."""
    from registry.packs import Kept

    for name in fs.entries(store.layout.datasets):
        path = store.layout.datasets / name
        try:
            store.read(Kept.from_bytes(fs.read(path, "record of a public set"), where=str(path)).rows)
        except IntegrityError as error:
            what = f"the rows of a public set are damaged: {error.what}"
            remedy = "registry pack ls says which sets are kept; registry pack fetch PACK --replace"
            yield Finding("damage", what, error.where or str(path), remedy)


def _removals(store: Store) -> Iterator[Finding]:
    """Candidates that the log does not know, and those that it knows and that are gone without a word in it."""
    logged = reachable.last_names(store)
    for name, candidate in store.sound().items():
        if logged.get(name) != candidate.digest:
            what = f"the log does not say how {name} came here: its entry was interrupted, or entries are lost"
            remedy = "add or make it again, or promote it: that writes the entry; if there were more, restore log/"
            yield Finding("hint", what, str(store.layout.log), remedy)
    for name in sorted(logged.keys() - set(store.names())):
        what = f"the candidate {name} is gone, and the log does not say that it was removed"
        folder = store.layout.candidate(name)
        yield Finding("hint", what, str(folder), f"registry rm {name} says so; or make it again")


def _left(store: Store) -> Iterator[Finding]:
    """Work that was given up, and what nothing needs."""
    root = store.layout.root
    found = garbage.find(store, garbage.Terms())
    unfinished = sum(found.unfinished.values())
    if found.unfinished:
        what = f"{len(found.unfinished)} pieces of unfinished work, {output.size(unfinished)}, that nobody is at"
        remedy = "run what made them again to go on, or leave them to registry gc"
        yield Finding("hint", what, str(root / next(iter(found.unfinished))), remedy)
    if found.size > unfinished:
        what = f"nothing needs {output.size(found.size - unfinished)} in {len(found.blobs)} files"
        yield Finding("hint", what, str(root / "blobs"), "registry gc --dry-run lists it, registry gc removes it")
    if fs.entries(store.layout.trash):
        yield Finding("hint", "a gc was interrupted", str(store.layout.trash), "registry gc")


def _aside(path: Path) -> str:
    return f"mv {shlex.quote(str(path))} /somewhere/else; then registry verify --all"
