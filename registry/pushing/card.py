"""The model card: what the model is, what it was made from, how it scored, how to serve it. Nothing in it is a time, so
that the same candidate gives the same card."""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from gates.errors import UsageError
from gates.reports import Report, render
from gates.reports.markdown import inert
from gates.reports.words import between, number, signed
from gates.units import size
from registry import reporting, retractions, serving
from registry.manifests import Manifest
from registry.pushing.base import Base
from registry.pushing.eligibility import Approval
from registry.remotes.hub import SCHEME
from registry.store import Candidate, Store

if TYPE_CHECKING:
    from jinja2 import Template


def card(
    store: Store,
    candidate: Candidate,
    target: str,
    chain: list[tuple[str, Manifest]],
    *,
    approval: Approval,
    base: Base,
    records: bool,
) -> bytes:
    """README.md for `target`: YAML that the Hub reads, then Markdown for people.

    Text that comes from outside (names, settings, reasons) is shown as it is and does nothing.

    Args:
        target: where it is sent, as `registry add` takes it.
        chain: the candidate's manifest and those that it was made from, the newest first.
        records: whether they travel with it.
    """
    report = reporting.report(store, approval.verdict) if approval.verdict else None
    serve, judged_so = _serve(store, candidate, target)
    text = _template().render(
        front=_front(candidate.manifest, chain, base),
        title=target.rpartition("/")[2],
        name=candidate.name,
        target=target,
        manifest=candidate.digest,
        shape=candidate.manifest.shape,
        size=size(candidate.manifest.size),
        approval=approval,
        base=base,
        steps=list(reversed(reporting.ancestors(store, candidate.digest))),
        mixes=[each.inputs.mix for _, each in reversed(chain) if each.inputs.mix],
        report=report,
        gates=_gates(report) if report else None,
        scores=list(retractions.standing(store, candidate.digest).values()),
        serve=serve,
        judged_so=judged_so,
        records=records,
    )
    return text.encode()


def _front(manifest: Manifest, chain: list[tuple[str, Manifest]], base: Base) -> str:
    """What the Hub reads of a card. It knows no relation for a pruned model: fine-tuned is the nearest."""
    ops = [each.inputs.op for _, each in chain]
    about: dict[str, Any] = {}
    if base.repository:
        about["base_model"] = [base.repository]
        if len(ops) > 1:
            about["base_model_relation"] = "quantized" if "quantize" in ops else "finetune"
    about["library_name"] = "transformers"
    about |= {"pipeline_tag": "text-generation", **base.about}
    kinds = {"prune": "pruned", "quantize": "quantized"}
    tags = ["sluice", "mixture-of-experts", *(kinds[op] for op in kinds if op in ops)]
    if manifest.shape.quantization:
        tags.append(manifest.shape.quantization.partition("-")[0])
    return yaml.safe_dump(about | {"tags": tags}, sort_keys=False, allow_unicode=True)


def _gates(report: Report) -> str:
    """The report of the gates, below a heading of the card's."""
    lines = render(report, "md").decode().splitlines()
    return "\n".join(f"#{line}" if line.startswith("## ") else line for line in lines)


def _serve(store: Store, candidate: Candidate, target: str) -> tuple[str, bool]:
    """The command that serves it, from the Hub or from a folder, and whether it was judged under these flags."""
    source = target.removeprefix(SCHEME) if target.startswith(SCHEME) else candidate.name
    plain = shlex.join(["vllm", "serve", source])
    try:
        judged = serving.agreed(retractions.standing(store, candidate.digest), name=candidate.name)
    except UsageError:
        return plain, False
    words = serving.words(
        Path(source),
        served_as=candidate.name,
        host=serving.HOST,
        port=serving.PORT,
        reasoning_parser=str(judged.reasoning_parser),
        tool_parser=str(judged.tool_parser),
        flags=judged.server_flags or {},
    )
    command = shlex.join(["vllm", *words])
    # a flag with a line's end in it would leave the block that shows the command
    return (command, True) if command.isprintable() else (plain, False)


@cache
def _template() -> Template:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Markdown is not HTML: what comes from outside passes `inert` instead
    environment = Environment(  # noqa: S701
        loader=FileSystemLoader(Path(__file__).with_name("templates")),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "inert": lambda value: inert(str(value)),
        "number": number,
        "signed": signed,
        "between": lambda ends: between(ends, sign=False),
        "between_signed": lambda ends: between(ends, sign=True),
    }
    return environment.get_template("card.md.j2")
