"""The records that travel with a model, so that whoever takes it in has its lineage and its verdict too.

    .sluice/records.json       manifests, evidence, verdicts, policies, waivers, retractions: each under its digest
    .sluice/blobs/<digest>     what these name: calibration rows, rows of evidence, raw responses

Nothing here knows of a place that models are sent to: `gather` says what travels, `parse` reads it back, and
`registry.carried.receiving` takes it in. The folder's name begins with a dot, so that no loader takes its files for a
model's.

What can be told is told before anything is taken in: every record is what its digest says, all that they name is there,
nothing is there that they do not name, and every verdict follows from its evidence when it is judged again. What cannot
be told is whether the answers were ever given: whoever adds a model trusts its sender that far.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from gates import canonical, verdicts
from gates.errors import IntegrityError, UsageError
from gates.evidence import check
from gates.policy import Policy, parse_policy
from gates.records import Digest, Evidence, Record, Verdict, Waiver
from registry import bulk, judging, lineage, output, retractions, waivers
from registry.manifests import Manifest
from registry.objects import Candidate, Objects
from registry.retractions import Retraction
from registry.sources import RECORDS as FOLDER

FORMAT: Literal[1] = 1
FILE = f"{FOLDER}/records.json"
LARGEST = 64 << 20
"""Bytes. A larger records.json is not read."""

_LONG_AGO = "0001-01-01"
_REMEDY = "ask its sender to push it again; or add a copy of the model's files alone, as a model without a past"

AnyRecord = TypeVar("AnyRecord", bound=Record)
Read = Callable[[str], bytes]
"""The bytes of a blob, by its digest."""


@dataclass(frozen=True, slots=True)
class Records:
    """What travels, by digest. `verdicts` stand in the order in which they were given, the newest last; `retractions`
    under the evidence that they take back. `blobs` are the bytes (count) of each blob that travels."""

    manifest: str
    manifests: dict[str, Manifest]
    evidence: dict[str, Evidence]
    verdicts: dict[str, Verdict]
    policies: dict[str, Policy]
    waivers: dict[str, Waiver]
    retractions: dict[str, Retraction]
    blobs: dict[str, int]

    @property
    def candidate(self) -> Manifest:
        """The manifest of the model that these records travel with."""
        return self.manifests[self.manifest]

    def files(self) -> dict[str, str]:
        """The digest of each blob, by the name of the file that it travels as."""
        return {f"{FOLDER}/blobs/{digest}": digest for digest in sorted(self.blobs)}

    def to_bytes(self) -> bytes:
        """The content of records.json."""
        return _Written(
            format=FORMAT,
            manifest=self.manifest,
            manifests=_values(self.manifests),
            evidence=_values(self.evidence),
            verdicts=_values(self.verdicts),
            policies=_values(self.policies),
            waivers=_values(self.waivers),
            retractions=_values(self.retractions),
            judged=tuple(self.verdicts),
            blobs=self.blobs,
        ).to_bytes()


def gather(store: Objects, candidate: Candidate) -> Records:
    """What travels with the candidate: its lineage, and all that is recorded about it and those it was compared with.

    A verdict that does not follow from its evidence any more (an earlier Sluice judged otherwise) is left out.

    Raises:
        IntegrityError: a record or a blob is missing or damaged.
    """
    waived = {each.identity(): each for each in waivers.of(store, candidate.digest)}
    found = _in_order(store, candidate.digest)
    policies = {each.policy: judging.stored_policy(store, each.policy) for each in found.values()}
    known = store.evidence(candidate.digest)
    for baseline in {each.baseline for each in found.values()} - {None, candidate.digest}:
        known |= store.evidence(str(baseline))
    kept = {digest: each for digest, each in found.items() if _follows(each, policies, known, waived, store.read)}
    if len(kept) < len(found):
        output.hint(f"left out: {len(found) - len(kept)} verdicts that do not follow from their evidence any more")
    about = list(dict.fromkeys([candidate.digest, *(each.baseline for each in kept.values() if each.baseline)]))
    manifests = dict(pair for digest in about for pair in lineage.ancestry(store, digest))
    evidence = {digest: each for digest, each in known.items() if each.candidate in about}
    return Records(
        manifest=candidate.digest,
        manifests=manifests,
        evidence=evidence,
        verdicts=kept,
        policies={each.policy: policies[each.policy] for each in kept.values()},
        waivers=waived,
        retractions={digest: each for one in about for digest, each in retractions.retracted(store, one).items()},
        blobs={digest: _size(store, digest) for digest in sorted(_named(manifests, evidence))},
    )


def parse(data: bytes, *, where: str) -> Records:
    """The records in `data`, each held against its digest and all against one another.

    Raises:
        UsageError: a newer Sluice wrote them.
        IntegrityError: they are damaged or forged.
    """
    value = canonical.loads(data, where=where)
    if isinstance(value, dict) and isinstance(written := value.get("format"), int) and written > FORMAT:
        raise UsageError(
            f"these records are of format {written}, and this Sluice reads format {FORMAT}",
            where=where,
            remedy="take a newer Sluice",
        )
    written = _Written.from_bytes(data, where=where)
    verdicts_ = _parsed(Verdict, written.verdicts, where)
    if sorted(written.judged) != sorted(verdicts_):
        raise refused("they do not say in which order the verdicts were given", where)
    records = Records(
        manifest=written.manifest,
        manifests=_parsed(Manifest, written.manifests, where),
        evidence=_parsed(Evidence, written.evidence, where),
        verdicts={digest: verdicts_[digest] for digest in written.judged},
        policies={digest: _policy(digest, each, where) for digest, each in written.policies.items()},
        waivers=_parsed(Waiver, written.waivers, where),
        retractions={digest: _record(Retraction, each, where) for digest, each in written.retractions.items()},
        blobs=written.blobs,
    )
    for complaint in _complaints(records):
        raise refused(complaint, where)
    return records


def demand_following(records: Records, read: Read, *, where: str) -> None:
    """
    Raises:
        IntegrityError: a verdict does not follow from its evidence.
    """
    for digest, verdict in records.verdicts.items():
        if not _follows(verdict, records.policies, records.evidence, records.waivers, read):
            raise refused(f"the verdict {digest[:12]} ({verdict.verdict}) does not follow from its evidence", where)


def refused(what: str, where: str) -> IntegrityError:
    """Says that records are not taken."""
    return IntegrityError(
        f"the records that came with this model cannot be trusted: {what}", where=where, remedy=_REMEDY
    )


class _Written(Record):
    """records.json: every record as the JSON value that it is; its canonical bytes have the digest it stands under."""

    format: Literal[1] = FORMAT
    manifest: Digest
    manifests: dict[Digest, dict[str, Any]]
    evidence: dict[Digest, dict[str, Any]]
    verdicts: dict[Digest, dict[str, Any]]
    policies: dict[Digest, dict[str, Any]]
    waivers: dict[Digest, dict[str, Any]]
    retractions: dict[Digest, dict[str, Any]]
    judged: tuple[Digest, ...]
    blobs: dict[Digest, int]


def _values(found: Mapping[str, Record | Policy]) -> dict[str, dict[str, Any]]:
    return {digest: canonical.loads(each.to_bytes()) for digest, each in found.items()}


def _in_order(store: Objects, manifest: str) -> dict[str, Verdict]:
    """The verdicts on a candidate, those that the log names last at the end."""
    found = store.verdicts(manifest)
    told = [each.about.get("verdict") for each in store.log.entries() if each.event == "verdict"]
    last = {digest: number for number, digest in enumerate(told)}
    return {digest: found[digest] for digest in sorted(found, key=lambda digest: (last.get(digest, -1), digest))}


def _follows(
    verdict: Verdict,
    policies: Mapping[str, Policy],
    known: Mapping[str, Evidence],
    waived: Mapping[str, Waiver],
    read: Read,
) -> bool:
    """Whether judging by the same evidence, under the same policy and waivers, comes to the same verdict."""
    ours, theirs = (
        {digest: known[digest] for digest in used if digest in known}
        for used in (verdict.evidence, verdict.baseline_evidence)
    )
    looked = {digest: check(each, read(each.rows) if each.rows else None) for digest, each in (ours | theirs).items()}
    again = verdicts.judge(
        policies[verdict.policy],
        candidate=verdict.candidate,
        evidence=ours,
        baseline=verdict.baseline,
        baseline_evidence=theirs,
        rows={digest: each.rows for digest, each in looked.items() if each.rows},
        complaints=[complaint for each in looked.values() for complaint in each.complaints],
        waivers=[waived[digest] for digest in verdict.waivers if digest in waived],
        today=_LONG_AGO,  # whether a waiver holds today is asked where the verdict is used
    )
    return judging.same(verdict, again)


def _named(manifests: Mapping[str, Manifest], evidence: Mapping[str, Evidence]) -> set[str]:
    """The blobs that the records name, besides the models' files."""
    rows = {each.inputs.mix.rows for each in manifests.values() if each.inputs.mix}
    return rows | {blob for each in evidence.values() for blob in (each.rows, each.responses) if blob}


def _size(store: Objects, digest: str) -> int:
    """The bytes of a blob, every one of which is read: calibration rows may be more than memory holds."""
    path = store.layout.blob(digest)
    if not path.is_file() or (found := bulk.hash_file(path))[0] != digest:
        raise IntegrityError(
            "this blob is missing or damaged, and a record names it", where=str(path), remedy="restore it from a backup"
        )
    return found[1]


def _parsed(kind: type[AnyRecord], values: Mapping[str, Any], where: str) -> dict[str, AnyRecord]:
    found = {digest: _record(kind, value, where) for digest, value in values.items()}
    for digest, each in found.items():
        if each.identity() != digest:
            raise refused(f"the {kind.__name__} {digest[:12]} is not what its digest says", where)
    return found


def _record(kind: type[AnyRecord], value: Any, where: str) -> AnyRecord:
    try:
        return kind.from_bytes(canonical.dumps(value))
    except (IntegrityError, ValueError) as error:
        raise refused(str(getattr(error, "what", error)), where) from None


def _policy(digest: str, value: Any, where: str) -> Policy:
    try:
        policy = parse_policy(canonical.dumps(value).decode(), where=where)
    except (UsageError, ValueError) as error:
        raise refused(f"the policy {digest[:12]} is none: {getattr(error, 'what', error)}", where) from None
    if policy.identity() != digest:
        raise refused(f"the policy {digest[:12]} is not what its digest says", where)
    return policy


def _complaints(records: Records) -> Iterator[str]:
    """What does not fit together. A record that nobody needs is refused too: nobody would look at it."""
    if records.manifest not in records.manifests:
        yield "the model's manifest is not among them"
        return
    baselines = {each.baseline for each in records.verdicts.values() if each.baseline}
    if missing := baselines - records.manifests.keys():
        yield f"the manifest of the baseline {min(missing)[:12]} is missing"
    needed = set(ancestors(records.manifests, {records.manifest, *baselines}))
    if missing := needed - records.manifests.keys():
        yield f"the lineage is not whole: the manifest {min(missing)[:12]} is missing"
    if more := records.manifests.keys() - needed:
        yield f"nothing leads to the manifest {min(more)[:12]}"
    for digest, verdict in records.verdicts.items():
        if verdict.candidate != records.manifest:
            yield f"the verdict {digest[:12]} is about another candidate"
        if verdict.policy not in records.policies:
            yield f"the policy of the verdict {digest[:12]} is missing"
        if not records.evidence.keys() >= {*verdict.evidence, *verdict.baseline_evidence}:
            yield f"evidence of the verdict {digest[:12]} is missing"
        if not records.waivers.keys() >= set(verdict.waivers):
            yield f"a waiver of the verdict {digest[:12]} is missing"
    if more := records.policies.keys() - {each.policy for each in records.verdicts.values()}:
        yield f"no verdict names the policy {min(more)[:12]}"
    about = {records.manifest, *baselines}
    if any(each.candidate not in about for each in records.evidence.values()):
        yield "there is evidence on a candidate that no verdict names"
    if any(each.candidate != records.manifest for each in records.waivers.values()):
        yield "there is a waiver for another candidate"
    for digest, taken_back in records.retractions.items():
        found = records.evidence.get(digest)
        if found is None or (taken_back.evidence, taken_back.candidate) != (digest, found.candidate):
            yield f"the retraction of {digest[:12]} takes back what is not there"
    if records.blobs.keys() != _named(records.manifests, records.evidence):
        yield "the blobs are not those that the records name"


def ancestors(manifests: Mapping[str, Manifest], starts: Iterable[str]) -> Iterator[str]:
    """`starts` and all that they were made from, as far as it is there."""
    for start in starts:
        digest: str | None = start
        while digest is not None:
            yield digest
            digest = manifests[digest].inputs.parent if digest in manifests else None
