"""Reports of verdicts: what the gates' report model needs, out of the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from gates.errors import SluiceError, UsageError
from gates.records import Evidence, Verdict
from gates.reports import Ancestor, Report, Subject, build, render
from registry import channels, comparison, fs, history, judging, lineage
from registry.store import Candidate, Store


def report(store: Store, verdict: Verdict) -> Report:
    """Everything that is to be said of a verdict, from the registry as it is now.

    Raises:
        IntegrityError: the candidate's manifest, evidence or verdict is damaged.
    """
    ours, theirs = (_evidence(store, *side) for side in _sides(verdict))
    checked = {digest: judging.checked(store, each) for digest, each in (ours | theirs).items()}
    return build(
        verdict,
        evidence=ours,
        baseline_evidence=theirs,
        rows={digest: each.rows for digest, each in checked.items() if each.rows},
        subject=subject(store, verdict),
        load=store.read,
    )


ENDINGS = {"junit": "xml"}
"""What a kind of report is called as a file, where it is not called as the kind is."""


def subject(store: Store, verdict: Verdict) -> Subject:
    """What the registry knows of a verdict's candidate and baseline; less, where an ancestor is damaged or gone."""
    named = _named(store)
    mine = named.get(verdict.candidate)
    other = named.get(verdict.baseline) if verdict.baseline else None
    found: dict[str, object] = {
        "candidate": mine.name if mine else None,
        "baseline": other.name if other else None,
        "lineage": _lineage(store, verdict.candidate, named),
        "baseline_lineage": _lineage(store, verdict.baseline, named) if verdict.baseline else (),
        "promoted": tuple(channel for channel, name in channels.served(store).items() if mine and name == mine.name),
    }
    if mine:
        found["size"] = mine.manifest.size
    if other:
        found["baseline_size"] = other.manifest.size
    if mine and other:
        compared = comparison.of(store, mine, other)
        found["differences"] = tuple(f"{each.word}: {each.left} / {each.right}" for each in compared.differences)
        between = [
            f"the control is {each.name}" if each.name else f"the control that is missing: {each.takes}"
            for each in compared.controls
        ]
        found["conclusion"] = "; ".join([compared.conclusion, *between])
    return Subject(**{"cost": tuple(_cost(store, verdict)), **found})


def latest(store: Store, name: str) -> Verdict:
    """The verdict on a candidate that the log names last.

    Raises:
        UsageError: it was never judged.
    """
    candidate = store.candidate(name)
    entry = store.log.newest("verdict", manifest=candidate.digest)
    verdict = store.verdicts(candidate.digest).get(str(entry["verdict"])) if entry else None
    if verdict is None:
        raise UsageError(f"{name} was never judged", remedy=f"registry gate {name} --policy FILE")
    return verdict


def write(folder: Path, name: str, kind: str, said: Report) -> Path:
    """Writes one report into `folder`, as one of `gates.reports.KINDS`.

    Raises:
        UsageError: it cannot be written.
    """
    return _write(folder / f"{name}.{ENDINGS.get(kind, kind)}", render(said, kind))


def _write(path: Path, data: bytes) -> Path:
    try:
        fs.make_folders(path.parent)
        path.write_bytes(data)
    except OSError as error:
        raise UsageError(f"the report cannot be written: {error.strerror}", where=str(path)) from None
    return path


def _sides(verdict: Verdict) -> Iterator[tuple[str | None, tuple[str, ...]]]:
    yield verdict.candidate, verdict.evidence
    yield verdict.baseline, verdict.baseline_evidence


def _evidence(store: Store, manifest: str | None, used: tuple[str, ...]) -> dict[str, Evidence]:
    """What the verdict rests on, as far as it is still there."""
    there = store.evidence(manifest) if manifest else {}
    return {digest: there[digest] for digest in used if digest in there}


def _named(store: Store) -> dict[str, Candidate]:
    """The candidates by digest; one that is damaged has none to give."""
    found: dict[str, Candidate] = {}
    for name in store.names():
        try:
            candidate = store.candidate(name)
        except SluiceError:
            continue
        found.setdefault(candidate.digest, candidate)
    return found


def _lineage(store: Store, digest: str, named: dict[str, Candidate]) -> tuple[Ancestor, ...]:
    try:
        chain = tuple(lineage.ancestry(store, digest))
    except SluiceError:
        return ()
    found = []
    for number, (each, manifest) in enumerate(chain):
        own = history.settings(chain[number : number + 2] if manifest.inputs.parent else chain[number:])
        step = {field: str(setting.value) for field, setting in own.items() if setting.value is not None}
        if manifest.inputs.parent is not None:
            step = {field: value for field, value in step.items() if field != history.BASE}
        name = named[each].name if each in named else None
        found.append(Ancestor(name=name, digest=each, op=manifest.inputs.op, settings=step))
    return tuple(found)


def _cost(store: Store, verdict: Verdict) -> Iterator[str]:
    """What taking the evidence took, as the log has it."""
    for digest in verdict.evidence:
        entry = store.log.newest("evidence", evidence=digest)
        timings = entry.get("timings") if entry else None
        if entry and isinstance(timings, dict) and timings.get("wall_seconds"):
            yield f"{entry['pack']}: {timings.get('tokens', 0)} tokens in {timings['wall_seconds']:.0f} s"
