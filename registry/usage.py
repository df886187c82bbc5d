"""What lies on the disk: how much each candidate holds alone and how much it shares, and what nothing needs."""

from __future__ import annotations

import os
import shutil
import stat
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gates.errors import IntegrityError, UsageError
from registry import garbage, output, reachable
from registry.layout import RECORDS
from registry.overview import columns

if TYPE_CHECKING:
    from registry.store import Store


@dataclass(frozen=True, slots=True)
class Share:
    """Bytes of a candidate's model and attachments: those that no other candidate has, and the others."""

    name: str
    alone: int
    shared: int


@dataclass(frozen=True, slots=True)
class Usage:
    """Everything below a registry's root, in bytes. A blob that two candidates share counts once in the total.

    `records` are manifests, what is recorded about candidates, generations and the log; `unfinished` is work in
    progress and what is left of it; `not_needed` is what gc could remove, grace aside (None: damage hides it).
    """

    candidates: tuple[Share, ...]
    blobs: int
    records: int
    unfinished: int
    not_needed: int | None
    total: int
    free: int


def usage(store: Store) -> Usage:
    """Looks at every file once."""
    root = store.layout.root
    sizes = {path.name: path.lstat().st_size for path in garbage.blobs(store)}
    holds = {name: reachable.linked(store.layout.candidate(name)) & sizes.keys() for name in store.names()}
    held = Counter(digest for digests in holds.values() for digest in digests)
    alone = {name: sum(sizes[digest] for digest in digests if held[digest] == 1) for name, digests in holds.items()}
    shares = tuple(
        Share(name, alone[name], sum(sizes[digest] for digest in digests) - alone[name])
        for name, digests in holds.items()
    )
    kinds = ("manifests", *RECORDS, "generations", "log")
    return Usage(
        candidates=shares,
        blobs=sum(sizes.values()),
        records=sum(garbage.size_of(root / kind) for kind in kinds),
        unfinished=sum(garbage.size_of(path) for path in garbage.unfinished(store)),
        not_needed=_not_needed(store),
        total=_total(root),
        free=shutil.disk_usage(root).free,
    )


def render(found: Usage) -> str:
    """A table of the candidates, and the sums."""
    rows = [("candidate", "alone", "shared")]
    rows += [(share.name, output.size(share.alone), output.size(share.shared)) for share in found.candidates]
    sums = [
        ("models and rows", found.blobs),
        ("records", found.records),
        ("work in progress", found.unfinished),
        ("not needed", found.not_needed),
        ("total", found.total),
        ("free", found.free),
    ]
    lines = [(what, "unknown" if size is None else output.size(size)) for what, size in sums]
    return "\n".join([*columns(rows), "", *columns(lines)])


def _not_needed(store: Store) -> int | None:
    try:
        return garbage.find(store, garbage.Terms()).size
    except (IntegrityError, UsageError) as error:
        output.hint(f"what is not needed cannot be told: {error}")
        return None


def _total(root: Path) -> int:
    """Bytes of every file, however many names it has."""
    seen, total = set(), 0
    for base, _, names in os.walk(root):
        for name in names:
            try:
                state = Path(base, name).lstat()
            except FileNotFoundError:
                continue
            if stat.S_ISREG(state.st_mode) and state.st_ino not in seen:
                seen.add(state.st_ino)
                total += state.st_size
    return total
