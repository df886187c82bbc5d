"""What a registry still needs: what can be reached from the names, the channels, the leases and the work in progress.

A reference is any SHA-256 that stands in a record, whichever field it stands in: a record of a newer Sluice may name
blobs in fields that this one does not know, and they must not be lost. To keep too much is a waste; to keep too little
is a loss.

Manifests are reached in two ways. Those that a candidate's name, a kept generation or a lease leads to are *whole*:
their model can be loaded. From these, from what is recorded about them, and from generations that are not kept, others
are reached: what a model was made from, what it was compared with, what was served once. Of those the *record* is
needed (manifest, calibration rows, evidence, verdicts, …), and no model.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from gates import canonical
from gates.errors import IntegrityError, UsageError
from registry import fs, generations, locks
from registry.layout import RECORDS, is_name
from registry.manifests import Manifest

if TYPE_CHECKING:
    from registry.store import Store

DIGEST = re.compile(r"[0-9a-f]{64}")

_DIGESTS = re.compile(rb"(?<![0-9a-f])[0-9a-f]{64}(?![0-9a-f])")


@dataclass(frozen=True, slots=True)
class Reached:
    """`manifests` are the bytes of every manifest there is, by digest; `whole` and `records` say which are needed."""

    manifests: dict[str, bytes]
    whole: frozenset[str]
    records: frozenset[str]

    def parent(self, digest: str) -> str | None:
        """What the candidate with this manifest was made from."""
        return Manifest.from_bytes(self.manifests[digest]).inputs.parent if digest in self.manifests else None


NEVER = float("inf")


def reach(
    store: Store, *, keep_generations: int | None = None, lost_since: float = NEVER, renewed_since: float = NEVER
) -> Reached:
    """Which manifests are needed.

    Args:
        keep_generations: how many of each channel's generations one can roll back to; None: all.
        lost_since: what lost its name after this moment (seconds since 1970) is needed whole too.
        renewed_since: and so is what was written or renewed after this one.

    Raises:
        IntegrityError: a record is damaged, so that what it refers to is not known.
    """
    manifests = {path.stem: data for path, data in _checked(store.layout.root / "manifests")}
    roots = set(named(store).values())
    roots |= {generation.manifest for generation in kept_generations(store, keep_generations)}
    roots |= _let_go(store, lost_since) | _leased(store)
    roots |= {digest for digest in manifests if _modified(store.layout.manifest(digest)) >= renewed_since}
    whole = roots & manifests.keys()
    promoted = {generation.manifest for generation in kept_generations(store, None)}
    records = whole | (promoted & manifests.keys())
    left = list(records)
    while left:
        digest = left.pop()
        found = references(manifests[digest])
        for data in _recorded(store, digest):
            found |= references(data)
        new = (found & manifests.keys()) - records
        records |= new
        left += new
    return Reached(manifests, frozenset(whole), frozenset(records))


def blobs(
    store: Store, reached: Reached, *, staging: Iterable[Path], without: frozenset[str] = frozenset()
) -> set[str]:
    """The digests of all blobs that are needed, and of other things.

    Args:
        staging: folders of work in progress: what links in them lead to is needed.
        without: manifests that are about to be removed, with what is recorded about them.

    Raises:
        IntegrityError: as `reach`.
    """
    found: set[str] = set()
    for digest, data in reached.manifests.items():
        if digest not in without:
            found |= references(data if digest in reached.whole else _without_model(data))
    for digest in with_records(store):
        if digest not in without:
            for data in _recorded(store, digest):
                found |= references(data)
    for channel in fs.entries(store.layout.root / "generations"):
        for _, data in _contents(store.layout.generations(channel)):
            found |= references(data)
    for folder in (store.layout.mixes, store.layout.datasets):
        for _, data in _contents(folder):
            found |= references(data)
    for folder in (store.layout.candidates, *staging):
        found |= linked(folder)
    return found | _leased(store)


def references(data: bytes) -> set[str]:
    return {match.decode() for match in _DIGESTS.findall(data)}


def linked(folder: Path) -> set[str]:
    """What the links below `folder` lead to, by digest: also of a candidate that is damaged or not named any more."""
    found = set()
    for base, folders, names in fs.walk(folder):
        for path in (Path(base, name) for name in (*folders, *names)):
            with contextlib.suppress(FileNotFoundError):  # removed at this moment: as if it had been a moment ago
                if path.is_symlink() and DIGEST.fullmatch(target := path.readlink().name):
                    found.add(target)
    return found


def named(store: Store) -> dict[str, str]:
    """The manifest of every candidate, by its name.

    Raises:
        IntegrityError: one cannot be told.
    """
    found = {}
    for name in store.names():
        try:
            found[name] = store.candidate(name).digest
        except (IntegrityError, UsageError) as error:
            if not os.path.lexists(store.layout.candidate(name)):
                continue  # removed at this moment
            raise IntegrityError(
                f"{name} is damaged, so what it needs is not known: {error.what}",
                where=error.where,
                remedy=f"mend it (registry verify {name}), or remove it: registry rm {name}",
            ) from None
    return found


def kept_generations(store: Store, keep: int | None) -> Iterator[generations.Generation]:
    """The newest `keep` generations of each channel (None: all) and the one that is served."""
    for channel in generations.channels(store.layout):
        found = generations.kept(store.layout, channel)
        yield from found[-keep:] if keep is not None else found


def last_names(store: Store) -> dict[str, str]:
    """The manifest that each name had last, as the log has it; names that were removed are left out."""
    last: dict[str, str | None] = {}
    for entry in store.log.entries():
        if entry.event == "candidate":
            last[str(entry.about.get("name"))] = entry.about.get("manifest")
    return {name: manifest for name, manifest in last.items() if manifest and is_name(name)}


def with_records(store: Store) -> set[str]:
    """The manifests, there or not, that something is recorded about."""
    folders = [store.layout.root / kind for kind in RECORDS]
    return {name for folder in folders for name in fs.entries(folder) if DIGEST.fullmatch(name)}


def _let_go(store: Store, since: float) -> set[str]:
    """What lost its name after `since`, and what lost it without a word in the log, where a removal was interrupted."""
    found = set(last_names(store).values())
    for entry in store.log.entries():
        replaced = entry.about.get("replaced")
        if entry.event == "candidate" and isinstance(replaced, str) and _seconds(entry.time) > since:
            found.add(replaced)
    return found


def _leased(store: Store) -> set[str]:
    """What leases name. Of one that is not held the file tells who had it last, which keeps nothing."""
    found: set[str] = set()
    for path, data in _contents(store.layout.leases):
        named = references(data)
        if named and (path.suffix != ".lock" or locks.held(path) or not locks.work(store.layout.locks)):
            found |= named
    return found


def _recorded(store: Store, digest: str) -> Iterator[bytes]:
    """What is recorded about a candidate. Evidence and verdicts are called after their own digests, the rest is not."""
    for kind, folder in store.layout.records(digest).items():
        for _, data in _checked(folder) if kind in ("evidence", "verdicts") else _contents(folder):
            yield data


def _checked(folder: Path) -> Iterator[tuple[Path, bytes]]:
    """The records in a folder, which are called after their digests."""
    for path, data in _contents(folder):
        if canonical.digest(data) != path.stem:
            raise IntegrityError(
                "this record is damaged, so what it refers to is not known",
                where=str(path),
                remedy="restore it from a backup, or move it out of the registry",
            )
        yield path, data


def _contents(folder: Path) -> Iterator[tuple[Path, bytes]]:
    for name in fs.entries(folder):
        path = folder / name
        try:
            data = fs.contents(path)
        except FileNotFoundError:  # taken away since
            continue
        except PermissionError:  # whose registry it is, not what is in it
            raise
        except OSError as error:
            raise IntegrityError(
                f"this is no record that could be read, so what it refers to is not known: {error.strerror}",
                where=str(path),
                remedy="restore it from a backup, or move it out of the registry",
            ) from None
        yield path, data


def _without_model(data: bytes) -> bytes:
    """What a manifest says besides its model's files."""
    manifest = Manifest.from_bytes(data)
    return canonical.dumps(manifest.model_dump(mode="json", exclude={"files"}, exclude_unset=True))


def _modified(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _seconds(time: str) -> float:
    return datetime.strptime(time, "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC).timestamp()
