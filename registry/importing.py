"""Taking other tools' results in as evidence of a candidate. What they mean, `gates.importers` says.

All files are read and everything in them is checked before anything is recorded, so that nothing is half added.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gates import canonical, evidence, importers
from gates.errors import InvalidEvidence, UsageError
from gates.importers import totals
from gates.importers.lm_eval_conditions import TOOL as LM_EVAL
from gates.importers.source import LARGEST, Choice, Imported, Source, known
from gates.records import Evidence
from registry import output, retractions
from registry.store import Candidate, Store

_LONG = 2**26
"""Bytes that take seconds to read."""


@dataclass(frozen=True, slots=True)
class Added:
    """One evidence. `new` is false where the registry had it; `retracted` then says why it counts not, if so."""

    digest: str
    evidence: Evidence
    new: bool
    notes: tuple[str, ...]
    retracted: str | None = None


def add(
    store: Store,
    candidate: Candidate,
    files: Sequence[Path],
    *,
    tool: str | None = None,
    choice: Choice | None = None,
    pack: str | None = None,
    stated: Sequence[str] = (),
    totals_alone: bool = False,
) -> list[Added]:
    """Records what `files` say of the candidate, and logs it. The same files again change nothing.

    Args:
        tool: whose files these are (`gates.importers.TOOLS`); without it that is seen from what is in them.
        pack: the name of the pack, where the files hold one.
        stated: conditions that the source leaves out, as "reasoning_parser=qwen3".
        totals_alone: leave the rows out.

    Raises:
        UsageError, InvalidEvidence: as `gates.importers.read`; or a condition is stated otherwise than in the source.
        IntegrityError: a record of the candidate is damaged.
    """
    sources = [_read(path) for path in files]
    found = importers.read(sources, tool=tool, choice=choice)
    if pack is not None:
        found = _named(found, pack)
    claimed = _claimed(stated)
    records = [_record(candidate, each, claimed, sources, totals_alone=totals_alone) for each in found]
    before = set(store.evidence_digests(candidate.digest))
    gone = retractions.retracted(store, candidate.digest)
    added = []
    for record, rows, notes in records:
        digest = store.add_evidence(record, rows=rows, responses=b"", timings={})
        reason = gone[digest].reason if digest in gone else None
        named = _of_another(candidate, record.recorded)
        added.append(Added(digest, record, digest not in before, (*named, *notes), reason))
        before.add(digest)
    return added


def _read(path: Path) -> Source:
    try:
        size = path.stat().st_size
        if path.is_dir():
            raise UsageError(
                "this is a folder", where=str(path), remedy=f"name the files in it: {path}/results_*.json, for instance"
            )
        if not path.is_file():  # a pipe may wait for ever, and /dev/zero has no end
            raise UsageError("this is no regular file", where=str(path), remedy="write it into a file first")
        if size > LARGEST:
            raise UsageError(
                f"this is larger than {LARGEST >> 30} GiB", where=str(path), remedy="no result is so large"
            )
        if size > _LONG:
            output.hint(f"reading {path.name}, {size >> 20} MiB")
        return Source(path.name, path.read_bytes())
    except OSError as error:
        raise UsageError(
            f"the file cannot be read: {error.strerror}", where=str(path), remedy="name the files that the tool wrote"
        ) from None


def _of_another(candidate: Candidate, recorded: Mapping[str, Any]) -> list[str]:
    """A word to whoever gave the wrong file, where the model that it names does not look like the candidate."""
    said = recorded.get("model_name") if recorded.get("tool") == LM_EVAL else recorded.get("model")
    if not isinstance(said, str) or not said:
        return []
    own, *parts = (re.sub("[^a-z0-9]", "", each.lower()) for each in (candidate.name, *said.split("/")))
    if any(own in part or (len(part) > 2 and part in own) for part in parts):
        return []
    return [f"the file says that it is of the model {said}; see that this is {candidate.name}"]


def _named(found: Sequence[Imported], pack: str) -> list[Imported]:
    if not re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,63}", pack):
        raise UsageError(
            f"--pack {pack!r} is no pack's name", remedy="up to 64 small letters, digits, dots, dashes and underscores"
        )
    there = sorted({each.pack for each in found})
    if len(there) > 1:
        raise UsageError(
            f"--pack names one pack, and there are {len(there)} here: {', '.join(there[:6])}",
            remedy="choose one of them with --task as well",
        )
    return [replace(each, pack=pack) for each in found]


def _claimed(stated: Sequence[str]) -> dict[str, Any]:
    """What a person says of the conditions, read as a file of totals is."""
    fields = list(totals.Stated.model_fields)
    claimed: dict[str, Any] = {}
    for each in stated:
        field, given, value = each.partition("=")
        if field not in fields or not given or field in claimed:
            raise UsageError(
                f"--state {each!r} states no condition" if field not in claimed else f"{field} is stated twice",
                remedy=f"write FIELD=VALUE; the fields are {', '.join(fields)}",
            )
        claimed[field] = totals.stated(field, value)
    return totals.conditions_of(claimed)


def _record(
    candidate: Candidate, found: Imported, claimed: Mapping[str, Any], sources: Sequence[Source], *, totals_alone: bool
) -> tuple[Evidence, bytes, tuple[str, ...]]:
    conditions, where = (
        found.conditions.model_dump(mode="json", exclude_unset=True),
        ", ".join(file.name for file in sources),
    )
    for field, value in claimed.items():
        if field in conditions and conditions[field] != value:
            raise UsageError(
                f"--state {field}: the files state another: {evidence.flat(conditions[field])}",
                where=where,
                remedy="state only what the files leave out",
            )
    rows = b"" if totals_alone else found.written()
    recorded = {**found.recorded, "files": sorted(canonical.digest(file.data) for file in sources)} | (
        {"stated": sorted(claimed)} if claimed else {}
    )
    record = Evidence(
        format=1,
        candidate=candidate.digest,
        pack=found.pack,
        repeats=found.repeats,
        conditions=known(**conditions, **{field: claimed[field] for field in claimed.keys() - conditions.keys()}),
        totals=found.totals,
        **({"rows": canonical.digest(rows)} if rows else {}),
        recorded=recorded,
    )
    if complaints := evidence.check(record, rows or None).complaints:
        raise InvalidEvidence(
            f"{found.pack}: {complaints[0]}", where=where, remedy="nothing was added; see to the source"
        )
    return record, rows, found.notes
