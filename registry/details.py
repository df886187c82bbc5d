"""Everything that is known about one candidate."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from gates.records import Evidence, Verdict
from registry import channels, history, holding, lineage, output
from registry.manifests import Manifest
from registry.store import Candidate, Store


@dataclass(frozen=True, slots=True)
class Details:
    name: str
    digest: str
    folder: str
    channels: tuple[str, ...]
    manifest: Manifest
    settings: dict[str, Any]
    """What made it what it is, over its whole ancestry (`registry.history.settings`)."""
    ancestry: tuple[str, ...]
    """Digests, newest first, beginning with its own."""
    evidence: dict[str, Evidence]
    verdicts: dict[str, Verdict]
    standing: str | None

    def to_json(self) -> dict[str, Any]:
        records = {
            "manifest": self.manifest.model_dump(mode="json"),
            "evidence": {digest: each.model_dump(mode="json") for digest, each in self.evidence.items()},
            "verdicts": {digest: each.model_dump(mode="json") for digest, each in self.verdicts.items()},
        }
        plain = {key: value for key, value in asdict(self).items() if key not in records}
        return plain | records


def of(store: Store, candidate: Candidate) -> Details:
    chain = lineage.chain(store, candidate)
    return Details(
        name=candidate.name,
        digest=candidate.digest,
        folder=str(candidate.resolved()),
        channels=tuple(channel for channel, name in channels.shown(store).items() if name == candidate.name),
        manifest=candidate.manifest,
        settings={field: setting.value for field, setting in history.settings(chain).items()},
        ancestry=tuple(digest for digest, _ in chain),
        evidence=store.evidence(candidate.digest),
        verdicts=store.verdicts(candidate.digest),
        standing=holding.standing(store.layout, candidate.digest),
    )


def render(found: Details) -> str:
    shape = found.manifest.shape
    routing = f"{shape.layers} layers, {shape.experts} experts, top-{shape.top_k}"
    lines = [
        f"{found.name}  {found.digest}",
        f"  served as   {', '.join(found.channels) or 'nothing'}",
        f"  verdict     {found.standing or 'none yet'}",
        f"  model       {shape.family}, {routing}, {shape.quantization or 'not quantised'}",
        f"  size        {output.size(found.manifest.size)}",
        f"  folder      {found.folder}",
        f"  made from   {' ← '.join(digest[:12] for digest in found.ancestry)}",
        *(f"    {field} = {value}" for field, value in found.settings.items()),
    ]
    for each in found.evidence.values():
        overall = each.totals.overall
        score = f"{100 * overall.points / overall.of:.1f}" if overall.of else "-"
        conditions = each.conditions
        engine = " ".join(filter(None, (conditions.engine, conditions.engine_version)))
        lines.append(
            f"  evidence    {each.pack}: {score} ({overall.items} items, {each.totals.missing} missing, {engine})"
        )
    lines += [f"  file        {name}  {output.size(file.size)}" for name, file in sorted(found.manifest.files.items())]
    return "\n".join(lines)
