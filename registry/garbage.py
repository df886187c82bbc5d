"""What gc would remove, and how large it is. Nothing here changes a registry."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from registry import fs, locks, reachable
from registry.layout import RECORDS
from registry.reachable import DIGEST, NEVER

if TYPE_CHECKING:
    from registry.store import Store

DAY = 86_400.0

MARGIN = 600.0
"""Seconds for which what was written or renewed stays even without grace: a record that names it may be on its way.
From the last renewal to the record that makes it needed take moments, and a minute where a lock is waited for."""

UNLOCKED = DAY
"""Seconds of rest after which a step counts as given up where locks do not tell whether somebody is at it."""


@dataclass(frozen=True, slots=True)
class Garbage:
    """What is not needed, each with its bytes: files and folders by their path below the root, the others by digest."""

    unfinished: dict[str, int] = field(default_factory=dict)
    manifests: dict[str, int] = field(default_factory=dict)
    """With all that is recorded about them."""
    blobs: dict[str, int] = field(default_factory=dict)
    spared: int = 0
    """Bytes of what is not needed either, but not for long enough."""

    @property
    def size(self) -> int:
        return sum(sum(part.values()) for part in (self.unfinished, self.manifests, self.blobs))

    @property
    def nothing(self) -> bool:
        return not (self.unfinished or self.manifests or self.blobs)


@dataclass(frozen=True, slots=True)
class Terms:
    """What may go, in seconds since 1970: nothing that was named after `lost` or renewed after `renewed`, and no
    unfinished work that was changed after `rested`."""

    lost: float = NEVER
    renewed: float = NEVER
    rested: float = NEVER
    keep_generations: int | None = None


def terms(store: Store, *, grace: float, keep_generations: int | None, now: float) -> Terms:
    """A step that somebody may be at may rely on anything that came since it began."""
    rested = now - max(grace, MARGIN if locks.work(store.layout.locks) else UNLOCKED)
    going_on = [step for step in _steps(store) if not given_up(store, step, Terms(rested=rested))]
    begun = [_state(store.layout.lock(f"step-{step.name}"))[2] or now for step in going_on]
    renewed = min([now - max(grace, MARGIN), *(each - MARGIN for each in begun)])
    # the log's times are those of the machines that wrote it, which may be ahead of the file system's
    return Terms(max(now, time.time()) - grace, renewed, rested, keep_generations)


def find(store: Store, terms: Terms) -> Garbage:
    """
    Raises:
        IntegrityError: a record is damaged, so that what it refers to is not known.
    """
    found = _find(store, terms)
    everything = _find(store, Terms(keep_generations=terms.keep_generations))
    return replace(found, spared=max(0, everything.size - found.size))


def reached(store: Store, terms: Terms) -> reachable.Reached:
    return reachable.reach(
        store, keep_generations=terms.keep_generations, lost_since=terms.lost, renewed_since=terms.renewed
    )


def loose_blobs(store: Store, known: reachable.Reached, terms: Terms, without: Iterable[str] = ()) -> dict[str, int]:
    """The blobs that nothing needs, with their bytes.

    Args:
        without: manifests that are about to be removed.
    """
    working = [path for path in unfinished(store) if not given_up(store, path, terms)]
    staged = [path for path in working if path.parent == store.layout.staging]
    needed = reachable.blobs(store, known, staging=staged, without=frozenset(without))
    shared = {_state(path)[0] for folder in staged for path in _tree(folder)}  # a step's files that are blobs already
    states = {path.name: _state(path) for path in blobs(store) if path.name not in needed}
    return {
        digest: size
        for digest, (inode, size, renewed) in states.items()
        if renewed < terms.renewed and inode not in shared
    }


def blobs(store: Store) -> Iterator[Path]:
    """Every file that is called like a blob."""
    folder = store.layout.root / "blobs" / "sha256"
    for part in fs.entries(folder):
        yield from (folder / part / name for name in fs.entries(folder / part) if DIGEST.fullmatch(name))


def unfinished(store: Store) -> Iterator[Path]:
    """The folders of steps, and whatever is called unfinished, wherever records, blobs and candidates are made."""
    yield from _steps(store)
    for folder in _folders(store):
        with os.scandir(folder) as entries:
            yield from sorted(Path(entry.path) for entry in entries if entry.name.startswith(fs.TEMPORARY))


def given_up(store: Store, path: Path, terms: Terms) -> bool:
    """Whether nobody is at unfinished work, and nothing in it was changed for as long as it takes."""
    newest = max((_state(each)[2] for each in _tree(path)), default=0.0)
    return newest < terms.rested and not _held(store, path)


def size_of(path: Path) -> int:
    """Bytes of the files at `path` and below. What has another name too, as a blob, frees nothing here."""
    total = 0
    for each in _tree(path):
        with contextlib.suppress(FileNotFoundError):  # removed meanwhile
            state = each.lstat()
            if state.st_nlink == 1 and stat.S_ISREG(state.st_mode):
                total += state.st_size
    return total


def _find(store: Store, terms: Terms) -> Garbage:
    idle = [path for path in unfinished(store) if given_up(store, path, terms)]
    known = reached(store, terms)
    doomed = _not_needed(store, known, terms)
    return Garbage(
        unfinished={path.relative_to(store.layout.root).as_posix(): size_of(path) for path in idle},
        manifests={digest: sum(map(size_of, _of(store, digest))) for digest in doomed},
        blobs=loose_blobs(store, known, terms, without=doomed),
    )


def _not_needed(store: Store, known: reachable.Reached, terms: Terms) -> list[str]:
    """Manifests, each before the one that it was made from; and those of which only records are left."""

    def ancestors(digest: str | None) -> int:
        count = 0
        while (digest := known.parent(digest) if digest else None) is not None:
            count += 1
        return count

    doomed = (known.manifests.keys() | reachable.with_records(store)) - known.records
    old = [digest for digest in doomed if digest in known.manifests or _records_rest(store, digest, terms)]
    return sorted(old, key=lambda digest: (-ancestors(digest), digest))


def _records_rest(store: Store, digest: str, terms: Terms) -> bool:
    return max(_state(each)[2] for path in _of(store, digest) for each in _tree(path)) < terms.renewed


def _of(store: Store, digest: str) -> list[Path]:
    """What there is of a manifest and of what is recorded about its candidate."""
    layout = store.layout
    paths = (layout.manifest(digest), *layout.records(digest).values())
    return [path for path in paths if os.path.lexists(path)]


def _steps(store: Store) -> list[Path]:
    names = [name for name in fs.entries(store.layout.staging) if DIGEST.fullmatch(name)]
    return [store.layout.staging / name for name in names]


def _held(store: Store, path: Path) -> bool:
    """Whether another process has the lock of the step, if this is one's folder."""
    return bool(DIGEST.fullmatch(path.name)) and locks.held(store.layout.lock(f"step-{path.name}"))


def _folders(store: Store) -> list[Path]:
    """Where something unfinished can lie. (What lies in the trash is gc's own.)"""
    root = store.layout.root
    flat = [root / name for name in ("manifests", "candidates", "channels", "log", "staging", "leases", "locks")]
    deep = [root / name for name in ("blobs/sha256", *RECORDS, "generations")]
    below = [folder / name for folder in deep for name in fs.entries(folder)]
    return [folder for folder in (root, *flat, *deep, *below) if folder.is_dir()]


def _tree(path: Path) -> Iterator[Path]:
    """`path` and all below it."""
    yield path
    if path.is_symlink():
        return
    for base, folders, names in fs.walk(path):
        yield from (Path(base, name) for name in (*folders, *names))


def _state(path: Path) -> tuple[int, int, float]:
    """Inode, bytes, and time of the last change; zeros where it is gone."""
    try:
        state = os.lstat(path)
    except FileNotFoundError:
        return 0, 0, 0.0
    return state.st_ino, state.st_size, state.st_mtime
