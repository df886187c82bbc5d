"""Sending a candidate to an OCI registry, so that its tag names either what it did or all of the candidate.

    look        what the tag names; all that can be refused is refused before anything is sent
    verify      every byte of the candidate, its records, its verdict
    send        the blobs that the repository does not hold, side by side; the registry holds each against its digest
    tag         if the tag still names what it did, and the verdict still stands: the manifest, in one request; then it
                is read back and compared

Whatever is interrupted is continued by running the same again: what the repository holds is not sent again.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from gates import canonical
from gates.errors import BusyError, IntegrityError, UsageError
from registry import bulk, output
from registry.manifests import File
from registry.parallel import each_file
from registry.pushing import eligibility
from registry.pushing.eligibility import Approval
from registry.pushing.parcel import Parcel, pack
from registry.remotes import modelpack
from registry.remotes.distribution import Client, Found
from registry.remotes.oci import Address
from registry.store import Candidate, Store

UPLOADS = 4
"""Blobs sent, or looked for, at once."""


@dataclass(frozen=True, slots=True)
class Options:
    """`replace`: what others put under the tag since the last push gives way. `with_records`: lineage, evidence and
    their rows travel too. `licence` is that of the base, if it is stated."""

    replace: bool = False
    with_records: bool = True
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class Pushed:
    """What came of it. `digest` is that of the OCI manifest; `missing` the bytes of the blobs that were not there, and
    are sent unless this is a rehearsal."""

    target: str
    manifest: str
    override: bool
    files: dict[str, int]
    card: str
    digest: str
    missing: int


def push(
    store: Store,
    candidate: Candidate,
    address: Address,
    approval: Approval,
    options: Options,
    *,
    rehearse: bool = False,
) -> Pushed:
    """Sends the candidate to the repository, and makes the address's tag name it.

    Args:
        rehearse: look at everything, send nothing.

    Raises:
        UsageError: it cannot be sent there: no right, a tag that names something else, no answer.
        IntegrityError: the candidate is damaged, or the registry holds other bytes than were sent.
        BusyError: somebody else puts something under the tag, or changes what the candidate is approved by.
    """
    if address.tag is None or address.digest is not None:
        raise UsageError("a push needs a tag, and no digest", where=str(address), remedy=f"{address.source}:v1")
    work = _Push(store, candidate, address, Client(address.site, address.repository, where=str(address)))
    there = work.look()
    parcel = pack(
        store,
        candidate,
        str(address),
        approval,
        with_records=options.with_records,
        licence=options.licence,
    )
    artifact = _artifact(candidate, parcel)
    done = there is not None and there.digest == artifact.digest
    if there is not None and not done:
        work.refuse_others(there, replace=options.replace)
    missing = work.missing(artifact)
    eligibility.demand_sound(store, candidate)
    if not rehearse:
        with eligibility.alone(store, str(address)):
            if missing or not done:
                work.log(approval, state="begun", digest=artifact.digest)
                work.send(artifact, missing)
                eligibility.demand_standing(store, candidate, approval)
                work.tag(artifact, there)
            work.log(approval, state="done", digest=artifact.digest)
    return Pushed(
        target=str(address),
        manifest=candidate.digest,
        override=approval.override,
        files={name: each.size for name, each in parcel.expected.items()},
        card=parcel.card.decode(),
        digest=f"sha256:{artifact.digest}",
        missing=sum(each.size for each in missing.values()),
    )


@dataclass(frozen=True, slots=True)
class _Artifact:
    """What is sent: the manifest, and by digest the blobs that it names and what they consist of."""

    manifest: bytes
    blobs: dict[str, File]
    contents: dict[str, bytes | Path]

    @property
    def digest(self) -> str:
        return canonical.digest(self.manifest)


def _artifact(candidate: Candidate, parcel: Parcel) -> _Artifact:
    files = {name: File(digest=str(each.sha256), size=each.size) for name, each in parcel.expected.items()}
    config = modelpack.config(candidate.name, candidate.manifest.shape, files)
    about = File(digest=canonical.digest(config), size=len(config))
    contents = {file.digest: parcel.contents[name] for name, file in files.items()}
    manifest = modelpack.manifest(files, config, candidate=candidate.digest)
    if len(manifest) > modelpack.LARGEST:
        raise UsageError(
            f"{len(files)} files are more than the manifest of an artifact can name",
            remedy="--no-records leaves lineage, evidence and the rows that they name out",
        )
    return _Artifact(
        manifest=manifest,
        blobs={each.digest: each for each in (*files.values(), about)},
        contents=contents | {about.digest: config},
    )


@dataclass(frozen=True, slots=True)
class _Push:
    store: Store
    candidate: Candidate
    address: Address
    client: Client

    def look(self) -> Found | None:
        """What the tag names."""
        with self.client.asked():
            return self.client.manifest(str(self.address.tag))

    def refuse_others(self, there: Found, *, replace: bool) -> None:
        """
        Raises:
            UsageError: the tag names something that is no candidate, or what this registry did not put there last.
        """
        try:
            ours = modelpack.read(there.data, where=str(self.address)).candidate
        except (UsageError, IntegrityError):
            ours = None
        if ours is None:
            raise UsageError(
                f"this tag names something else: sha256:{there.digest[:12]}",
                where=str(self.address),
                remedy="choose another tag; nothing was changed",
            )
        sent = self.store.log.newest("push", target=str(self.address), digest=there.digest)
        if not replace and sent is None:
            raise UsageError(
                f"somebody else put the candidate {ours[:12]} under this tag (sha256:{there.digest[:12]})",
                where=str(self.address),
                remedy="choose another tag; or --replace puts this in its place",
            )
        output.hint(f"so far the tag named the candidate {ours[:12]}: {self.address.source}@sha256:{there.digest}")

    def missing(self, artifact: _Artifact) -> dict[str, File]:
        """The blobs that the repository does not hold."""

        def one(digest: str, advance: bulk.Advance) -> bool:
            found = self.client.has(artifact.blobs[digest])
            advance(1)
            return found

        with self.client.asked():
            there = each_file("look", dict.fromkeys(artifact.blobs, 1), one, workers=UPLOADS, small=0)
        return {digest: file for digest, file in artifact.blobs.items() if not there[digest]}

    def send(self, artifact: _Artifact, missing: dict[str, File]) -> None:
        def one(digest: str, advance: bulk.Advance) -> None:
            self.client.send(artifact.blobs[digest], artifact.contents[digest], advance)

        sizes = {digest: each.size for digest, each in missing.items()}
        with self.client.asked():
            each_file(f"push {self.candidate.name}", sizes, one, workers=UPLOADS, small=0, finish=True)

    def tag(self, artifact: _Artifact, before: Found | None) -> None:
        """Makes the tag name the manifest.

        Raises:
            BusyError: the tag names something else than before.
            IntegrityError: it does not name what was sent.
        """
        now = self.look()
        if (now and now.digest) != (before and before.digest):
            raise BusyError(
                f"somebody else changed the tag meanwhile: it names sha256:{now.digest[:12] if now else '-'}",
                where=str(self.address),
                remedy="look at what is there; then run this again",
            )
        with self.client.asked():
            self.client.send_manifest(str(self.address.tag), artifact.manifest)
        after = self.look()
        if after is None or after.data != artifact.manifest:
            raise IntegrityError(
                f"the tag names sha256:{after.digest if after else '-'}, and sha256:{artifact.digest} was sent",
                where=str(self.address),
                remedy="somebody else may have put something there at the same moment: look, then run this again",
            )

    def log(self, approval: Approval, **about: str) -> None:
        eligibility.log(self.store, self.candidate, str(self.address), approval, **about)
