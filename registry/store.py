"""The registry on disk, as its users see it: candidates by name, blobs by digest, evidence and verdicts by candidate.

What is visible is complete and durable: blobs come before the manifest that names them, the manifest before the
candidate, the candidate before the log's entry. Whatever is killed between two of these is done again by the next run,
which finds what is made already.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from gates import canonical
from gates.errors import BusyError, IntegrityError, UsageError
from gates.records import Evidence, Record, Verdict
from registry import channels, commits, fs, locks, marker, output, ownership, plain, trash
from registry.layout import Layout, checked_name
from registry.log import Log
from registry.manifests import Inputs, Manifest

AnyRecord = TypeVar("AnyRecord", bound=Record)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A named, immutable checkpoint. `folder` is what loaders open: resolve it once (the name may be replaced)."""

    name: str
    digest: str
    manifest: Manifest
    folder: Path

    def resolved(self) -> Path:
        """The folder, with no link on the way to it: it stays what it is if the name is replaced.

        Raises:
            IntegrityError: it is not there.
        """
        path = Path(os.path.realpath(self.folder))
        if not path.is_dir():
            raise IntegrityError(
                "the candidate has no model folder", where=str(self.folder), remedy=f"registry verify {self.name}"
            )
        return path


@dataclass(frozen=True, slots=True)
class Store:
    layout: Layout

    @property
    def log(self) -> Log:
        return Log(self.layout.log)

    @classmethod
    def init(cls, root: Path) -> Store:
        """Makes a registry in `root`; one that is there already stays as it is.

        Raises:
            UsageError: `root` holds something else, or cannot be written.
        """
        ownership.check(root.absolute())
        marker.create(Layout(root.absolute()))
        return cls.open(root)

    @classmethod
    def open(cls, root: Path) -> Store:
        """The registry in `root`; a promotion or a gc that was interrupted is finished first.

        Raises:
            UsageError: there is none, or a newer Sluice made it.
            IntegrityError: format.json is damaged.
        """
        layout = Layout(root.absolute())
        marker.check(layout)
        with suppress(OSError):  # to read, none of these is needed; to write, the call that needs it says so
            for folder in layout.folders():
                fs.make_folders(folder)  # copying tools leave empty folders out
            fs.make_lock(layout.lock("gc"))  # while there is room: on a full disk gc is what helps
        fs.keep_reserve(layout.root)
        store = cls(layout)
        trash.recover(store)
        channels.repair(store)
        return store

    def put(self, data: bytes) -> str:
        """Keeps `data` as a blob, durably, and gives its digest."""
        digest = canonical.digest(data)
        blob = self.layout.blob(digest)
        fs.make_folders(blob.parent)
        fs.write_content(blob, data)
        return digest

    def read(self, digest: str) -> bytes:
        """
        Raises:
            IntegrityError: the blob is missing, or holds something else.
        """
        return plain.content(self.layout.blob(digest), digest, "blob")

    def manifest(self, digest: str) -> Manifest:
        """
        Raises:
            IntegrityError: it is missing, or holds something else.
        """
        path = self.layout.manifest(digest)
        return Manifest.from_bytes(plain.content(path, digest, "manifest"), where=str(path))

    def names(self) -> list[str]:
        """The candidates' names, sorted."""
        return plain.names(self.layout)

    def sound(self) -> dict[str, Candidate]:
        """The candidates by name, without those that are damaged (`registry verify` says how), and without those that
        are removed at this moment."""
        found = {}
        for name in self.names():
            with suppress(IntegrityError, UsageError):
                found[name] = self.candidate(name)
        return found

    def candidate(self, name: str) -> Candidate:
        """The candidate called `name`, or the one that the channel of that name serves.

        Raises:
            UsageError: there is neither.
            IntegrityError: it is damaged.
        """
        folder = self.layout.candidate(name)
        if not os.path.lexists(folder):
            generation = channels.newest(self, name)
            if generation is None:
                raise self._unknown(name)
            name = generation.candidate
            folder = self.layout.candidate(name)
        digest = plain.linked_manifest(folder)
        return Candidate(name, digest, self.manifest(digest), self.layout.model(name))

    def made(self, name: str, inputs: Inputs, *, replace: bool = False) -> Candidate | None:
        """The candidate `name`, if it is made from `inputs`; None if it is still to be made.

        Raises:
            UsageError: it is made from something else, and `replace` is not given or a channel serves it; or `name` is
                a channel's.
        """
        if channels.current(self, checked_name(name)) is not None:
            raise UsageError(f"{name} is the name of a channel", remedy="choose another name for the candidate")
        if not os.path.lexists(self.layout.candidate(name)):
            return None
        try:
            there = self.candidate(name)
        except IntegrityError:
            if not replace:
                raise
            commits.refuse_served(self, name)
            return None
        differences = there.manifest.inputs.differences(inputs)
        if not differences:
            commits.write_log(self, name)
            return there
        if not replace:
            listed = "".join(f"\n  {line}" for line in differences)
            raise UsageError(
                f"{name} is made from something else (there / asked for):{listed}",
                where=str(self.layout.candidate(name)),
                remedy="choose another name, or make it again with --replace",
            )
        commits.refuse_served(self, name)
        return None

    @contextmanager
    def step(self, inputs_digest: str) -> Iterator[Path]:
        """The folder for the work on one step, for this process alone. It stays, so that work goes on after a failure.

        Files that a commit has made blobs already are copies here: nothing written in this folder changes a blob.

        Raises:
            BusyError: another process works on the same step.
        """
        folder = self.layout.step(inputs_digest)
        with self.locked(f"step-{inputs_digest}", wait=0, busy="another process works on the same step"):
            fs.make_lock(lock := self.layout.lock(f"step-{inputs_digest}"))
            fs.renew(lock)  # when it began: gc spares what came since
            commits.claim(folder)
            fs.unshare(folder)
            yield folder

    def discard(self, inputs_digest: str) -> None:
        """Removes a step's folder: all of it or, to those who look, none."""
        folder = self.layout.step(inputs_digest)
        if folder.is_dir():
            doomed = fs.beside(folder)
            fs.rename_folder(folder, doomed)
            fs.remove_tree(doomed)

    def commit(
        self, name: str, inputs: Inputs, model: Path, *, attachments: Path | None = None, replace: bool = False
    ) -> Candidate:
        """Makes the files below `model` the candidate `name`, without copying them. See `registry.commits.commit`."""
        return commits.commit(self, name, inputs, model, attachments=attachments, replace=replace)

    def add(
        self, name: str, source: Path | str, *, move: bool = False, replace: bool = False, insecure: bool = False
    ) -> Candidate:
        """Takes the model in `source` (a folder, hf://…, oci://…) in as a candidate. See `registry.adding.add`."""
        from registry import adding  # here, for it needs what no command that reads does

        return adding.add(self, name, source, move=move, replace=replace, insecure=insecure)

    def add_evidence(self, evidence: Evidence, *, rows: bytes, responses: bytes, timings: dict[str, Any]) -> str:
        """Records `evidence`, with its rows and raw responses, and gives its digest.

        Args:
            rows, responses: the blobs that the evidence names; empty where it names none.
            timings: what differs from run to run; it goes into the log.

        Raises:
            IntegrityError: rows or responses are not those that the evidence names, or its candidate is missing.
        """
        self.manifest(evidence.candidate)
        fs.renew(self.layout.manifest(evidence.candidate))
        for what, stated, data in (("rows", evidence.rows, rows), ("responses", evidence.responses, responses)):
            given = canonical.digest(data) if data or stated is not None else None
            if stated != given:
                raise IntegrityError(f"the evidence names other {what} than those given: {stated} / {given}")
            if stated is not None:
                self.put(data)
        digest = self._record(self.layout.evidence(evidence.candidate), evidence)
        about = {"manifest": evidence.candidate, "pack": evidence.pack, "timings": timings}
        self.log.follow("evidence", {"evidence": digest}, lambda newest: None if newest else about)
        return digest

    def evidence(self, manifest_digest: str) -> dict[str, Evidence]:
        """All evidence on a candidate, by digest, sorted.

        Raises:
            IntegrityError: a record is damaged, or lies where it does not belong.
        """
        return _records(self.layout.evidence(manifest_digest), Evidence, manifest_digest)

    def evidence_digests(self, manifest_digest: str) -> list[str]:
        """The digests of all evidence on a candidate, sorted, without reading any."""
        return plain.digests(self.layout.evidence(manifest_digest))

    def add_verdict(self, verdict: Verdict) -> str:
        """Records `verdict` and gives its digest. Which one is the newest the log says: judging writes it there.

        Raises:
            IntegrityError: its candidate is missing.
        """
        self.manifest(verdict.candidate)
        fs.renew(self.layout.manifest(verdict.candidate))
        return self._record(self.layout.verdicts(verdict.candidate), verdict)

    def verdicts(self, manifest_digest: str) -> dict[str, Verdict]:
        """All verdicts on a candidate, by digest, sorted. Raises as `evidence` does."""
        return _records(self.layout.verdicts(manifest_digest), Verdict, manifest_digest)

    @contextmanager
    def locked(self, key: str, *, wait: float, busy: str) -> Iterator[None]:
        """Keeps other processes out while the block runs, where locks work. Nothing may rest on that alone.

        Args:
            wait: for how many seconds the lock is waited for.

        Raises:
            BusyError: somebody else has it; `busy` says what they do.
        """
        from filelock import FileLock, Timeout

        path = self.layout.lock(key)
        fs.make_lock(path)
        lock = FileLock(path, fallback_to_soft=False)  # a file that stands for a lock would outlive who is killed
        try:
            lock.acquire(timeout=wait)
        except Timeout:
            raise BusyError(busy, where=str(path), remedy="wait for it, or end it; then run this again") from None
        except OSError as error:
            if error.errno not in locks.NONE:
                raise
            output.hint(f"this file system has no locks ({error.strerror}): let only one process work on {key}")
        try:
            yield
        finally:
            lock.release()

    def _record(self, folder: Path, record: Record) -> str:
        digest = record.identity()
        fs.make_folders(folder)
        fs.write_content(folder / f"{digest}.json", record.to_bytes())
        return digest

    def _unknown(self, name: str) -> UsageError:
        known = self.names() + channels.names(self)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5) or known[:10]
        remedy = (f"there is {', '.join(near)}; " if near else "") + "take a model in with: registry add NAME FOLDER"
        return UsageError(f"there is no candidate or channel {name!r}", where=str(self.layout.root), remedy=remedy)


def read_record(path: Path, kind: type[AnyRecord], candidate: str) -> AnyRecord:
    """
    Raises:
        IntegrityError: it is damaged, or lies where it does not belong.
    """
    record = kind.from_bytes(plain.content(path, path.name.removesuffix(".json"), "record"), where=str(path))
    if record.model_dump()["candidate"] != candidate:
        raise IntegrityError("this record is about another candidate", where=str(path))
    return record


def _records(folder: Path, kind: type[AnyRecord], candidate: str) -> dict[str, AnyRecord]:
    return {digest: read_record(folder / f"{digest}.json", kind, candidate) for digest in plain.digests(folder)}
