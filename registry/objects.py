"""What lies in a registry: blobs and manifests by digest, candidates by name, evidence and verdicts by candidate.

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
from registry import fs, generations, locks, output, plain
from registry.layout import Layout
from registry.log import Log
from registry.manifests import Manifest

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
class Objects:
    """What every part of the registry reads and records; `registry.store.Store` makes candidates besides."""

    layout: Layout

    @property
    def log(self) -> Log:
        return Log(self.layout.log)

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
            generation = generations.newest(self.layout, name)
            if generation is None:
                raise self._unknown(name)
            name = generation.candidate
            folder = self.layout.candidate(name)
        digest = plain.linked_manifest(folder)
        return Candidate(name, digest, self.manifest(digest), self.layout.model(name))

    def discard(self, inputs_digest: str) -> None:
        """Removes a step's folder: all of it or, to those who look, none."""
        folder = self.layout.step(inputs_digest)
        if folder.is_dir():
            doomed = fs.beside(folder)
            fs.rename_folder(folder, doomed)
            fs.remove_tree(doomed)

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
            IntegrityError: something else than a lock's file is there.
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
                locks.refuse_others(path)
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
        known = self.names() + generations.channels(self.layout)
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
        there = (
            f"the nearest is {' or '.join(near)}; " if near else f"there is {', '.join(known[:10])}; " if known else ""
        )
        remedy = f"{there}take a model in with: registry add NAME FOLDER"
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
