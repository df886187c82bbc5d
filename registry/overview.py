"""All candidates at a glance: what each was made of, what it scored, what its verdict is, which one is served.

`registry ls` must feel instant, so records are read as plain JSON here (`registry.plain`). Their classes are imported
only where something is wrong with a candidate, to say what.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gates import pooling
from gates.errors import SluiceError
from gates.pooling import Points, Run
from registry import holding, output, plain, settled
from registry.layout import Layout

if TYPE_CHECKING:
    from gates.records import Evidence
    from registry.retractions import Retraction

_MISSHAPEN = (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, RecursionError)


@dataclass(frozen=True, slots=True)
class Line:
    """One candidate. `scores` are 0-100 by pack, one number for each set of conditions that it was taken under.

    Of one that is damaged, which `damage` says, nothing is known but its name and the channels that serve it.
    """

    name: str
    channels: tuple[str, ...]
    digest: str | None = None
    op: str | None = None
    mix: str | None = None
    compression: str | None = None
    experts: int | None = None
    quantization: str | None = None
    scores: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    verdict: str | None = None
    size: int | None = None
    damage: str | None = None


def show(root: Path, *, json: bool) -> None:
    """Prints the candidates of the registry in `root`: what is served and what is damaged is mended or said first.

    Raises:
        UsageError: there is no registry, or a newer Sluice made it.
        IntegrityError: format.json is damaged.
    """
    layout = Layout(root.absolute())
    served = settled.served(layout)
    if served is None:
        from registry.store import Store

        Store.open(root)
    found = lines(layout, served)
    if json:
        output.data([asdict(line) for line in found])
    elif found:
        output.text(render(found))
    else:
        output.hint("no candidates yet; take one in with: registry add NAME FOLDER")
    for line in found:
        if line.damage:
            output.hint(f"{line.name} is damaged: {line.damage}; registry verify {line.name} says what is wrong")


def lines(layout: Layout, served: Mapping[str, str] | None = None) -> list[Line]:
    """Every candidate: a model before what was made from it, names in order. Damage is said of the one that has it.

    Args:
        served: the candidate of each channel, if that was found already (`settled.served`).
    """
    if served is None:
        served = settled.served(layout)
    if served is None:
        served = _served(layout)
    found: list[tuple[bool, Line]] = []
    known: dict[str, dict[str, Any]] = {}
    for name in plain.names(layout):
        by = tuple(channel for channel, candidate in served.items() if candidate == name)
        try:
            found.append(_line(layout, name, by, known))
        except SluiceError as error:
            if os.path.lexists(layout.candidate(name)):  # otherwise it was removed at this moment
                found.append((True, Line(name=name, channels=by, damage=error.what)))
        except _MISSHAPEN:
            found.append((True, Line(name=name, channels=by, damage=_damage(layout, name))))
    return [line for _, line in sorted(found, key=lambda each: (each[0], each[1].name))]


def render(found: list[Line]) -> str:
    """The lines as a table in plain text, columns aligned."""
    packs = sorted({pack for line in found for pack in line.scores})
    head = ["candidate", "mix", "depth", "experts", *packs, "verdict", "size", ""]
    return "\n".join(columns([head, *(_cells(line, packs) for line in found)]))


def columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """The rows with their cells aligned, a line each."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def scores_text(scores: Sequence[float]) -> str:
    """Scores for people; several stand for several sets of conditions, which are never averaged."""
    return " / ".join(f"{score:.1f}" for score in scores) or "-"


def evidence_cells(digest: str, each: Evidence, retraction: Retraction | None) -> tuple[str, ...]:
    """One evidence as a line of a table."""
    overall, conditions = each.totals.overall, each.conditions
    return (
        digest[:12],
        each.pack,
        f"{100 * overall.points / overall.of:.1f}" if overall.of else "-",
        str(overall.items),
        str(each.repeats),
        str(each.totals.missing),
        " ".join(filter(None, (conditions.engine, conditions.engine_version))),
        f"retracted: {retraction.reason}" if retraction else "",
    )


def _cells(line: Line, packs: list[str]) -> list[str]:
    return [
        line.name,
        line.mix or "-",
        line.compression or "-",
        " ".join(filter(None, (str(line.experts or "-"), line.quantization))),
        *(scores_text(line.scores.get(pack, ())) for pack in packs),
        "damaged" if line.damage else line.verdict or "-",
        "-" if line.size is None else output.size(line.size),
        "".join(f"← {channel}" for channel in line.channels),
    ]


def _served(layout: Layout) -> dict[str, str]:
    from registry import generations

    return generations.shown(layout)


def _line(layout: Layout, name: str, served_by: tuple[str, ...], known: dict[str, dict[str, Any]]) -> tuple[bool, Line]:
    """Whether the candidate was made from another, and its line.

    Raises:
        SluiceError: something of it is damaged.
        one of _MISSHAPEN: something is not what it should be; which, its class says.
    """
    digest = plain.linked_manifest(layout.candidate(name))
    manifest, *above = _ancestry(layout, digest, known)
    mix, compression = _pruned_with([manifest, *above])
    shape = manifest["shape"]
    line = Line(
        name=name,
        channels=served_by,
        digest=digest,
        op=_text(manifest["inputs"]["op"]),
        mix=mix,
        compression=compression,
        experts=int(shape["experts"]),
        quantization=_text(shape["quantization"]),
        scores=_scores(layout, digest),
        verdict=holding.standing(layout, digest),
        size=sum(file["size"] for file in manifest["files"].values()),
    )
    return bool(above), line


def _ancestry(layout: Layout, digest: str, known: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """A manifest and those it was made from, newest first. What is read is added to `known`."""
    next_digest: str | None = digest
    while next_digest is not None:
        manifest = known.get(next_digest)
        if manifest is None:
            manifest = known[next_digest] = plain.manifest(layout, next_digest)
        yield manifest
        next_digest = manifest["inputs"]["parent"]


def _pruned_with(chain: Sequence[Mapping[str, Any]]) -> tuple[str | None, str | None]:
    """The calibration mix's name and the compression (decimal text) of the newest prune in a chain."""
    for inputs in (manifest["inputs"] for manifest in chain):
        if inputs["op"] == "prune":
            mix, compression = inputs.get("mix"), inputs["settings"].get("compression")
            return _text(mix["name"] if mix else None), None if compression is None else str(compression)
    return None, None


def _scores(layout: Layout, manifest: str) -> dict[str, tuple[float, ...]]:
    """The score on each pack, pooled over all evidence taken under the same conditions, as gates pool it."""
    recorded = plain.records(layout.evidence(manifest), manifest)
    gone = plain.digests(layout.retractions(manifest)) if recorded else []
    return pooling.scores({digest: _run(each) for digest, each in recorded.items() if digest not in gone})


def _run(evidence: Mapping[str, Any]) -> Run:
    totals = evidence["totals"]
    overall = totals["overall"]
    return Run(
        pack=_text(evidence["pack"]) or "",
        rows=evidence.get("rows"),
        conditions=evidence["conditions"],
        missing=totals["missing"],
        overall=Points(float(overall["points"]), float(overall["of"]), overall["items"]),
    )


def _text(value: object) -> str | None:
    """
    Raises:
        TypeError: it is neither text nor nothing.
    """
    if value is None or isinstance(value, str):
        return value
    raise TypeError(f"{value!r} is no text")


def _damage(layout: Layout, name: str) -> str:
    """What is wrong with a candidate whose records are not what they should be, in the words of their classes."""
    from registry import lineage
    from registry.store import Store

    store = Store(layout)
    try:
        candidate = store.candidate(name)
        lineage.chain(store, candidate)
        store.evidence(candidate.digest)
        store.verdicts(candidate.digest)
    except SluiceError as error:
        return error.what
    return "its records cannot be read"
