"""All candidates at a glance: what each was made of, what it scored, what its verdict is, which one is served."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from gates import verdicts
from gates.errors import IntegrityError, UsageError
from gates.evidence import pools
from gates.records import Evidence, Verdict
from registry import channels, history, lineage, output, retractions, waivers
from registry.manifests import Manifest
from registry.store import Candidate, Store


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


def lines(store: Store) -> list[Line]:
    """Every candidate: a model before what was made from it, names in order. Damage is said of the one that has it."""
    served = _served(store)
    found: list[tuple[bool, Line]] = []
    known: dict[str, Manifest] = {}
    for name in store.names():
        by = tuple(channel for channel, candidate in served.items() if candidate == name)
        try:
            candidate = store.candidate(name)
            made_from = candidate.manifest.inputs.parent is not None
            found.append((made_from, _line(store, candidate, by, known)))
        except (IntegrityError, UsageError) as error:
            if os.path.lexists(store.layout.candidate(name)):  # otherwise it was removed at this moment
                found.append((True, Line(name=name, channels=by, damage=error.what)))
    return [line for _, line in sorted(found, key=lambda each: (each[0], each[1].name))]


def _served(store: Store) -> dict[str, str]:
    """What each channel serves, without those that are damaged: opening the registry has said so."""
    found = {}
    for channel in channels.names(store):
        with contextlib.suppress(IntegrityError):
            if (generation := channels.current(store, channel)) is not None:
                found[channel] = generation.candidate
    return found


def _line(store: Store, candidate: Candidate, served_by: tuple[str, ...], known: dict[str, Manifest]) -> Line:
    known[candidate.digest] = candidate.manifest
    mix, compression = history.pruned_with(lineage.chain(store, candidate, known))
    shape = candidate.manifest.shape
    return Line(
        name=candidate.name,
        channels=served_by,
        digest=candidate.digest,
        op=candidate.manifest.inputs.op,
        mix=mix,
        compression=compression,
        experts=shape.experts,
        quantization=shape.quantization,
        scores=scores(retractions.standing(store, candidate.digest)),
        verdict=standing(store, candidate),
        size=candidate.manifest.size,
    )


def scores(evidence: Mapping[str, Evidence]) -> dict[str, tuple[float, ...]]:
    """The score on each pack, pooled over all evidence taken under the same conditions, as gates pool it."""
    pooled = pools(evidence).items()
    found = {
        pack: tuple(float(each.overall.percent) for each in known.values() if each.overall.of) for pack, known in pooled
    }
    return {pack: values for pack, values in sorted(found.items()) if values}


def standing(store: Store, candidate: Candidate) -> str | None:
    """What the candidate stands under: of each policy, the worst verdict that still rests on all evidence there is.

    'stale' if there were verdicts and none does.
    """
    recorded = store.verdicts(candidate.digest)
    current = [verdict for verdict in recorded.values() if rests_on_all(store, verdict)]
    if not current:
        return "stale" if recorded else None
    policies = sorted({verdict.policy for verdict in current})
    by_policy = [verdicts.worst(each for each in current if each.policy == policy) for policy in policies]
    return ", ".join(dict.fromkeys(verdict.verdict for verdict in by_policy if verdict))


def rests_on_all(store: Store, verdict: Verdict) -> bool:
    """Whether the evidence is still what it was, and whatever was waived still is."""

    def agrees(digest: str | None, used: tuple[str, ...]) -> bool:
        return set(used) == (retractions.standing_digests(store, digest) if digest else set())

    if not (agrees(verdict.candidate, verdict.evidence) and agrees(verdict.baseline, verdict.baseline_evidence)):
        return False
    if not verdict.waivers:
        return True
    holding = {each.identity() for each in waivers.of(store, verdict.candidate) if each.expires >= waivers.today(store)}
    return holding.issuperset(verdict.waivers)


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


def evidence_cells(digest: str, each: Evidence, retraction: retractions.Retraction | None) -> tuple[str, ...]:
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
