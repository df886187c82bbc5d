"""All candidates at a glance: what each was made of, what it scored, what its verdict is, which one is served."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gates import verdicts
from gates.evidence import pools
from gates.records import Evidence, Verdict
from registry import channels, lineage, output
from registry.store import Candidate, Store


@dataclass(frozen=True, slots=True)
class Line:
    """One candidate. `scores` are 0-100 by pack, one number for each set of conditions that it was taken under."""

    name: str
    digest: str
    op: str
    mix: str | None
    compression: str | None
    experts: int
    quantization: str | None
    scores: Mapping[str, tuple[float, ...]]
    verdict: str | None
    size: int
    channels: tuple[str, ...]


def lines(store: Store) -> list[Line]:
    """Every candidate: a model before what was made from it, names in order."""
    served = channels.served(store)
    candidates = [store.candidate(name) for name in store.names()]
    depth = {candidate.name: sum(1 for _ in lineage.ancestry(store, candidate.digest)) for candidate in candidates}
    ordered = sorted(candidates, key=lambda candidate: (depth[candidate.name] > 1, candidate.name))
    return [_line(store, candidate, served) for candidate in ordered]


def _line(store: Store, candidate: Candidate, served: Mapping[str, str]) -> Line:
    mix, compression = lineage.pruned_with(store, candidate)
    shape = candidate.manifest.shape
    return Line(
        name=candidate.name,
        digest=candidate.digest,
        op=candidate.manifest.inputs.op,
        mix=mix,
        compression=compression,
        experts=shape.experts,
        quantization=shape.quantization,
        scores=scores(store.evidence(candidate.digest)),
        verdict=standing(store, candidate),
        size=candidate.manifest.size,
        channels=tuple(channel for channel, name in served.items() if name == candidate.name),
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
    current = [verdict for verdict in recorded.values() if _rests_on_all(store, verdict)]
    if not current:
        return "stale" if recorded else None
    policies = sorted({verdict.policy for verdict in current})
    by_policy = [verdicts.worst(each for each in current if each.policy == policy) for policy in policies]
    return ", ".join(dict.fromkeys(verdict.verdict for verdict in by_policy if verdict))


def _rests_on_all(store: Store, verdict: Verdict) -> bool:
    def agrees(digest: str | None, used: tuple[str, ...]) -> bool:
        return set(used) == (set(store.evidence_digests(digest)) if digest else set())

    return agrees(verdict.candidate, verdict.evidence) and agrees(verdict.baseline, verdict.baseline_evidence)


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


def _cells(line: Line, packs: list[str]) -> list[str]:
    return [
        line.name,
        line.mix or "-",
        line.compression or "-",
        f"{line.experts}" + (f" {line.quantization}" if line.quantization else ""),
        *(scores_text(line.scores.get(pack, ())) for pack in packs),
        line.verdict or "-",
        output.size(line.size),
        "".join(f"← {channel}" for channel in line.channels),
    ]
