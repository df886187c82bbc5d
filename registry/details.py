"""Everything that is known about one candidate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from gates.records import Evidence, Verdict
from gates.reports import Trained
from gates.reports.words import visible
from registry import generations, history, holding, lineage, output, plain, training
from registry.manifests import Manifest
from registry.store import Candidate, Store


@dataclass(frozen=True, slots=True)
class Attachment:
    """A file beside the model. `size` is in bytes; None if the file is gone."""

    name: str
    size: int | None
    path: str


@dataclass(frozen=True, slots=True)
class Details:
    name: str
    digest: str
    folder: str
    channels: tuple[str, ...]
    manifest: Manifest
    attachments: tuple[Attachment, ...]
    settings: dict[str, Any]
    """What made it what it is, over its whole ancestry (`registry.history.settings`)."""
    ancestry: tuple[str, ...]
    """Digests, newest first, beginning with its own."""
    evidence: dict[str, Evidence]
    verdicts: dict[str, Verdict]
    standing: str | None
    training: tuple[Trained, ...]
    """How it was trained, or one that it was made from; the newest first."""

    def to_json(self) -> dict[str, Any]:
        records = {
            "manifest": self.manifest.model_dump(mode="json"),
            "evidence": {digest: each.model_dump(mode="json") for digest, each in self.evidence.items()},
            "verdicts": {digest: each.model_dump(mode="json") for digest, each in self.verdicts.items()},
            "training": [each.model_dump(mode="json") | {"sentence": each.sentence} for each in self.training],
        }
        plain = {key: value for key, value in asdict(self).items() if key not in records}
        return plain | records


def of(store: Store, candidate: Candidate) -> Details:
    chain = lineage.chain(store, candidate)
    return Details(
        name=candidate.name,
        digest=candidate.digest,
        folder=str(candidate.resolved()),
        channels=tuple(channel for channel, name in generations.shown(store.layout).items() if name == candidate.name),
        manifest=candidate.manifest,
        attachments=tuple(_attachments(store, candidate.name)),
        settings={field: setting.value for field, setting in history.settings(chain).items()},
        ancestry=tuple(digest for digest, _ in chain),
        evidence=store.evidence(candidate.digest),
        verdicts=store.verdicts(candidate.digest),
        standing=holding.standing(store.layout, candidate.digest),
        training=tuple(training.of(store, candidate.name, chain)),
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
        *(f"    {part} = {text}" for each in found.settings.items() for part, text in history.flat(*each).items()),
        *(f"  training    {_of(found, each)}{visible(each.sentence)}" for each in found.training),
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
    for attached in found.attachments:
        size = "missing" if attached.size is None else output.size(attached.size)
        lines.append(f"  attachment  {attached.name}  {size}  {attached.path}")
    return "\n".join(lines)


def _of(found: Details, each: Trained) -> str:
    return "" if each.of == found.name else f"of {each.of}: "


def _attachments(store: Store, name: str) -> Iterator[Attachment]:
    folder = store.layout.candidate(name) / "attachments"
    for file, digest in plain.attachments(store.layout, name).items():
        blob = store.layout.blob(digest)
        yield Attachment(file, blob.stat().st_size if blob.is_file() else None, str(folder / file))
