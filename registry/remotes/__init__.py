"""Models that lie elsewhere, on the Hub (`hub`) or in an OCI registry (`oci`), fetched into a step's folder.

Of each shard the header is fetched and examined before any shard is. What the place says of a file's SHA-256 is held
against its bytes; a blob that is in the registry already is not fetched.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from gates import canonical
from gates.errors import IntegrityError
from registry import bulk, fs, output, taking
from registry.checkpoint import INDEX, SINGLE, inspect
from registry.manifests import File
from registry.parallel import each_file
from registry.sources import KINDS, check_names
from registry.tensors import LARGEST_HEADER

DOWNLOADS = 4
"""Files fetched at once."""

_SHARD = re.compile(r"model-[0-9]+-of-[0-9]+\.safetensors")

_FIRST = 256 << 10
"""Bytes of a shard that are asked for first: most headers end there."""


class Place(Protocol):
    """How the files of one version of a model come from where they lie."""

    @property
    def called(self) -> str:
        """What people call the place, such as "the Hub"."""

    def asked(self) -> AbstractContextManager[None]:
        """Errors of the place and of its client, as ours, while the block runs."""

    def beginning(self, file: str, count: int) -> bytes:
        """The first `count` bytes of a file."""

    def download(self, file: str, folder: Path, advance: bulk.Advance) -> tuple[Path, File]:
        """The file, somewhere in `folder` of the registry, and what it is."""


@dataclass(frozen=True, slots=True)
class Remote:
    """One version of a model: the bytes of each of its files, and the SHA-256 of those that the place states one for.

    `address` is what was asked for, `source` the same without a version, `revision` what it named (a commit of the Hub,
    the digest of an OCI manifest). `there` says the same of every file that lies there, the model's or not.
    """

    address: str
    source: str
    revision: str
    there: dict[str, tuple[int, str | None]]
    place: Place
    names: tuple[str, ...]

    @property
    def origin(self) -> dict[str, str]:
        """What a candidate's settings say about where it came from."""
        return {"source": self.source, "revision": self.revision}

    @property
    def sizes(self) -> dict[str, int]:
        return {name: self.there[name][0] for name in self.names}

    @property
    def digests(self) -> dict[str, str]:
        return {name: digest for name in self.names if (digest := self.there[name][1])}

    def only(self, names: Iterable[str]) -> Remote:
        """The same version, with exactly the files of these names as the model.

        Raises:
            IntegrityError: one is not there.
        """
        names = tuple(sorted(names))
        if missing := [name for name in names if name not in self.there]:
            where = f"{self.address}, {missing[0]}"
            raise IntegrityError("the model's records name a file that is missing", where=where)
        return replace(self, names=names)

    def known(self, files: Mapping[str, File]) -> dict[str, File]:
        """What is known of the model's files; of one whose digest is not stated, it is taken from `files`."""
        unknown = {name: files[name].digest for name in self.names if name in files} | self.digests
        return {name: File(digest=unknown.get(name, "0" * 64), size=size) for name, size in self.sizes.items()}

    def can_be(self, files: Mapping[str, File]) -> bool:
        """Whether the model can consist of `files`, as far as is known before they are fetched."""
        return self.known(files) == files


def remote(address: str, source: str, revision: str, there: dict[str, tuple[int, str | None]], place: Place) -> Remote:
    """The model among the files that are there; all others stay where they are.

    Raises:
        UsageError: there is no model among them, or one's name cannot be kept.
    """
    found = {name for name in there if Path(name).suffix in KINDS and _visible(name)}
    names = tuple(sorted(found - _others_weights(found, there, place)))
    check_names(names, where=address)
    left = sorted(name for name in there if name not in names and _visible(name))
    if left:
        output.hint(f"not taken from {place.called}, for they are no part of a model: {', '.join(left)}")
    return Remote(address, source, revision, there, place, names)


def _others_weights(found: set[str], there: Mapping[str, tuple[int, str | None]], place: Place) -> set[str]:
    """Weights that no loader takes for this model's: the same once more in another form (consolidated.safetensors,
    original/…), adapters, checkpoints on the way. A folder's owner can remove them, and is asked to; here it is done.
    """
    shards = {name for name in found if name.endswith(".safetensors")}
    if INDEX not in found:
        return shards - {SINGLE} if SINGLE in found else set()
    odd = {name for name in shards if not _SHARD.fullmatch(name)}
    if not odd:
        return odd
    with place.asked():
        data = place.beginning(INDEX, there[INDEX][0])
    try:
        return odd - set(canonical.loads(data, where=INDEX)["weight_map"].values())
    except (IntegrityError, KeyError, TypeError, AttributeError):
        return set()  # which is told when the files are examined


def fetch(remote: Remote, work: taking.Work, what: str) -> dict[str, File]:
    """Fetches the model into the work's folder; all files are durable there at the end.

    What was fetched by an attempt that ended is not fetched again.

    Raises:
        UsageError: the place does not answer, or refuses; or the disk has no room (no shard is fetched then).
        IntegrityError: it is not a whole checkpoint (no shard is fetched then), or a file is not what the place says.
    """
    done, missing = _begun(remote, work)
    shards = {name: size for name, size in missing.items() if name.endswith(".safetensors")}
    _check_room(remote, work, missing)
    with remote.place.asked():
        small = {name: size for name, size in missing.items() if name not in shards}
        fetched = each_file(
            f"{what}: look",
            small,
            lambda name, advance: _fetched(remote, work, name, advance),
            workers=DOWNLOADS,
            small=0,
        )
        _examine(remote, work, shards)
        fetched |= each_file(
            what,
            shards,
            lambda name, advance: _fetched(remote, work, name, advance),
            workers=DOWNLOADS,
            small=0,
            finish=True,
        )
    files = done | fetched
    return {name: files[name] for name in remote.names}


def fetch_files(remote: Remote, work: taking.Work, what: str) -> dict[str, File]:
    """As `fetch`, for files that are no model."""
    done, missing = _begun(remote, work)
    _check_room(remote, work, missing)
    with remote.place.asked():
        fetched = each_file(
            what, missing, lambda name, advance: _fetched(remote, work, name, advance), workers=DOWNLOADS, finish=True
        )
    return done | fetched


def _begun(remote: Remote, work: taking.Work) -> tuple[dict[str, File], dict[str, int]]:
    """What an earlier attempt fetched, and the bytes of what is missing."""
    fs.make_folders(work.model)
    fs.remove_tree(work.folder / "fetched")
    done = {name: file for name in remote.names if (file := work.done(name, _source(remote, name)))}
    return done, {name: size for name, size in remote.sizes.items() if name not in done}


def _check_room(remote: Remote, work: taking.Work, missing: Mapping[str, int]) -> None:
    """Room for what is to be fetched is set aside, and given back at once: who fetches makes the files."""
    new = {name: size for name, size in missing.items() if _blob_of(remote, work, name) is None}
    for name in missing:
        fs.make_folders((work.model / name).parent)
        fs.remove_tree(work.model / name)
    taking.reserve(work, new)
    for name in new:
        fs.remove_tree(work.model / name)


def _examine(remote: Remote, work: taking.Work, shards: Mapping[str, int]) -> None:
    """Judges the checkpoint by its headers, in files as long as the shards that hold nothing but these."""
    looks = work.folder / "looks"
    fs.remove_tree(looks)

    def look(name: str, advance: bulk.Advance) -> Path:
        blob = _blob_of(remote, work, name)
        if blob is not None:
            return blob
        target = looks / name
        fs.make_folders(target.parent)
        bulk.hollow(target, _header(remote, name), shards[name])
        advance(1)
        return target

    headers = each_file("headers", dict.fromkeys(shards, 1), look, workers=DOWNLOADS, small=0, finish=True)
    paths = {name: headers.get(name, work.model / name) for name in remote.names}
    try:
        inspect(work.model, paths)
    except IntegrityError as error:
        if error.where:
            error.where = error.where.replace(str(work.model), remote.address, 1)
        raise
    fs.remove_tree(looks)


def _fetched(remote: Remote, work: taking.Work, name: str, advance: bulk.Advance) -> File:
    """The file, durable under its name in the work's model."""
    target, (stated_size, stated) = work.model / name, remote.there[name]
    blob = _blob_of(remote, work, name)
    if blob is not None:
        digest, size = bulk.hash_file(blob, advance)
        if digest == stated:
            fs.link_work(blob, target)
            return _noted(remote, work, name, File(digest=digest, size=size))
        advance(-size)  # a damaged blob, which the commit replaces
    fetched, file = remote.place.download(name, work.folder / "fetched", advance)
    expected = stated or file.digest
    if file.digest != expected or file.size != stated_size:
        fs.remove_tree(fetched)
        raise IntegrityError(
            f"the file is not what {remote.place.called} says: {file.size} bytes with the SHA-256 {file.digest}, "
            f"expected {stated_size} bytes with {expected}",
            where=f"{remote.address}, {name}",
            remedy="run this again",
        )
    fs.rename_file(fetched, target)
    return _noted(remote, work, name, file)


def _noted(remote: Remote, work: taking.Work, name: str, file: File) -> File:
    work.note(name, file, _source(remote, name))
    return file


def _source(remote: Remote, name: str) -> str:
    return f"{remote.source}@{remote.revision}/{name}"


def _blob_of(remote: Remote, work: taking.Work, name: str) -> Path | None:
    """The blob with the digest that the place states, if the registry has one of that size."""
    stated_size, stated = remote.there[name]
    blob = work.store.layout.blob(stated) if stated else None
    return blob if blob and blob.is_file() and blob.stat().st_size == stated_size else None


def _header(remote: Remote, name: str) -> bytes:
    """The beginning of a shard, as long as its header."""
    whole = remote.there[name][0]
    begin = remote.place.beginning(name, min(_FIRST, whole))
    length = 8 + int.from_bytes(begin[:8], "little")
    if len(begin) < length <= min(8 + LARGEST_HEADER, whole):
        begin = remote.place.beginning(name, length)
    return begin[:length]


def _visible(name: str) -> bool:
    return not any(part.startswith(".") for part in name.split("/"))
