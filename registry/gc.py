"""Garbage collection: what nothing needs any more goes, after a time of grace.

What is needed, `registry.reachable` says; what could go, `registry.garbage`; how a thing is removed while others write,
`registry.trash`. The order makes an interruption harmless: unfinished work first, then manifests with evidence and
verdicts (each before the one that it was made from), and only then blobs, when it was asked again what the manifests
that are left need. docs/decisions/0017-what-gc-may-remove.md has the argument.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gates import canonical
from gates.errors import BusyError, IntegrityError
from registry import channels, fs, garbage, trash
from registry.garbage import DAY, Garbage, Terms
from registry.reachable import DIGEST

if TYPE_CHECKING:
    from registry.store import Store

GRACE = 14 * DAY
"""Seconds for which what is not needed any more stays all the same."""


def collect(
    store: Store, *, grace: float = GRACE, keep_generations: int | None = None, now: float | None = None
) -> Garbage:
    """Removes what is not needed, and says what that was. Interrupted anywhere, it goes on when it is run again.

    Args:
        grace: seconds since something was needed, or was written.
        keep_generations: how many of each channel's generations one can roll back to; None: all.
        now: seconds since 1970, by the clock of the file system; None: read it there.

    Raises:
        IntegrityError: a record is damaged. What it refers to is not known, so nothing is removed.
        BusyError: another gc is at work.
    """
    with store.locked("gc", wait=0, busy=trash.BUSY):
        trash.recover_all(store.layout)
        _refuse_damage(store)
        terms = garbage.terms(store, grace=grace, keep_generations=keep_generations, now=now or _clock(store))
        found = garbage.find(store, terms)
        run = _announced(store, found)
        if run is None:
            return found
        for path in run.garbage.unfinished:
            _remove_unfinished(store, store.layout.root / path, terms)
        _remove_manifests(store, list(found.manifests), terms)
        _remove_blobs(store, terms)
        removed = _gone(store, run.garbage)
        _log(store, run, removed, grace=grace, keep_generations=keep_generations)
        return replace(removed, spared=found.spared)


def preview(
    store: Store, *, grace: float = GRACE, keep_generations: int | None = None, now: float | None = None
) -> Garbage:
    """What `collect` would remove. It raises IntegrityError as `collect` does."""
    _refuse_damage(store)
    terms = garbage.terms(store, grace=grace, keep_generations=keep_generations, now=now or time.time())
    return garbage.find(store, terms)


@dataclass(frozen=True, slots=True)
class _Run:
    """What a gc is called in the log, and what it accounts for: also what one that was killed may have removed."""

    name: str
    garbage: Garbage


def _refuse_damage(store: Store) -> None:
    store.log.verify()
    channels.verify(store)


def _clock(store: Store) -> float:
    """Now, by the clock that sets the times of files; on a network it is another machine's."""
    lock = store.layout.lock("gc")
    fs.make_lock(lock)
    fs.renew(lock)
    return lock.stat().st_mtime


def _announced(store: Store, found: Garbage) -> _Run | None:
    """Writes down what is about to go, so that the log's entry can be made whatever happens; None if nothing is."""
    path = store.layout.trash / trash.PENDING
    name, before = secrets.token_hex(8), Garbage()
    with contextlib.suppress(OSError, IntegrityError, KeyError, TypeError):
        stated = canonical.loads(fs.contents(path), where=str(path))
        name, before = stated["run"], Garbage(**stated["garbage"])
    if before.nothing and found.nothing:
        return None
    if before.nothing:
        fs.remove_tree(path)
        with contextlib.suppress(OSError):  # on a full disk; then an interruption costs the log's entry
            fs.write_new(path, canonical.dumps({"run": name, "garbage": asdict(found)}))
    merged = Garbage(
        before.unfinished | found.unfinished, before.manifests | found.manifests, before.blobs | found.blobs
    )
    return _Run(name, merged)


def _remove_unfinished(store: Store, path: Path, terms: Terms) -> None:
    """Looks again first: somebody may have gone on with it."""
    if not os.path.lexists(path) or not garbage.given_up(store, path, terms):
        return
    if not DIGEST.fullmatch(path.name):
        fs.remove_tree(path)
        return
    with contextlib.suppress(BusyError), store.locked(f"step-{path.name}", wait=0, busy="the step goes on"):
        store.discard(path.name)


def _remove_manifests(store: Store, doomed: list[str], terms: Terms) -> None:
    known = garbage.reached(store, terms)  # again, for what was named since, and for what is needed by it
    spared = set(known.records)
    for digest in doomed:
        if digest in spared:
            continue
        if digest not in known.manifests:
            trash.remove_records(store.layout, digest)
        elif not trash.remove_manifest(store.layout, digest, before=terms.renewed):
            while (parent := known.parent(digest)) is not None:
                spared.add(digest := parent)


def _remove_blobs(store: Store, terms: Terms) -> None:
    loose = garbage.loose_blobs(store, garbage.reached(store, terms), terms)
    changed = set()
    for digest in loose:
        if trash.remove_blob(store.layout, digest, before=terms.renewed):
            changed.add(store.layout.blob(digest).parent)
    for folder in sorted(changed):
        fs.sync_folder(folder)


def _gone(store: Store, expected: Garbage) -> Garbage:
    """What of it is not there any more."""
    layout = store.layout
    return Garbage(
        {path: size for path, size in expected.unfinished.items() if not os.path.lexists(layout.root / path)},
        {digest: size for digest, size in expected.manifests.items() if not os.path.lexists(layout.manifest(digest))},
        {digest: size for digest, size in expected.blobs.items() if not os.path.lexists(layout.blob(digest))},
    )


def _log(store: Store, run: _Run, removed: Garbage, *, grace: float, keep_generations: int | None) -> None:
    about: dict[str, Any] = {
        "bytes": removed.size,
        "manifests": sorted(removed.manifests),
        "blobs": len(removed.blobs),
        "unfinished": len(removed.unfinished),
        "grace": grace,
        "keep_generations": keep_generations,
    }
    if not removed.nothing:
        store.log.follow("gc", {"run": run.name}, lambda newest: None if newest else about)
    fs.remove_tree(store.layout.trash / trash.PENDING)
