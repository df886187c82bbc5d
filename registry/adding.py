"""Taking a checkpoint in: examined before a byte is copied, durable before it gets a name, continued after a kill.

From a folder it is copied, or moved into the registry (`move`); the folder is only read until the candidate is there.
From the Hub and from OCI registries it comes by `registry.remotes`. A model that comes with its records
(`registry.pushing`) keeps its manifest.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from gates import canonical
from gates.errors import IntegrityError, UsageError
from registry import bulk, commits, fs, locks, output, remotes, sources, taking
from registry.carried import receiving, records
from registry.checkpoint import inspect
from registry.layout import checked_name
from registry.manifests import File, Inputs, files_digest
from registry.parallel import each_file
from registry.remotes import Remote, hub, oci
from registry.taking import Work, refused_whole

if TYPE_CHECKING:
    from registry.objects import Candidate, Objects

CODE = "add-1"
"""Taking the same files in gives the same candidate, whichever release does it."""


def add(
    store: Objects, name: str, source: Path | str, *, move: bool = False, replace: bool = False, insecure: bool = False
) -> Candidate:
    """Makes the model in `source` the candidate `name`. One that has the same files already is found.

    Args:
        source: a folder, hf://owner/name[@revision], or oci://host/repository:tag[@sha256:…].
        move: remove the folder's files once the candidate is there; on one file system no byte is copied.
        replace: whether a candidate of this name with other files gives way.
        insecure: whether an OCI registry elsewhere may be asked without TLS.

    Raises:
        UsageError: no such source, an unknown family, a file that cannot be taken, a taken name, too little room.
        IntegrityError: the source is not a whole checkpoint, or holds pickles or archives.
    """
    _check_name(store, name, replace=replace)
    address = oci.parse(str(source), insecure=insecure) or hub.parse(str(source))
    if address is None:
        return _from_folder(store, name, sources.folder(Path(source)), move=move, replace=replace)
    if move:
        raise UsageError("--move is for folders", where=str(source), remedy="leave it out: what is there stays there")
    remote = hub.resolve(address) if isinstance(address, hub.Address) else oci.resolve(address)
    return _from_remote(store, name, remote, replace=replace)


def _check_name(store: Objects, name: str, *, replace: bool) -> None:
    """Refuses before anything is read what a commit would refuse after everything is copied."""
    if not os.path.lexists(store.layout.candidate(checked_name(name))):
        commits.made(store, name, _inputs({}, {}))  # which refuses a channel's name
    elif replace:
        commits.refuse_served(store, name)


def _from_folder(store: Objects, name: str, given: sources.Folder, *, move: bool, replace: bool) -> Candidate:
    _check_place(store, given, move=move)
    if given.records:
        candidate, taken = receiving.from_folder(store, name, given, move=move, replace=replace)
        if move:
            _remove(store, given, candidate.manifest.files, {file: each.state for file, each in taken.items()})
        return candidate
    inspect(given.root, given.files)
    before = {file: taking.state_of(path) for file, path in given.files.items()}
    found = _found(store, name, given, replace=replace)
    if found is not None:
        output.hint(f"{name} is there already, with the same files")
    else:
        work = canonical.digest(canonical.dumps({"add": name, "source": str(given.root)}))
        with store.locked(f"step-{work}", wait=0, busy="another process adds the same folder"):
            place = Work(store, store.layout.step(work))
            commits.claim(place.folder)
            taken = taking.take(place, f"add {name}", given.files, move=move)
            before = {file: each.state for file, each in taken.items()}
            files = {file: each.file for file, each in taken.items()}
            try:
                _check_stated(given.stated, files, where=given.root)
            except IntegrityError:
                store.discard(work)
                raise
            found = _commit(store, name, place, work, files, given.origin, where=str(given.root), replace=replace)
    if move:
        _remove(store, given, found.manifest.files, before)
    return found


def _from_remote(store: Objects, name: str, remote: Remote, *, replace: bool) -> Candidate:
    if records.FILE in remote.there:
        return receiving.from_remote(store, name, remote, replace=replace)
    there = _added(store, name, where=remote.address, replace=replace)
    if there is not None and not remote.can_be(there.manifest.files):
        if not replace:
            raise _taken_by_others(name, there.manifest.files, remote.known(there.manifest.files), where=remote.address)
        there = None
    if there is not None and remote.origin.items() <= there.manifest.inputs.settings.items():
        output.hint(f"{name} is there already, from {remote.address} at {remote.revision}")
        return there
    work = canonical.digest(canonical.dumps({"add": name, **remote.origin}))
    with store.locked(f"step-{work}", wait=0, busy="another process adds the same model"):
        place = Work(store, store.layout.step(work))
        commits.claim(place.folder)
        files = remotes.fetch(remote, place, f"add {name}")
        if there is not None and files == there.manifest.files:
            output.hint(f"{name} is there already, with the same files")
            store.discard(work)
            return there
        return _commit(store, name, place, work, files, remote.origin, where=remote.address, replace=replace)


def _commit(
    store: Objects,
    name: str,
    place: Work,
    work: str,
    files: dict[str, File],
    origin: Mapping[str, str],
    *,
    where: str,
    replace: bool,
) -> Candidate:
    with refused_whole(store, place, work, where):
        return commits.commit(store, name, _inputs(files, origin), place.model, replace=replace, known=files)


def _check_place(store: Objects, given: sources.Folder, *, move: bool) -> None:
    """
    Raises:
        UsageError: the registry lies in the source; or its files are to be moved and lie in the registry, are links, or
            are open for writing.
    """
    root = store.layout.root.resolve()
    if root.is_relative_to(given.root):
        raise UsageError(
            "the registry lies in this folder", where=str(given.root), remedy="name the model's own folder"
        )
    if not move:
        return
    if given.root.is_relative_to(root):
        raise UsageError("this folder is the registry's own", where=str(given.root), remedy="add it without --move")
    links = [file for file, path in given.files.items() if path.is_symlink()]
    if links:
        raise UsageError(
            f"links cannot be moved, and {links[0]} is one", where=str(given.root), remedy="add it without --move"
        )
    for path in given.files.values():
        if locks.written(path):  # what they write next would be lost, or change a blob
            raise UsageError(
                "somebody has this file open for writing",
                where=str(path),
                remedy="wait until they are done; then run this again",
            )


def _found(store: Objects, name: str, given: sources.Folder, *, replace: bool) -> Candidate | None:
    """The candidate of this name, if it holds the same files: they are hashed where they are, beside its blobs.

    A blob that is damaged or missing is made again from the source.

    Raises:
        UsageError: it holds others, or was made from a model rather than added, and is not to be replaced.
    """
    there = _added(store, name, where=str(given.root), replace=replace)
    if there is None:
        return None
    stated = there.manifest.files
    hashed = _hash(store, name, given, stated)
    files = {file: each for file, (each, _) in hashed.items()}
    if files == stated:
        damaged = {file: given.files[file] for file, (_, sound) in hashed.items() if not sound}
        if damaged:
            _mend(store, name, damaged)
        return commits.made(store, name, there.manifest.inputs)
    if not replace:
        raise _taken_by_others(name, stated, files, where=str(given.root))
    return None


def _added(store: Objects, name: str, *, where: str, replace: bool) -> Candidate | None:
    """The candidate of this name, if there is one that was added.

    Raises:
        UsageError: there is one that was made otherwise, and is not to be replaced.
        IntegrityError: there is one that is damaged, and is not to be replaced.
    """
    if not os.path.lexists(store.layout.candidate(name)):
        return None
    try:
        there = store.candidate(name)
    except IntegrityError:
        if not replace:
            raise
        return None
    if there.manifest.inputs.op == "add":
        return there
    if not replace:
        raise UsageError(
            f"{name} is there already, made by {there.manifest.inputs.op}",
            where=where,
            remedy="choose another name, or put this in its place with --replace",
        )
    return None


def _hash(store: Objects, name: str, given: sources.Folder, stated: Mapping[str, File]) -> dict[str, tuple[File, bool]]:
    """Each file of the source, and whether the candidate's blob of that file holds the same bytes."""

    def one(file: str, advance: bulk.Advance) -> tuple[File, bool]:
        path, blob = given.files[file], store.layout.blob(stated[file].digest) if file in stated else None
        if blob is not None and blob.is_file():
            digest, size, same = bulk.hash_beside(path, blob, advance)
        else:
            (digest, size), same = bulk.hash_file(path, advance), False
        return File(digest=digest, size=size), same

    return each_file(f"compare {name}", {file: path.stat().st_size for file, path in given.files.items()}, one)


def _mend(store: Objects, name: str, files: Mapping[str, Path]) -> None:
    work = canonical.digest(canonical.dumps({"mend": name, "files": sorted(map(str, files.values()))}))
    with store.locked(f"step-{work}", wait=0, busy=f"another process mends {name}"):
        place = Work(store, store.layout.step(work))
        for file, taken in taking.take(place, f"mend {name}", files).items():
            commits.link_in(place.model / file, store.layout.blob(taken.file.digest), taken.file.digest)
            output.hint(f"{name}: {file} was damaged in the registry, and is taken again from the source")
        store.discard(work)


def _check_stated(stated: Mapping[str, str], files: Mapping[str, File], *, where: Path) -> None:
    """
    Raises:
        IntegrityError: a file is not what the Hub's cache says it is.
    """
    for name, digest in stated.items():
        if files[name].digest != digest:
            raise IntegrityError(
                f"the cached file is damaged: its SHA-256 is {files[name].digest}, expected {digest}",
                where=str(where / name),
                remedy="fetch it again, or add it from hf://…",
            )


def _remove(store: Objects, given: sources.Folder, files: Mapping[str, File], before: Mapping[str, str]) -> None:
    """Removes what was taken from the source, and the folders that are empty then. What changed meanwhile stays."""
    kept = []
    for name, path in given.files.items():
        blob = store.layout.blob(files[name].digest)
        held = blob.is_file() and blob.stat().st_size == files[name].size
        if held and (
            path.samefile(blob)
            or taking.state_of(path) == before[name]
            # to be made a blob changes a file's state: also that of one which turned out to have another's bytes
            or bulk.hash_file(path)[0] == files[name].digest
        ):
            _remove_one(path)
        else:
            kept.append(name)
    for folder in sorted({path.parent for path in given.files.values()}, reverse=True):
        if not any(folder.iterdir()):
            with contextlib.suppress(OSError):  # an empty folder that is in another's hurts nobody
                fs.remove_tree(folder)
    if kept:
        output.hint(f"left in {given.root}, for they changed meanwhile: {', '.join(kept)}")


def _remove_one(path: Path) -> None:
    try:
        fs.remove_tree(path)
    except OSError as error:
        raise UsageError(
            f"the model is in the registry, but its source cannot be removed: {error.strerror}",
            where=str(path),
            remedy="remove the source yourself, or run this again once it can be",
        ) from None


def _inputs(files: dict[str, File], origin: Mapping[str, str]) -> Inputs:
    return Inputs(op="add", parent=None, settings={"files": files_digest(files), **origin}, code=CODE)


def _taken_by_others(name: str, there: Mapping[str, File], given: Mapping[str, File], *, where: str) -> UsageError:
    def state(file: File | None) -> str:
        return f"{file.size} bytes, {file.digest[:12]}" if file else "missing"

    differences = "".join(
        f"\n  {file}: {state(there.get(file))} / {state(given.get(file))}"
        for file in sorted(there.keys() | given.keys())
        if there.get(file) != given.get(file)
    )
    return UsageError(
        f"{name} is there already, with other files:{differences}",
        where=where,
        remedy="choose another name, or put these in its place with --replace",
    )
