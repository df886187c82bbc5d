"""What is sent with a candidate: the model, the base's licence, the records, the card."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from gates import canonical
from gates.errors import UsageError
from registry import lineage, output
from registry.carried import records
from registry.pushing import base as bases
from registry.pushing import card
from registry.pushing.eligibility import Approval
from registry.pushing.site import Stored
from registry.store import Candidate, Store

CARD = "README.md"

_LARGEST_BLOB = 16 << 20
"""Bytes. The Hub keeps nothing larger in git itself."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """For each file its content, or where in the registry it lies; and what the Hub must state of it."""

    contents: dict[str, bytes | Path]
    expected: dict[str, Stored]
    card: bytes


def pack(
    store: Store,
    candidate: Candidate,
    target: str,
    approval: Approval,
    *,
    with_records: bool,
    licence: str | None,
) -> Parcel:
    """What is sent to `target`.

    Args:
        target: as `registry add` takes it: hf://owner/name.
        with_records: whether lineage, evidence and the rows that they name travel too.
        licence: the base's, where its card does not state it.

    Raises:
        UsageError: the base's licence is not known, or its records are too large.
        IntegrityError: a record is missing or damaged.
    """
    chain = list(lineage.ancestry(store, candidate.digest))
    base = bases.of(chain, licence=licence)
    carried = records.gather(store, candidate) if with_records else None
    files = candidate.manifest.files
    contents: dict[str, bytes | Path] = {name: store.layout.blob(each.digest) for name, each in files.items()}
    contents |= {name: data for name, data in base.licences.items() if name not in files}
    if carried is not None:
        contents[records.FILE] = data = carried.to_bytes()
        if len(data) > records.LARGEST:
            most = output.size(records.LARGEST)
            raise UsageError(
                f"its records take {output.size(len(data))}, and nobody takes in more than {most}",
                where=target,
                remedy="--no-records leaves them out",
            )
        contents |= {name: store.layout.blob(digest) for name, digest in carried.files().items()}
        _say_what_travels(carried)
    text = card.card(store, candidate, target, chain, approval=approval, base=base, records=carried is not None)
    contents[CARD] = text
    known = {name: each.digest for name, each in files.items()} | (carried.files() if carried else {})
    return Parcel(contents, {name: _expected(each, known.get(name)) for name, each in sorted(contents.items())}, text)


def _say_what_travels(carried: records.Records) -> None:
    rows = {each.inputs.mix.rows for each in carried.manifests.values() if each.inputs.mix}
    calibration = sum(size for digest, size in carried.blobs.items() if digest in rows)
    answers = sum(carried.blobs.values()) - calibration
    output.hint(
        f"with its records go {output.size(calibration)} of calibration rows and {output.size(answers)} of results and "
        "raw responses; --no-records leaves them out"
    )


def _expected(content: bytes | Path, digest: str | None) -> Stored:
    """What the Hub must state of a file: its SHA-256 if it is kept as a large file, else its git blob id."""
    if isinstance(content, bytes):
        return Stored(len(content), canonical.digest(content), _blob_id(content))
    size = content.stat().st_size
    assert digest is not None, "a file of the registry has a digest"
    # the Hub keeps none as a git blob that is this large; reading a shard once more would be in vain
    return Stored(size, digest, _blob_id(content.read_bytes()) if size <= _LARGEST_BLOB else None)


def _blob_id(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
