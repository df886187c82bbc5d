"""Reports of verdicts: what the gates' report model needs, out of the store."""

from __future__ import annotations

import errno
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from gates.errors import SluiceError, UsageError
from gates.records import Evidence, Verdict
from gates.reports import Ancestor, Entry, Made, Overview, Report, Subject, build, page_of_all, render
from registry import comparison, fs, generations, history, holding, judging, lineage, output, overview, plain, training
from registry.plan import fitting
from registry.store import Candidate, Store


def report(store: Store, verdict: Verdict, *, card: int | None = None, read: judging.Read | None = None) -> Report:
    """Everything that is to be said of a verdict, from the registry as it is now.

    Args:
        card: the memory in bytes of the card that the candidate is for; without it nothing is said of the fit.
        read: as `registry.judging.judge` filled it.

    Raises:
        IntegrityError: the candidate's manifest, evidence or verdict is damaged.
    """
    ours, theirs = (_evidence(store, *side) for side in _sides(verdict))
    read = {} if read is None else read
    checked = {digest: judging.checked(store, digest, each, read) for digest, each in (ours | theirs).items()}
    return build(
        verdict,
        evidence=ours,
        baseline_evidence=theirs,
        rows={digest: each.rows for digest, each in checked.items() if each.rows},
        subject=subject(store, verdict, card=card),
        load=store.read,
    )


ENDINGS = {"junit": "xml"}
"""What a kind of report is called as a file, where it is not called as the kind is."""
PAGE_OF_ALL = "index.html"


def subject(store: Store, verdict: Verdict, *, card: int | None = None) -> Subject:
    """What the registry knows of a verdict's candidate and baseline; less, where an ancestor is damaged or gone."""
    named = _named(store)
    mine, served = named.get(verdict.candidate), generations.shown(store.layout)
    other = named.get(verdict.baseline) if verdict.baseline else None
    found: dict[str, object] = {
        "candidate": mine.name if mine else None,
        "baseline": other.name if other else None,
        "lineage": ancestors(store, verdict.candidate, named),
        "baseline_lineage": ancestors(store, verdict.baseline, named) if verdict.baseline else (),
        "promoted": tuple(channel for channel, name in served.items() if mine and name == mine.name),
        "stale": not holding.rests_on_all(store.layout, verdict),
    }
    if mine:
        found["size"] = mine.manifest.size
        found["attachments"] = tuple(plain.attachments(store.layout, mine.name))
        with suppress(SluiceError):  # what is damaged of its ancestors, verify says
            found["training"] = tuple(training.of(store, mine.name, lineage.chain(store, mine)))
        found["fit"] = fitting.sentence(mine, card) if card is not None else None
    if other:
        found["baseline_size"] = other.manifest.size
    if mine and other:
        compared = comparison.of(store, mine, other)
        found["differences"] = tuple(
            f"{each.word}: {history.shown(each.left)} / {history.shown(each.right)}" for each in compared.differences
        )
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


def of_all(store: Store, folder: Path | None = None) -> Overview:
    """Every candidate, and what was made from what; damage is said of the one that has it.

    Args:
        folder: where the page will lie; candidates whose own page lies there are linked to it.
    """
    entries = []
    for line in overview.lines(store.layout):
        page = _file(line.name, "html")
        entries.append(
            Entry(
                name=line.name,
                channels=line.channels,
                digest=line.digest,
                verdict=line.verdict,
                scores=dict(line.scores),
                mix=line.mix,
                compression=line.compression,
                experts=line.experts,
                quantization=line.quantization,
                size=line.size,
                damage=line.damage,
                page=page if folder is not None and (folder / page).is_file() else None,
            )
        )
    return Overview(candidates=tuple(entries), lineage=tuple(_made(lineage.trees(store))))


def write(folder: Path, name: str, kind: str, said: Report) -> Path:
    """Writes one report into `folder`, as one of `gates.reports.KINDS`.

    Raises:
        UsageError: it cannot be written.
    """
    return _write(folder / _file(name, kind), render(said, kind))


def write_of_all(store: Store, folder: Path) -> Path:
    """Writes the page of all candidates into `folder`, as index.html.

    Raises:
        UsageError: it cannot be written.
    """
    return _write(folder / PAGE_OF_ALL, page_of_all(of_all(store, folder)))


def _file(name: str, kind: str) -> str:
    """A report's file. No name has a ~ in it, so a candidate called index is in nobody's way."""
    file = f"{name}.{ENDINGS.get(kind, kind)}"
    return file if file != PAGE_OF_ALL else f"{name}~.{kind}"


def _made(nodes: Sequence[lineage.Node]) -> Iterator[Made]:
    """The trees, node after node, a parent before what was made from it."""
    below: list[tuple[lineage.Node, str | None]] = [(node, None) for node in reversed(nodes)]
    while below:
        node, parent = below.pop()
        yield Made(digest=node.digest, parent=parent, names=node.names, op=node.op, about=node.about)
        below += [(each, node.digest) for each in reversed(node.made)]


def _write(path: Path, data: bytes) -> Path:
    try:
        fs.make_folders(path.parent)
        path.write_bytes(data)
    except OSError as error:
        raise UsageError(
            f"the report cannot be written: {error.strerror}",
            where=str(path),
            remedy=output.remedy(error) if error.errno == errno.EROFS else "name another folder: --out FOLDER",
        ) from None
    return path


def _sides(verdict: Verdict) -> Iterator[tuple[str | None, tuple[str, ...]]]:
    yield verdict.candidate, verdict.evidence
    yield verdict.baseline, verdict.baseline_evidence


def _evidence(store: Store, manifest: str | None, used: tuple[str, ...]) -> dict[str, Evidence]:
    """What the verdict rests on, as far as it is still there."""
    there = store.evidence(manifest) if manifest else {}
    return {digest: there[digest] for digest in used if digest in there}


def _named(store: Store) -> dict[str, Candidate]:
    """The candidates by digest; of several names for one the first."""
    found: dict[str, Candidate] = {}
    for candidate in store.sound().values():
        found.setdefault(candidate.digest, candidate)
    return found


def ancestors(store: Store, digest: str, named: dict[str, Candidate] | None = None) -> tuple[Ancestor, ...]:
    """A candidate and what it was made from, for people, the newest first; nothing where one of them is damaged.

    Args:
        named: the candidates by digest, where they are known already.
    """
    named = _named(store) if named is None else named
    try:
        chain = tuple(lineage.ancestry(store, digest))
    except SluiceError:
        return ()
    return tuple(
        Ancestor(
            name=named[each].name if each in named else None,
            digest=each,
            op=manifest.inputs.op,
            settings=history.told(chain, number),
        )
        for number, (each, manifest) in enumerate(chain)
    )


def _cost(store: Store, verdict: Verdict) -> Iterator[str]:
    """What taking the evidence took, as the log has it."""
    for digest in verdict.evidence:
        entry = store.log.newest("evidence", evidence=digest)
        timings = entry.get("timings") if entry else None
        if entry and isinstance(timings, dict) and timings.get("wall_seconds"):
            seconds = timings["wall_seconds"]
            yield f"{entry['pack']}: {timings.get('tokens', 0)} tokens in {seconds:.{0 if seconds >= 10 else 1}f} s"
