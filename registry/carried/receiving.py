"""Taking in a model that comes with its records (`registry.carried.records`): it keeps the manifest that it has."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from gates import canonical
from gates.errors import IntegrityError, UsageError
from registry import bulk, commits, fs, judging, output, remotes, retractions, sources, taking, waivers
from registry.carried import records
from registry.carried.records import Records
from registry.manifests import File, Manifest
from registry.objects import Candidate, Objects
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
        _refuse_larger(remote.there[records.FILE][0], where)
        remotes.fetch_files(remote.only([records.FILE]), beside(place), f"add {name}: look")
        carried = read(beside(place).model / records.FILE, where=where)
        check_name(store, name, carried, where=where, replace=replace)
        if _is_received(store, name, carried, origin=remote.origin) and is_there(store, name, carried):
            output.hint(f"{name} is there already, from {remote.address} at {remote.revision}")
            store.discard(work)
            return store.candidate(name)
        model = remote.only(carried.candidate.files)
        _refuse_others(carried, model.known(carried.candidate.files), where)
        blobs = remote.only(carried.files())
        _refuse_others_sizes(carried, blobs.sizes, where)
        remotes.fetch_files(blobs, beside(place), f"add {name}: records")
        files = remotes.fetch(model, place, f"add {name}")
        return commit(store, name, carried, place, work, files, origin=remote.origin, replace=replace)


def read(path: Path | None, *, where: str) -> Records:
    """The records in the file `path`.

    Raises:
        UsageError: a newer Sluice wrote them.
        IntegrityError: there are none, or they are damaged or forged.
    """
    if path is None:
        raise _unusable("the records that come with the model are missing", where)
    _refuse_larger(path.stat().st_size, where)
    return records.parse(path.read_bytes(), where=f"{where}, {records.FILE}")


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
        _receive(store, carried, blobs, where=where)
        _begin(store, name, carried, origin=origin)
        inputs = carried.candidate.inputs
        candidate = commits.commit(
            store, name, inputs, place.model, replace=replace, known=files, stated=carried.candidate
        )
        _record(store, name, carried, origin=origin)
        return candidate


def _receive(store: Objects, carried: Records, blobs: Mapping[str, Path], *, where: str) -> None:
    """Takes in what the candidate's manifest rests on, before the candidate itself is made: blobs and ancestors.

    Args:
        blobs: for each of `carried.blobs` a file with its bytes, in a step's folder of the registry; it becomes the
            blob.

    Raises:
        IntegrityError: a blob is not what its digest says, or a verdict does not follow from its evidence. Nothing is
            taken in then.
    """
    for digest, size in carried.blobs.items():
        if digest not in blobs or bulk.hash_file(blobs[digest]) != (digest, size):
            raise records.refused(f"the blob {digest[:12]} is missing, or holds something else", where)
    records.demand_following(carried, lambda digest: blobs[digest].read_bytes(), where=where)
    for digest in carried.blobs:
        commits.link_in(blobs[digest], store.layout.blob(digest), digest)
    for digest, manifest in _oldest_first(carried):
        if digest != carried.manifest:
            fs.write_content(store.layout.manifest(digest), manifest.to_bytes())


def _record(store: Objects, name: str, carried: Records, *, origin: Mapping[str, str]) -> None:
    """Takes in what is recorded about the candidate `name`, once it is made. Doing it again changes nothing.

    Of a candidate that this registry has, and did not take in from the same source (`_begin`), nothing is taken: what
    is known of one's own candidates nobody else adds to, takes back or waives. The verdict of a model that was compared
    with one is stale then, unless the evidence is the same.

    Args:
        origin: where the records came from.
    """
    own = {each.digest for each in store.sound().values()}
    if store.log.newest("received", manifest=carried.manifest, source=origin["source"]) is not None:
        own.discard(carried.manifest)
    for policy in carried.policies.values():
        store.put(policy.to_bytes())
    for each in carried.evidence.values():
        if each.candidate not in own:
            rows, responses = (store.read(blob) if blob else b"" for blob in (each.rows, each.responses))
            store.add_evidence(each, rows=rows, responses=responses, timings={})
    for taken_back in carried.retractions.values():
        if taken_back.candidate not in own:
            retractions.record(store, taken_back)
    for waiver in carried.waivers.values():
        if waiver.candidate not in own:
            waivers.record(store, waiver)
    if carried.manifest not in own:
        for digest, verdict in carried.verdicts.items():
            store.add_verdict(verdict)
            if store.log.newest("verdict", verdict=digest) is None:
                judging.log(store, name, verdict, digest)
        _log(store, name, carried, origin, "done")
    known = {digest for each in own & carried.manifests.keys() for digest in store.evidence(each)}
    new = [each for digest, each in carried.evidence.items() if digest not in known]
    if left := sorted({each.candidate[:12] for each in new if each.candidate in own}):
        output.hint(f"evidence of {', '.join(left)} is not taken, for this registry has these candidates itself")


def _begin(store: Objects, name: str, carried: Records, *, origin: Mapping[str, str]) -> None:
    """Writes down that the candidate, if the registry has it under no name yet, comes from there. An attempt that
    breaks off after the candidate is made is known by that for what it is."""
    if carried.manifest not in {each.digest for each in store.sound().values()}:
        _log(store, name, carried, origin, "begun")


def _is_received(store: Objects, name: str, carried: Records, *, origin: Mapping[str, str]) -> bool:
    """Whether all of these records were taken in from there, with the candidate `name`."""
    newest = store.log.newest("received", name=name, manifest=carried.manifest, **origin)
    return newest is not None and newest.get("state") != "begun"


def _log(store: Objects, name: str, carried: Records, origin: Mapping[str, str], state: str) -> None:
    key = {"name": name, "manifest": carried.manifest, **origin}
    done = {"begun": ("begun", "done"), "done": ("done",)}[state]
    store.log.follow(
        "received", key, lambda newest: None if newest and newest.get("state") in done else {"state": state}
    )


def _oldest_first(carried: Records) -> list[tuple[str, Manifest]]:
    """A manifest after the one that it was made from."""
    depth = {digest: sum(1 for _ in records.ancestors(carried.manifests, [digest])) for digest in carried.manifests}
    return sorted(carried.manifests.items(), key=lambda item: (depth[item[0]], item[0]))


def _refuse_larger(size: int, where: str) -> None:
    if size > records.LARGEST:
        raise _unusable("the records that come with the model are too large", where)


def _refuse_others_sizes(carried: Records, sizes: Mapping[str, int], where: str) -> None:
    for file, digest in carried.files().items():
        if sizes[file] != carried.blobs[digest]:
            what = f"the records state {carried.blobs[digest]} bytes, and it has {sizes[file]}"
            raise _unusable(f"{file}: {what}", where)


def _unusable(what: str, where: str) -> IntegrityError:
    remedy = "have them sent again; or add a copy of the model's files alone"
    return IntegrityError(what, where=f"{where}, {records.FILE}", remedy=remedy)


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
