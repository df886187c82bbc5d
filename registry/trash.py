"""How gc removes: it takes a thing away by one rename, looks whether somebody relied on it a moment before, and only
then removes it. Otherwise it puts it back.

Whoever relies on something renews it (`fs.renew`). Of a renewal and a rename one comes first: a renewal before the
rename is seen by gc on what it holds in its hands; one after the rename fails, and whoever wanted to rely on the thing
makes it again. What a killed gc holds is put back by the next command (`recover`), but for manifests that were doomed.

    trash/<digest>                               a blob
    trash/<digest>.json .evidence .verdicts …    a manifest and all that is recorded about its candidate
    trash/pending.json                           what the gc that is at work set out to remove
    trash/.tmp-…                                 doomed
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from gates.errors import BusyError
from registry import fs, output
from registry.layout import RECORDS

if TYPE_CHECKING:
    from registry.layout import Layout
    from registry.objects import Objects

PENDING = "pending.json"

BUSY = "another gc is at work"

_BLOB = re.compile(r"[0-9a-f]{64}")
_MANIFEST = re.compile(r"([0-9a-f]{64})\.json")
_RECORDS = re.compile(rf"([0-9a-f]{{64}})\.({'|'.join(RECORDS)})")


def remove_blob(layout: Layout, digest: str, *, before: float) -> bool:
    """Removes a blob that nobody renewed since `before` (seconds since 1970); whether it did.

    That its name is gone is durable after `fs.sync_folder`, which is the caller's.
    """
    blob, aside = layout.blob(digest), layout.trash / digest
    if not _older(blob, before) or not fs.take_away(blob, aside):
        return False
    if not _older(aside, before):
        fs.put_back(aside, blob)
        return False
    fs.remove_tree(aside)
    return True


def remove_manifest(layout: Layout, digest: str, *, before: float) -> bool:
    """Removes a manifest that nobody renewed since `before`, with all that is recorded about it; whether it did.

    All of it or nothing, and durably: a candidate that is made again must not find half of its evidence.
    """
    manifest, aside = layout.manifest(digest), layout.trash / f"{digest}.json"
    if not _older(manifest, before) or not fs.take_away(manifest, aside):
        return False
    fs.sync_folder(layout.trash)
    fs.sync_folder(manifest.parent)
    if not _older(aside, before):
        fs.put_back(aside, manifest)
        return False
    return remove_records(layout, digest)


def remove_records(layout: Layout, digest: str) -> bool:
    """Removes what is recorded about a manifest that is not there, or that `remove_manifest` has taken away."""
    aside = layout.trash / f"{digest}.json"
    for kind, folder in layout.records(digest).items():
        if fs.take_away(folder, layout.trash / f"{digest}.{kind}"):
            fs.sync_folder(layout.trash)
            fs.sync_folder(folder.parent)
    fs.take_away(aside, doomed := fs.beside(aside))  # from here on it is gone
    fs.sync_folder(layout.trash)
    fs.remove_tree(doomed)
    _settle_records(layout, digest)
    return not os.path.lexists(layout.manifest(digest))


def recover(store: Objects) -> None:
    """Puts back what a killed gc had taken away, and removes what it had doomed. A gc that is at work is let alone."""
    layout = store.layout
    if not taken(layout):
        return
    try:
        with store.locked("gc", wait=0, busy=BUSY):
            recover_all(layout)
    except BusyError:
        return
    except OSError as error:
        output.hint(f"an interrupted gc cannot be finished: {error.strerror}: {error.filename2 or error.filename}")


def recover_all(layout: Layout) -> None:
    """As `recover`, for whoever is gc."""
    for name in taken(layout):
        path = layout.trash / name
        if match := _MANIFEST.fullmatch(name):
            for kind, folder in layout.records(match[1]).items():
                fs.put_back(layout.trash / f"{match[1]}.{kind}", folder)
            fs.put_back(path, layout.manifest(match[1]))
        elif match := _RECORDS.fullmatch(name):
            _settle_records(layout, match[1])
        elif _BLOB.fullmatch(name):
            fs.put_back(path, layout.blob(name))
        elif name.startswith(fs.TEMPORARY):
            fs.remove_tree(path)


def taken(layout: Layout) -> list[str]:
    """What lies in the trash, manifests before the records of others."""
    try:
        names = [path.name for path in layout.trash.iterdir()]
    except FileNotFoundError:
        return []
    return sorted((name for name in names if name != PENDING), key=lambda name: (not name.endswith(".json"), name))


def _settle_records(layout: Layout, digest: str) -> None:
    """Removes the records of a manifest that is gone. If it is there again, so must they be."""
    for kind, folder in layout.records(digest).items():
        aside = layout.trash / f"{digest}.{kind}"
        if os.path.lexists(layout.manifest(digest)):
            fs.put_back(aside, folder)
        elif fs.take_away(aside, doomed := fs.beside(aside)):
            fs.remove_tree(doomed)


def _older(path: Path, before: float) -> bool:
    try:
        return os.lstat(path).st_mtime < before
    except FileNotFoundError:
        return False
