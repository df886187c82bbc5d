"""A folder that somebody wants to add: which of its files are the model's, and whether they may be taken."""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from gates.errors import IntegrityError, UsageError
from registry import commits, fs, output
from registry.contents import forbidden

KINDS = (".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken")
"""What a model's files are called. Whatever else lies in the source stays there."""

RECORDS = ".sluice"
"""The folder of the records that may travel with a model (`registry.carried.records`)."""

_CACHED_REPOSITORY = re.compile(r"models--(?P<owner>[^/]+?)--(?P<name>[^/]+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Folder:
    """The model's files in a folder, by name; a path may be a link to the file. `origin` is what a candidate's settings
    say about where they came from; `stated` are digests that the origin gave them; `records` are the files that
    travel with the model, if there are any."""

    root: Path
    files: dict[str, Path]
    origin: dict[str, str] = field(default_factory=dict)
    stated: dict[str, str] = field(default_factory=dict)
    records: dict[str, Path] = field(default_factory=dict)

    @property
    def size(self) -> int:
        return sum(path.stat().st_size for path in self.files.values())


def folder(source: Path) -> Folder:
    """The model in the folder `source`. Nothing is read but the beginnings of its files.

    Links that stay inside are followed, and in a snapshot of the Hub's cache (models--owner--name/snapshots/commit)
    those into the cache's blobs.

    Raises:
        UsageError: there is no such folder, no model in it, or something that is neither file nor folder.
        IntegrityError: a pickle or an archive lies in it.
    """
    if not source.is_dir():
        raise UsageError("there is no such folder", where=str(source), remedy="name a checkpoint's folder, or hf://…")
    root = source.resolve()
    cache = _cache_of(root)
    taken, left, stated = {}, [], {}
    for path in _entries(root):
        name = _checked(path, root, cache)
        if path.suffix not in KINDS:
            left.append(name)
            continue
        taken[name] = path
        if cache and path.is_symlink() and _SHA256.fullmatch(blob := path.readlink().name):
            stated[name] = blob
    check_names(taken, where=str(source))
    if left:
        output.hint(f"left where they are, for they are no part of a model: {', '.join(left)}")
    records = {_checked(path, root, cache): path for path in _entries(root / RECORDS)}
    return Folder(root, dict(sorted(taken.items())), _origin(root) if cache else {}, stated, records)


def named(given: Folder, names: Iterable[str]) -> Folder:
    """The same folder, with exactly the files of these names as the model.

    Raises:
        IntegrityError: one is not there, or is none that may be taken.
    """
    names = list(names)
    commits.refuse_unsafe(names, where=given.root)
    cache = _cache_of(given.root)
    for name in names:
        if not (given.root / name).is_file():
            raise IntegrityError("the model's records name this file, and it is missing", where=str(given.root / name))
        _checked(given.root / name, given.root, cache)
    files = {name: given.root / name for name in names}
    return replace(given, files=files, stated={name: each for name, each in given.stated.items() if name in files})


def check_names(names: Iterable[str], *, where: str) -> None:
    """
    Raises:
        UsageError: a name cannot be kept, or there is no config.json among them.
    """
    names = list(names)
    commits.refuse_unsafe(names, where=where)
    if "config.json" not in names:
        raise UsageError(
            "there is no config.json, so this is no checkpoint",
            where=where,
            remedy="give the folder that holds it",
        )


def _checked(path: Path, root: Path, cache: Path | None) -> str:
    """The name of an entry below `root`, once it is known that it may be taken."""
    _refuse(path, _followed(path, root, cache))
    return path.relative_to(root).as_posix()


def _entries(root: Path) -> Iterable[Path]:
    """Everything below `root` that is no folder; what is hidden stays hidden."""
    for base, folders, names in fs.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        links = [name for name in folders if Path(base, name).is_symlink()]
        yield from (Path(base, name) for name in (*links, *sorted(names)) if not name.startswith("."))


def _followed(path: Path, root: Path, cache: Path | None) -> Path:
    try:
        actual = path.resolve(strict=True)
    except (OSError, RuntimeError):  # a loop of links is a RuntimeError before Python 3.13
        raise UsageError("a link that leads nowhere", where=str(path), remedy="remove it from the source") from None
    if not actual.is_relative_to(root) and not (cache and _in_cache(path, cache)):
        raise UsageError(
            "a link that leaves the source folder",
            where=str(path),
            remedy=f"copy what the links lead to, then add the copy: cp -rL {shlex.quote(str(root))} COPY",
        )
    return actual


def _refuse(path: Path, actual: Path) -> None:
    if not stat.S_ISREG(actual.stat().st_mode):
        what = "a link to a folder" if actual.is_dir() else "neither a file nor a folder"
        raise UsageError(what, where=str(path), remedy="remove it from the source")
    kind = forbidden(actual)
    if kind:
        raise IntegrityError(f"this is {kind}", where=str(path), remedy="add a folder with safetensors only")


def _cache_of(root: Path) -> Path | None:
    """The folder of the repository in the Hub's cache, if `root` is one of its snapshots."""
    repository = root.parent.parent
    is_snapshot = root.parent.name == "snapshots" and _COMMIT.fullmatch(root.name)
    if not is_snapshot or not _CACHED_REPOSITORY.fullmatch(repository.name) or not (repository / "blobs").is_dir():
        return None
    return repository


def _in_cache(link: Path, repository: Path) -> bool:
    """Whether a snapshot's link leads to a blob of its repository, or on from there to one that repositories share."""
    blob = Path(os.path.normpath(link.parent / link.readlink())) if link.is_symlink() else link
    if blob.parent != repository / "blobs":
        return False
    if not blob.is_symlink():
        return True
    shared = Path(os.path.normpath(blob.parent / blob.readlink()))
    return shared.parent.parent == repository.parent / "blobs" and not shared.is_symlink()


def _origin(root: Path) -> dict[str, str]:
    match = _CACHED_REPOSITORY.fullmatch(root.parent.parent.name)
    assert match is not None
    return {"source": f"hf://{match['owner']}/{match['name']}", "revision": root.name}
