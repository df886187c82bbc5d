"""Taking in a model that comes with its records (`registry.pushing.records`): it keeps the manifest that it has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from gates import canonical
from gates.errors import IntegrityError, UsageError
from registry import commits, output, remotes, sources, taking
from registry.manifests import File
from registry.objects import Candidate, Objects
from registry.pushing import records
from registry.pushing.records import Records
from registry.remotes import Remote
from registry.taking import Taken, Work, refused_whole


def from_folder(
    store: Objects, name: str, given: sources.Folder, *, move: bool, replace: bool
) -> tuple[Candidate, dict[str, Taken]]:
    """The candidate `name` from a folder with records, and what was taken of it.

    Raises:
        UsageError: as `registry.adding.add`.
        IntegrityError: as that, or the records are damaged or forged, or another model's.
    """
    where = str(given.root)
    carried = read(given.records.get(records.FILE), where=where)
    check_name(store, name, carried, where=where, replace=replace)
    given = sources.named(given, carried.candidate.files)
    work = canonical.digest(canonical.dumps({"add": name, "source": where, "manifest": carried.manifest}))
    with store.locked(f"step-{work}", wait=0, busy="another process adds the same folder"):
        place = Work(store, store.layout.step(work))
        commits.claim(place.folder)
        taking.take(beside(place), "records", {file: _there(given.records, file, where) for file in carried.files()})
        taken = taking.take(place, f"add {name}", given.files, move=move)
        files = {file: each.file for file, each in taken.items()}
        candidate = commit(store, name, carried, place, work, files, origin={"source": where}, replace=replace)
    return candidate, taken


def from_remote(store: Objects, name: str, remote: Remote, *, replace: bool) -> Candidate:
    """The candidate `name` from a place elsewhere that holds records too. Raises as `from_folder`."""
    where = remote.address
    work = canonical.digest(canonical.dumps({"add": name, **remote.origin}))
    with store.locked(f"step-{work}", wait=0, busy="another process adds the same model"):
        place = Work(store, store.layout.step(work))
        commits.claim(place.folder)
        remotes.fetch_files(remote.only([records.FILE]), beside(place), f"add {name}: look")
        carried = read(beside(place).model / records.FILE, where=where)
        check_name(store, name, carried, where=where, replace=replace)
        if store.log.newest("received", name=name, manifest=carried.manifest, **remote.origin) and is_there(
            store, name, carried
        ):
            output.hint(f"{name} is there already, from {remote.address} at {remote.revision}")
            store.discard(work)
            return store.candidate(name)
        model = remote.only(carried.candidate.files)
        _refuse_others(carried, model.known(carried.candidate.files), where)
        remotes.fetch_files(remote.only(carried.files()), beside(place), f"add {name}: records")
        files = remotes.fetch(model, place, f"add {name}")
        return commit(store, name, carried, place, work, files, origin=remote.origin, replace=replace)


def read(path: Path | None, *, where: str) -> Records:
    """The records in the file `path`.

    Raises:
        UsageError: a newer Sluice wrote them.
        IntegrityError: there are none, or they are damaged or forged.
    """
    where = f"{where}, {records.FILE}"
    if path is None or path.stat().st_size > records.LARGEST:
        what = "the records that come with the model are missing" if path is None else "the records are too large"
        raise IntegrityError(what, where=where, remedy="have them sent again; or add a copy of the model's files alone")
    return records.parse(path.read_bytes(), where=where)


def beside(place: Work) -> Work:
    """Where a step keeps what travels with the model, apart from the model."""
    return Work(place.store, place.folder / "records")


def check_name(store: Objects, name: str, carried: Records, *, where: str, replace: bool) -> None:
    """
    Raises:
        UsageError: `name` is a channel's, or another candidate's that is not to be replaced.
    """
    there = commits.made(store, name, carried.candidate.inputs, replace=replace)
    if there is not None and there.digest != carried.manifest and not replace:
        raise UsageError(
            f"{name} is there already, made from the same but with other files ({there.digest[:12]})",
            where=where,
            remedy="choose another name, or put this in its place with --replace",
        )


def is_there(store: Objects, name: str, carried: Records) -> bool:
    """Whether the candidate `name` is the one that the records travel with."""
    return os.path.lexists(store.layout.candidate(name)) and store.candidate(name).digest == carried.manifest


def commit(
    store: Objects,
    name: str,
    carried: Records,
    place: Work,
    work: str,
    files: dict[str, File],
    *,
    origin: Mapping[str, str],
    replace: bool,
) -> Candidate:
    """The candidate and its records, from a step's folder that holds all of both; the folder is gone then."""
    where = origin["source"]
    with refused_whole(store, place, work, where):
        _refuse_others(carried, files, where)
        blobs = {digest: beside(place).model / file for file, digest in carried.files().items()}
        records.receive(store, carried, blobs, where=where)
        inputs = carried.candidate.inputs
        candidate = commits.commit(
            store, name, inputs, place.model, replace=replace, known=files, stated=carried.candidate
        )
        records.record(store, name, carried, origin=origin)
        return candidate


def _there(files: Mapping[str, Path], file: str, where: str) -> Path:
    if file not in files:
        raise IntegrityError("the model's records name a file that is missing", where=f"{where}, {file}")
    return files[file]


def _refuse_others(carried: Records, files: Mapping[str, File], where: str) -> None:
    """
    Raises:
        IntegrityError: the files are not those that the manifest states.
    """
    stated = carried.candidate.files
    differing = [file for file in stated.keys() | files.keys() if stated.get(file) != files.get(file)]
    if differing:
        raise IntegrityError(
            "this file is not the one that the model's records state",
            where=f"{where}, {min(differing)}",
            remedy="it is damaged, or the records are another model's: have it sent again",
        )
