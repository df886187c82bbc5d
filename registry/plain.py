"""Records as the JSON that they are, without their classes, so that `registry ls` is instant: to import the classes
takes longer than to read five hundred candidates.

What is read has the digest that its name states, so it is what was checked when it was written. Whether it has the
shape of its record is not looked at here; `registry verify` looks.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from gates import canonical
from gates.errors import IntegrityError
from registry import fs
from registry.layout import Layout, is_name, numbered

_MANIFEST_LINK = re.compile(r"\.\./\.\./manifests/([0-9a-f]{64})\.json")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_NUMBERED = re.compile(r"(\d{8})\.json")


def content(path: Path, digest: str, what: str) -> bytes:
    """The bytes of a file that is named by their digest.

    Raises:
        IntegrityError: it is missing, or holds something else.
    """
    data = fs.read(path, f"{what} {digest}")
    if canonical.digest(data) != digest:
        raise IntegrityError(
            f"the {what} is damaged: its SHA-256 is {canonical.digest(data)}, expected {digest}",
            where=str(path),
            remedy=fs.RESTORE,
        )
    return data


def manifest(layout: Layout, digest: str) -> dict[str, Any]:
    """
    Raises:
        IntegrityError: it is missing, or holds something else.
        ValueError: it is not JSON.
    """
    found: dict[str, Any] = json.loads(content(layout.manifest(digest), digest, "manifest"))
    return found


def linked_manifest(folder: Path) -> str:
    """The digest that the `manifest` link in a candidate's folder leads to; the link is read, not followed.

    Raises:
        IntegrityError: there is no such link.
    """
    link = folder / "manifest"
    try:
        match = _MANIFEST_LINK.fullmatch(str(link.readlink()))
    except OSError:
        match = None
    if match is None:
        raise IntegrityError(
            "the candidate has no link to its manifest", where=str(link), remedy="make it again with --replace"
        )
    return match[1]


def records(folder: Path, candidate: str) -> dict[str, dict[str, Any]]:
    """The records of one kind about a candidate, by digest, sorted.

    Raises:
        IntegrityError: one is damaged, or about another candidate.
        ValueError: one is not JSON.
    """
    found = {}
    for digest in digests(folder):
        path = folder / f"{digest}.json"
        record = json.loads(content(path, digest, "record"))
        if record["candidate"] != candidate:
            raise IntegrityError("this record is about another candidate", where=str(path))
        found[digest] = record
    return found


def names(layout: Layout) -> list[str]:
    """The candidates' names, sorted."""
    return [name for name in fs.entries(layout.candidates) if is_name(name)]


def attachments(layout: Layout, candidate: str) -> dict[str, str]:
    """The digests of the files beside a candidate's model, by name, as their links state them; what is no link to a
    blob is left out (`registry verify` names it).
    """
    folder = layout.candidate(candidate) / "attachments"
    links = {Path(base, name) for base, folders, files in fs.walk(folder) for name in (*folders, *files)}
    stated = {path.relative_to(folder).as_posix(): path.readlink().name for path in links if path.is_symlink()}
    return {name: digest for name, digest in sorted(stated.items()) if _DIGEST.fullmatch(digest)}


def digests(folder: Path) -> list[str]:
    """The digests of the records in a folder, by their names, sorted."""
    return [name.removesuffix(".json") for name in fs.entries(folder)]


def standing(layout: Layout, candidate: str) -> set[str]:
    """The digests of the evidence on a candidate that counts: what is not retracted."""
    return set(digests(layout.evidence(candidate))) - set(digests(layout.retractions(candidate)))


def numbers(folder: Path) -> list[int]:
    """The numbers of the numbered records in `folder`, ascending; other names are passed over."""
    found = (_NUMBERED.fullmatch(name) for name in fs.entries(folder))
    return [int(match[1]) for match in found if match]


def generation(layout: Layout, channel: str, number: int) -> tuple[dict[str, Any], str]:
    """A generation and its digest, which its channel's log entry states.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not JSON.
    """
    data = fs.contents(layout.generations(channel) / numbered(number))
    return json.loads(data), canonical.digest(data)


def logged(layout: Layout, number: int, event: str) -> dict[str, Any] | None:
    """A log entry, if it is one of `event`.

    Raises:
        OSError: it cannot be read.
        ValueError: it is not what its seal says, or has none.
    """
    data = fs.contents(layout.log / numbered(number))
    if b'"event":' + canonical.dumps(event) not in data:  # reading a record takes longer than looking for its event
        return None
    entry: dict[str, Any] = json.loads(data)
    seal = entry.pop("seal", None)
    if canonical.digest(canonical.dumps(entry)) != seal:
        raise ValueError("this log entry was changed")
    return entry if entry["event"] == event else None
