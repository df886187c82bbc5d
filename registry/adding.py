"""Taking a checkpoint in from a folder: a copy, checked before it gets a name. The source is only read."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from gates import canonical
from gates.errors import IntegrityError, SluiceError, UsageError
from registry import commits, fs, output
from registry.contents import forbidden
from registry.layout import checked_name
from registry.manifests import File, Inputs, files_digest
from registry.progress import progress

if TYPE_CHECKING:
    from registry.store import Candidate, Store

KINDS = (".safetensors", ".json", ".jinja", ".txt", ".model", ".tiktoken")
"""What a model's files are called. Whatever else lies in the source stays there."""

CODE = "add-1"
"""Taking the same files in gives the same candidate, whichever release does it."""


def add(store: Store, name: str, source: Path, *, replace: bool = False) -> Candidate:
    """Copies the model in the folder `source` to the candidate `name`, hashing while it copies.

    Links that stay inside the source are followed. A candidate that has the same files already is found.

    Raises:
        UsageError: no such folder, an unknown family, a file that cannot be taken, or a name that is taken.
        IntegrityError: the source is not a whole checkpoint, or holds pickles or archives.
    """
    checked_name(name)
    files = _model_files(source)
    if os.path.lexists(store.layout.candidate(name)):
        found = _found(store, name, source, files, replace=replace)
        if found is not None:
            output.hint(f"{name} is there already, with the same files")
            return found
    work = canonical.digest(canonical.dumps({"add": name, "source": str(source.resolve())}))
    with store.step(work) as folder:
        try:
            model = folder / "model"
            fs.remove_tree(model)  # of an attempt that was killed
            copied = _copy(name, files, model)
            return commits.commit(store, name, _inputs(copied), model, replace=replace, known=copied)
        except SluiceError as error:
            if error.where:  # the copy is gone in a moment, and never was what anybody could mend
                error.where = error.where.replace(str(model), str(source), 1)
            raise
        finally:
            store.discard(work)


def _model_files(source: Path) -> dict[str, Path]:
    """The files to take, by their name in the model, each with the regular file that it is.

    Raises:
        UsageError: `source` is no folder, or there is something in it that is neither file nor folder.
        IntegrityError: a pickle or an archive lies in it.
    """
    if not source.is_dir():
        raise UsageError("there is no such folder", where=str(source), remedy="name a checkpoint's folder")
    root = source.resolve()
    taken, left = {}, []
    for base, folders, names in os.walk(root):
        folders[:] = sorted(folder for folder in folders if not folder.startswith("."))
        for entry in (*folders, *sorted(names)):
            path = Path(base, entry)
            if entry.startswith(".") or (entry in folders and not path.is_symlink()):
                continue
            actual = _followed(path, root)
            if not stat.S_ISREG(actual.stat().st_mode):
                what = "a link to a folder" if actual.is_dir() else "neither a file nor a folder"
                raise UsageError(what, where=str(path), remedy="remove it from the source")
            kind = forbidden(actual)
            if kind:
                raise IntegrityError(f"this is {kind}", where=str(path), remedy="add a folder with safetensors only")
            relative = path.relative_to(root).as_posix()
            if path.suffix in KINDS:
                taken[relative] = actual
            else:
                left.append(relative)
    commits.refuse_unsafe(list(taken), where=source)
    if "config.json" not in taken:
        raise UsageError(
            "there is no config.json, so this is no checkpoint",
            where=str(source),
            remedy="give the folder that holds it",
        )
    if left:
        output.hint(f"left where they are, for they are no part of a model: {', '.join(left)}")
    return dict(sorted(taken.items()))


def _followed(path: Path, root: Path) -> Path:
    try:
        actual = path.resolve(strict=True)
    except (OSError, RuntimeError):  # a loop of links is a RuntimeError before Python 3.13
        raise UsageError("a link that leads nowhere", where=str(path), remedy="remove it from the source") from None
    if not actual.is_relative_to(root):
        raise UsageError(
            "a link that leaves the source folder",
            where=str(path),
            remedy=f"copy what the links lead to, then add the copy: cp -rL {root} COPY",
        )
    return actual


def _found(store: Store, name: str, source: Path, files: dict[str, Path], *, replace: bool) -> Candidate | None:
    """The candidate of this name, if it holds the same files: they are hashed where they are."""
    try:
        there = store.candidate(name)
    except IntegrityError:
        if not replace:
            raise
        return None
    given = _hash(name, files)
    inputs = there.manifest.inputs
    asked = _inputs(given)
    if inputs.op == "add" and given != there.manifest.files and not replace:
        raise UsageError(
            f"{name} is there already, with other files:{_differences(there.manifest.files, given)}",
            where=str(source),
            remedy="choose another name, or put these in its place with --replace",
        )
    return store.made(name, asked, replace=replace)


def _hash(name: str, files: dict[str, Path]) -> dict[str, File]:
    with progress(f"compare {name}", total=_size(files), unit="B") as bar:
        hashed = {file: fs.hash_file(path, bar.advance) for file, path in files.items()}
    return {file: File(digest=digest, size=size) for file, (digest, size) in hashed.items()}


def _copy(name: str, files: dict[str, Path], model: Path) -> dict[str, File]:
    copied = {}
    fs.make_folders(model)
    with progress(f"add {name}", total=_size(files), unit="B") as bar:
        for file, path in files.items():
            fs.make_folders((model / file).parent)
            digest, size = fs.copy_in(path, model / file, bar.advance)
            copied[file] = File(digest=digest, size=size)
    return copied


def _inputs(files: dict[str, File]) -> Inputs:
    return Inputs(op="add", parent=None, settings={"files": files_digest(files)}, code=CODE)


def _differences(there: dict[str, File], given: dict[str, File]) -> str:
    def state(file: File | None) -> str:
        return f"{file.size} bytes, {file.digest[:12]}" if file else "missing"

    return "".join(
        f"\n  {name}: {state(there.get(name))} / {state(given.get(name))}"
        for name in sorted(there.keys() | given.keys())
        if there.get(name) != given.get(name)
    )


def _size(files: dict[str, Path]) -> int:
    return sum(path.stat().st_size for path in files.values())
