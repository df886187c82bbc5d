"""Is a candidate still what its manifest says? Everything that is wrong is found at once, and nothing is changed.

Structural: links, names, sizes, headers, config.json and the scales of block FP8; moments. Full: every byte hashed,
every number looked at.
`verify_records` looks at what is written down about a candidate: its ancestry, its evidence, its verdicts.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

from gates.canonical import digest as digest_of
from gates.errors import IntegrityError, SluiceError
from gates.records import Evidence, Verdict
from registry import bulk, fs, lineage
from registry.bulk import Advance
from registry.checkpoint import examine, headers
from registry.checkpoint.facts import FP8_BLOCK, Problem, is_scale
from registry.checkpoint.values import impossible_scales, possible
from registry.layout import Layout
from registry.manifests import File, Manifest
from registry.objects import read_record
from registry.parallel import each_file
from registry.store import Candidate, Store
from registry.tensors import Tensor, read_header

__all__ = ["Problem", "demand_whole", "verify", "verify_records"]

AnyResult = TypeVar("AnyResult")

_DIGEST = re.compile(r"[0-9a-f]{64}")


def verify(store: Store, name: str, *, full: bool) -> list[Problem]:
    """What is wrong with the candidate or channel `name`; nothing, if the list is empty.

    A name that is given to another candidate meanwhile is looked at again: what was half the one and half the other is
    no damage.

    Args:
        full: hash every byte and look at every number too, with progress.

    Raises:
        UsageError: nothing is called so.
    """
    while True:
        before = _manifest_link(store.layout, name)
        try:
            problems = _verify_once(store, name, full=full)
        except OSError as error:  # a folder that cannot be listed
            where = _relative(store.layout, Path(error.filename)) if error.filename else name
            problems = [Problem(where, f"it cannot be read: {error.strerror}")]
        if not problems or _manifest_link(store.layout, name) == before:
            return problems


def _manifest_link(layout: Layout, name: str) -> Path | None:
    """Where the manifest's link of the candidate or channel `name` leads."""
    folder = layout.candidate(name)
    try:
        return (
            (folder if folder.is_dir() else Path(os.path.realpath(layout.channel(name))).parent) / "manifest"
        ).readlink()
    except OSError:
        return None


def _verify_once(store: Store, name: str, *, full: bool) -> list[Problem]:
    layout = store.layout
    candidate, problems = _candidate(store, name)
    if candidate is None:
        return problems
    manifest, found = _manifest(layout, candidate)
    problems += found
    files: dict[str, File] = manifest.files if manifest else {}
    if manifest:
        problems += _links(layout, candidate, files)
    problems += _structure(layout, candidate, manifest)
    attached, found = _attachments(layout, candidate)
    problems += found
    if full:
        model, attachments = layout.model(candidate), layout.candidate(candidate) / "attachments"
        digests = {model / name: file.digest for name, file in files.items()}
        digests |= {attachments / name: digest for name, digest in attached.items()}
        problems += _bytes(layout, candidate, digests)
    elif not problems and manifest and manifest.shape.quantization == FP8_BLOCK:
        problems += _scales(layout, candidate)
    return problems


def demand_whole(store: Store, candidate: Candidate, *, full: bool, harm: str, remedy: str) -> None:
    """
    Args:
        full: as `verify`.
        harm: what comes of the damage, for the message: " and cannot be served".

    Raises:
        IntegrityError: the candidate is damaged; everything that is wrong is listed.
    """
    problems = verify(store, candidate.name, full=full)
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems)
        raise IntegrityError(f"{candidate.name} is damaged{harm}:{listed}", where=str(candidate.folder), remedy=remedy)


def verify_records(store: Store, name: str) -> list[Problem]:
    """What is wrong with what is written down about the candidate or channel `name`, as far as its manifest is sound.

    Raises:
        UsageError: nothing is called so.
    """
    try:
        digest = store.candidate(name).digest
    except IntegrityError:
        return []  # which `verify` reports
    layout = store.layout
    problems: list[Problem] = []

    def look(read: Callable[[], AnyResult]) -> AnyResult | None:
        try:
            return read()
        except IntegrityError as error:
            where = _relative(layout, Path(error.where)) if error.where else name
            problems.append(Problem(where, error.what))
            return None

    look(lambda: list(lineage.ancestry(store, digest)))
    blobs: set[str | None] = set()
    for path in _listed(layout.evidence(digest)):
        if evidence := look(partial(read_record, path, Evidence, digest)):
            blobs |= {evidence.rows, evidence.responses}
    for path in _listed(layout.verdicts(digest)):
        if verdict := look(partial(read_record, path, Verdict, digest)):
            blobs.add(verdict.policy)
    for blob in sorted(filter(None, blobs)):
        look(partial(store.read, blob))
    return problems


def _listed(folder: Path) -> list[Path]:
    return [folder / name for name in fs.entries(folder)]


def _candidate(store: Store, name: str) -> tuple[str | None, list[Problem]]:
    """The candidate's own name, be `name` that or a channel."""
    layout = store.layout
    channel = layout.channel(name)
    if layout.candidate(name).is_dir():
        return name, []
    if os.path.lexists(layout.candidate(name)):
        return None, [Problem(_relative(layout, layout.candidate(name)), "this is no folder", "a candidate's folder")]
    if channel.is_symlink():
        target = channel.readlink()
        candidate = target.parent.name
        where = _relative(layout, channel)
        if str(target) != f"../candidates/{candidate}/model":
            return None, [Problem(where, f"the channel leads to {target}", "../candidates/<name>/model")]
        if not layout.candidate(candidate).is_dir():
            return None, [Problem(where, f"the channel leads to {candidate}, which is not there")]
        return candidate, []
    return store.candidate(name).name, []


def _manifest(layout: Layout, candidate: str) -> tuple[Manifest | None, list[Problem]]:
    link = layout.candidate(candidate) / "manifest"
    where = _relative(layout, link)
    try:
        target = link.readlink()
    except OSError as error:
        return None, [Problem(where, f"there is no link to the manifest: {error.strerror}")]
    digest = target.stem
    if str(target) != f"../../manifests/{digest}.json":
        return None, [Problem(where, f"the link leads to {target}", "../../manifests/<digest>.json")]
    path = link.parent / target
    where = f"manifests/{target.name}"
    try:
        data = fs.contents(path)
        manifest = Manifest.from_bytes(data, where=where)
    except OSError as error:
        return None, [Problem(where, f"the manifest cannot be read: {error.strerror}")]
    except IntegrityError as error:
        return None, [Problem(where, error.what)]
    if digest_of(data) != digest:
        return manifest, [Problem(where, f"the manifest is not what its name says: {digest_of(data)}", digest)]
    return manifest, []


def _links(layout: Layout, candidate: str, files: dict[str, File]) -> Iterator[Problem]:
    """The model's folder holds a link for each file of the manifest, to its blob, and nothing else."""
    folder = layout.model(candidate)
    for name in sorted(_names(folder) | files.keys()):
        path = folder / name
        where = _relative(layout, path)
        if name not in files:
            yield Problem(where, "the manifest does not name this file")
            continue
        blob = layout.blob(files[name].digest)
        if not path.is_symlink():
            there = "it is no link" if path.exists() else "it is missing"
            yield Problem(where, there, f"a link to {_relative(layout, blob)}")
        elif not _leads_to(path, blob):
            yield Problem(where, f"the link leads to {path.readlink()}", _relative(layout, blob))
        elif not blob.is_file() or blob.is_symlink():
            yield Problem(where, f"its blob {_relative(layout, blob)} is missing, or no regular file")
        elif blob.stat().st_size != files[name].size:
            yield Problem(where, f"{blob.stat().st_size} bytes", f"{files[name].size} bytes")


def _attachments(layout: Layout, candidate: str) -> tuple[dict[str, str], list[Problem]]:
    """The digests of the candidate's attachments by name, as their links state them, and links that are wrong."""
    folder = layout.candidate(candidate) / "attachments"
    digests, problems = {}, []
    for name in sorted(_names(folder)):
        path = folder / name
        digest = path.readlink().name if path.is_symlink() else ""
        if not _DIGEST.fullmatch(digest) or not _leads_to(path, layout.blob(digest)):
            problems.append(Problem(_relative(layout, path), "it is no link to a blob"))
        elif not layout.blob(digest).is_file():
            problems.append(
                Problem(_relative(layout, path), f"its blob {_relative(layout, layout.blob(digest))} is missing")
            )
        else:
            digests[name] = digest
    return digests, problems


def _leads_to(link: Path, blob: Path) -> bool:
    """Whether the link itself names the blob; no other link is followed on the way."""
    return os.path.normpath(link.parent / link.readlink()) == os.path.normpath(blob)


def _names(folder: Path) -> set[str]:
    """Every file and link below `folder`, however deep."""
    return {
        Path(base, name).relative_to(folder).as_posix()
        for base, folders, names in fs.walk(folder)
        for name in [*names, *(each for each in folders if Path(base, each).is_symlink())]
    }


def _structure(layout: Layout, candidate: str, manifest: Manifest | None) -> list[Problem]:
    folder = layout.model(candidate)
    prefix = _relative(layout, folder)
    try:
        shape, found = examine(folder)
    except SluiceError as error:
        return [Problem(prefix, error.what)]
    problems = [Problem(f"{prefix}/{problem.file}", problem.what, problem.expected) for problem in found]
    if manifest and shape and not problems and shape != manifest.shape:
        problems.append(Problem(prefix, f"the model is {shape}", f"{manifest.shape}, as the manifest says"))
    return problems


def _scales(layout: Layout, candidate: str) -> Iterator[Problem]:
    """An engine computes with a scale that is no number, and says nothing of it."""
    tensors = headers(layout.model(candidate))
    for name in impossible_scales(tensors):
        yield _impossible(_relative(layout, tensors[name].file), name)


def _bytes(layout: Layout, candidate: str, digests: dict[Path, str]) -> list[Problem]:
    """Every byte against its digest, and every number, files side by side."""
    blobs = {_relative(layout, path): (layout.blob(digest), digest) for path, digest in sorted(digests.items())}
    sizes = {where: blob.stat().st_size for where, (blob, _) in blobs.items() if blob.is_file()}

    def check(where: str, advance: Advance) -> list[Problem]:
        return list(_file(where, *blobs[where], advance))

    found = each_file(f"verify {candidate}", sizes, check)
    return [problem for where in sizes for problem in found[where]]


def _file(where: str, blob: Path, digest: str, advance: Advance) -> Iterator[Problem]:
    tensors: dict[str, Tensor] = {}
    if where.endswith(".safetensors"):
        try:
            tensors = read_header(blob)
        except IntegrityError:
            tensors = {}  # which the structural part reports
    try:
        actual, bad = _read(blob, tensors, advance)
    except OSError as error:
        yield Problem(where, f"it cannot be read: {error.strerror}")
        return
    if actual != digest:
        yield Problem(where, f"its bytes have the digest {actual}", digest)
    yield from (_impossible(where, tensor) for tensor in bad)


def _impossible(where: str, tensor: str) -> Problem:
    kind = "finite numbers above 0" if is_scale(tensor) else "finite numbers"
    return Problem(where, f"tensor {tensor}: NaN, infinity or another impossible value", kind)


def _read(path: Path, tensors: dict[str, Tensor], advance: Advance) -> tuple[str, list[str]]:
    """The file's SHA-256, and the tensors that hold a number which cannot be; in one reading."""
    sha, bad = hashlib.sha256(), []
    memory = memoryview(bytearray(bulk.CHUNK))  # the same each time, so that the system need not find new
    with path.open("rb") as file:

        def chunks(count: int) -> Iterator[memoryview]:
            """The next `count` bytes, as far as there are so many."""
            while count > 0 and (got := file.readinto(memory[: min(count, len(memory))])):
                sha.update(memory[:got])
                advance(got)
                count -= got
                yield memory[:got]

        position = 0
        for name, tensor in sorted(tensors.items(), key=lambda item: item[1].begin):
            for _ in chunks(tensor.begin - position):
                pass
            impossible = 0
            for chunk in chunks(tensor.end - tensor.begin):
                impossible += not possible(name, tensor.dtype, chunk)
            bad += [name] if impossible else []
            position = tensor.end
        while any(chunks(len(memory))):
            pass
    return sha.hexdigest(), bad


def _relative(layout: Layout, path: Path) -> str:
    return path.relative_to(layout.root).as_posix()
