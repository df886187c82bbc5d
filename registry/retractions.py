"""Taking evidence back: what was found to be wrong stays on record, and no gate counts it any more.

A retraction is a record of its own beside the evidence, named as the evidence is, and is never taken back: whoever was
wrong evaluates again. Verdicts that rest on retracted evidence no longer hold.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from gates.errors import IntegrityError, UsageError
from gates.records import Digest, Evidence, Record
from registry import fs, plain
from registry.log import signature
from registry.objects import Objects

FORMAT: Literal[1] = 1


class Retraction(Record):
    """Why one evidence counts no longer, and who says so."""

    format: Literal[1] = FORMAT
    candidate: Digest
    evidence: Digest
    reason: Annotated[str, Field(min_length=1)]
    by: str


def retract(store: Objects, evidence: str, reason: str) -> Retraction:
    """Takes one evidence back. One that is retracted already stays so, for the reason that was given first.

    Args:
        evidence: its digest, or the beginning of it.

    Raises:
        UsageError: no evidence is called so, or several are; or there is no reason.
    """
    if not reason.strip():
        raise UsageError("a retraction needs a reason", remedy='give one: --reason "…"')
    manifest, digest = _find(store, evidence)
    wanted = Retraction(
        format=FORMAT, candidate=manifest, evidence=digest, reason=reason.strip(), by=signature()["user"]
    )
    return record(store, wanted)


def record(store: Objects, wanted: Retraction) -> Retraction:
    """Keeps a retraction and logs it. Where the evidence is retracted already, the reason given first stays."""
    manifest, digest = wanted.candidate, wanted.evidence
    fs.renew(store.layout.manifest(manifest))  # gc spares what was renewed a moment ago
    folder = store.layout.retractions(manifest)
    fs.make_folders(folder)
    try:
        fs.write_new(folder / f"{digest}.json", wanted.to_bytes())
    except FileExistsError:
        wanted = _read(store, manifest, digest)
    about = {"manifest": manifest, "reason": wanted.reason}
    store.log.follow("retraction", {"evidence": digest}, lambda newest: None if newest else about)
    return wanted


def retracted(store: Objects, manifest: str) -> dict[str, Retraction]:
    """The retractions of a candidate's evidence, by the evidence's digest.

    Raises:
        IntegrityError: one is damaged.
    """
    return {digest: _read(store, manifest, digest) for digest in retracted_digests(store, manifest)}


def retracted_digests(store: Objects, manifest: str) -> list[str]:
    """Which of a candidate's evidence is retracted, without reading why."""
    return plain.digests(store.layout.retractions(manifest))


def standing(store: Objects, manifest: str) -> dict[str, Evidence]:
    """A candidate's evidence that counts, by digest, sorted. Raises as `Objects.evidence` does."""
    gone = set(retracted_digests(store, manifest))
    return {digest: each for digest, each in store.evidence(manifest).items() if digest not in gone}


def _read(store: Objects, manifest: str, digest: str) -> Retraction:
    path = store.layout.retractions(manifest) / f"{digest}.json"
    retraction = Retraction.from_bytes(fs.read(path, f"retraction of evidence {digest[:12]}"), where=str(path))
    if (retraction.candidate, retraction.evidence) != (manifest, digest):
        raise IntegrityError("this retraction lies where it does not belong", where=str(path))
    return retraction


def _find(store: Objects, prefix: str) -> tuple[str, str]:
    """The manifest and the digest of the one evidence whose digest begins so."""
    found = sorted(
        (manifest, digest)
        for manifest in fs.entries(store.layout.root / "evidence")
        for digest in store.evidence_digests(manifest)
        if prefix and digest.startswith(prefix)
    )
    if len(found) == 1:
        return found[0]
    what = f"{len(found)} begin" if found else "no evidence's digest begins"
    raise UsageError(f"{what} with {prefix!r}", remedy="registry evidence ls NAME shows the digests of a candidate's")
