"""Evidence, policies, verdicts: gate, report, waive, evidence, policy."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gates.errors import UsageError
from registry import output
from registry.commands import CandidateName, Channel, Json, Root, demand_one, memory_of, opened
from registry.layout import ROOT

if TYPE_CHECKING:
    from gates.records import Verdict
    from gates.reports import Report
    from registry.importing import Added
    from registry.store import Store

app = typer.Typer(rich_markup_mode=None)
policies = typer.Typer(help="What policies demand, before they judge.", no_args_is_help=True, rich_markup_mode=None)
evidence = typer.Typer(help="What candidates scored.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(policies, name="policy")
app.add_typer(evidence, name="evidence")

PolicyFile = Annotated[
    Path | None, typer.Option(help="The policy that judges: a YAML file. Without it, the one that the channel has.")
]
Kinds = Annotated[
    str | None, typer.Option("--report", metavar="KINDS", help="Also write reports: any of md,json,junit,html.")
]
Out = Annotated[Path, typer.Option(help="The folder that reports are written to.")]

_ALONE = "; until they are stated (--state) the items are compared with no others. --totals-only takes the totals alone"

CardMemory = Annotated[
    str | None,
    typer.Option(help="The card's memory (31.84 is GiB; or 24GiB): reports say whether it fits.", envvar="SLUICE_CARD"),
]


@app.command()
def gate(
    name: Annotated[str | None, typer.Argument(help="A candidate's name, or a channel's.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every candidate that was evaluated.")] = False,
    policy: PolicyFile = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="A candidate or a channel to compare with; without it, rules that compare are not judged."),
    ] = None,
    channel: Channel = "best",
    report: Kinds = None,
    out: Out = Path("reports"),
    card: CardMemory = None,
    root: Root = ROOT,
    json: Json = False,
) -> int:
    """Judge a candidate by all its evidence.

    registry gate v7b --policy policies/toy.yaml --baseline toy --report md,html

    Exit code: 0 Pass, 1 a gate failed, 3 Inconclusive, 4 Invalid. With --all it is that of the worst verdict; where
    nothing was evaluated it is 3.
    """
    from registry import judging, reporting

    demand_one(name, every, "gate")
    kinds = _kinds(report)
    store = opened(root)
    rules = judging.policy_of(store, policy, channel=channel)
    names = judging.evaluated(store, other_than=baseline) if every else [name or ""]
    memory = memory_of(card, "--card") if card is not None else None
    verdicts = {}
    for each in names:
        read: judging.Read = {}
        verdicts[each] = judging.judge(store, each, policy=rules, baseline=baseline, read=read)
        if kinds:
            said = reporting.report(store, verdicts[each], card=memory, read=read)
            for kind in kinds:
                output.hint(f"report: {reporting.write(out, each, kind, said)}")
    if rules.compared() and baseline is None:
        output.hint(f"the policy {rules.name} compares with a baseline; name one: --baseline NAME")
    if json:
        shown = {each: verdict.model_dump(mode="json") for each, verdict in verdicts.items()}
        output.data(shown if every else shown[names[0]])
    else:
        for each, verdict in verdicts.items():
            _print_verdict(each, verdict)
    return judging.worst_exit_code(verdicts.values())


@app.command("report")
def report_(
    name: Annotated[str | None, typer.Argument(help="A candidate's name, or a channel's.")] = None,
    every: Annotated[bool, typer.Option("--all", help="One page of all candidates, index.html.")] = False,
    kinds: Annotated[str, typer.Option("--as", metavar="KINDS", help="Any of md,json,junit,html.")] = "html",
    out: Out = Path("reports"),
    card: CardMemory = None,
    root: Root = ROOT,
    json: Json = False,
) -> None:
    """Write reports of the newest verdict, or of all candidates.

    Judges nothing; the newest verdict is that of the last registry gate.

    registry report v7b --as html,md

    registry report --all
    """
    from registry import reporting

    demand_one(name, every, "report")
    store = opened(root)
    if json:
        said = reporting.of_all(store) if name is None else _said(store, name, card)
        output.data(said.model_dump(mode="json"))
    elif name is None:
        output.text(str(reporting.write_of_all(store, out)))
    else:
        found = _said(store, name, card)
        for kind in _kinds(kinds):
            output.text(str(reporting.write(out, store.candidate(name).name, kind, found)))


@app.command()
def waive(
    name: CandidateName,
    gate_name: Annotated[str, typer.Option("--gate", metavar="GATE", help="The gate to let pass, such as Toolcall.")],
    reason: Annotated[str, typer.Option(help="Why.")],
    until: Annotated[str, typer.Option(help="The last day on which it holds (UTC): 2026-12-31.")],
    policy: PolicyFile = None,
    channel: Channel = "best",
    by: Annotated[str | None, typer.Option(help="Who decided; without it, who runs this.")] = None,
    root: Root = ROOT,
) -> None:
    """Let a gate pass that the evidence does not decide.

    Where the policy allows it. Judge again afterwards.
    """
    from registry import judging, waivers

    store = opened(root)
    rules = judging.policy_of(store, policy, channel=channel)
    waiver = waivers.waive(store, store.candidate(name), rules, gate=gate_name, reason=reason, until=until, by=by)
    output.text(f"{name}: {waiver.gate} is let pass by {waiver.by} until {waiver.expires}")


@evidence.command("add")
def evidence_add(
    name: CandidateName,
    files: Annotated[list[Path], typer.Argument(help="What the tool wrote; for lm-eval with its samples_*.jsonl.")],
    tool: Annotated[
        str | None,
        typer.Option(
            "--from", metavar="TOOL", help="lm-eval, inspect, benchlocal, evalplus or totals; seen by itself."
        ),
    ] = None,
    pack: Annotated[str | None, typer.Option(help="The pack's name; without it the tool's name for the task.")] = None,
    metric: Annotated[
        str | None, typer.Option(help="The metric that counts, such as acc_norm; without it the first score.")
    ] = None,
    task: Annotated[str | None, typer.Option(help="The task (pack) to take, of several.")] = None,
    model: Annotated[str | None, typer.Option(help="The model to take, of several in a BenchLocal summary.")] = None,
    state: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD=VALUE", help="A condition you know and the files leave out. May be repeated."),
    ] = None,
    totals_only: Annotated[
        bool, typer.Option("--totals-only", help="Leave the items out: totals alone may be compared with less known.")
    ] = False,
    root: Root = ROOT,
    json: Json = False,
) -> None:
    """Take in what another tool scored.

    That is lm-eval, Inspect, BenchLocal, EvalPlus, or totals in a YAML file.

    registry evidence add v7b results_*.json samples_*.jsonl

    Conditions that the files do not state stay unknown, and scores by item under conditions that are not all known are
    compared with no other. State what you know (--state tool_parser=hermes), or take the totals alone.
    """
    from gates.evidence import unknown
    from gates.importers.source import Choice
    from registry import importing

    store = opened(root)
    candidate = store.candidate(name)
    added = importing.add(
        store,
        candidate,
        files,
        tool=tool,
        choice=Choice(metric=metric, task=task, model=model),
        pack=pack,
        stated=state or [],
        totals_alone=totals_only,
    )
    if json:
        output.data(
            [
                {
                    "evidence": each.digest,
                    "new": each.new,
                    "retracted": each.retracted,
                    "unknown": unknown(each.evidence.conditions),
                    "notes": list(each.notes),
                    **each.evidence.model_dump(mode="json"),
                }
                for each in added
            ]
        )
        return
    for each in added:
        output.text(_added_line(candidate.name, each))
        for note in each.notes:
            output.hint(f"  {note}")
        if unseen := unknown(each.evidence.conditions):
            output.hint(f"  unknown: {', '.join(unseen)}{_ALONE if each.evidence.rows else ''}")


@evidence.command("ls")
def evidence_ls(name: CandidateName, root: Root = ROOT, json: Json = False) -> None:
    """List what a candidate scored, and what of it was retracted."""
    from registry import overview, retractions

    store = opened(root)
    candidate = store.candidate(name)
    known, gone = store.evidence(candidate.digest), retractions.retracted(store, candidate.digest)
    if json:
        output.data(
            {
                digest: each.model_dump(mode="json") | {"retracted": gone[digest].reason if digest in gone else None}
                for digest, each in known.items()
            }
        )
    elif known:
        rows: list[tuple[str, ...]] = [("evidence", "pack", "score", "items", "runs", "missing", "engine", "")]
        rows += [overview.evidence_cells(digest, each, gone.get(digest)) for digest, each in known.items()]
        output.text("\n".join(overview.columns(rows)))
    else:
        output.hint(f"{name} was never evaluated")


@evidence.command("retract")
def evidence_retract(
    digest: Annotated[str, typer.Argument(help="The evidence's digest, or the beginning of it.")],
    reason: Annotated[str, typer.Option(help="Why it is wrong.")],
    root: Root = ROOT,
) -> None:
    """Take evidence back. It stays on record and counts no more; verdicts that rest on it no longer hold."""
    from registry import retractions

    retraction = retractions.retract(opened(root), digest, reason)
    output.text(f"{retraction.evidence[:12]} is retracted: {retraction.reason}")


@policies.command("check")
def policy_check(
    file: Annotated[Path, typer.Argument(help="A policy: a YAML file.")],
    items: Annotated[
        str, typer.Option(help="Numbers of items, with commas between: what could be detected with so many.")
    ] = "15,60,164,570",
    json: Json = False,
) -> None:
    """Say in sentences what a policy demands.

    And how small a difference it could see, with so many items.
    """
    from gates.policy import explain
    from gates.power import foresee
    from registry.judging import read_policy

    policy = read_policy(file)
    seen = [each for count in _counts(items) for each in foresee(policy, count)]
    if json:
        output.data({"demands": explain(policy), "could_see": [asdict(each) for each in seen]})
        return
    for sentence in [*explain(policy), *(each.sentence for each in seen)]:
        output.text(sentence)


def _added_line(name: str, each: Added) -> str:
    overall, missing = each.evidence.totals.overall, each.evidence.totals.missing
    score = f"{100 * overall.points / overall.of:.1f}" if overall.of else "-"
    by = f"{overall.items} items" if each.evidence.rows else f"{overall.items} items, totals alone"
    lacking = f", {missing} missing" if missing else ""
    there = "" if each.new else f"; it is retracted: {each.retracted}" if each.retracted else "; it was there already"
    return f"{name}  {each.evidence.pack}  {score}  ({by}{lacking}; evidence {each.digest[:12]}{there})"


def _said(store: Store, name: str, card: str | None) -> Report:
    from registry import reporting

    return reporting.report(
        store, reporting.latest(store, name), card=memory_of(card, "--card") if card is not None else None
    )


def _kinds(text: str | None) -> list[str]:
    from gates.reports import KINDS

    kinds = [kind.strip() for kind in (text or "").split(",") if kind.strip()]
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UsageError(f"there is no report {unknown[0]!r}", remedy=f"choose from {', '.join(KINDS)}")
    return kinds


def _counts(text: str) -> list[int]:
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise UsageError(f"{text!r} are no numbers of items", remedy="write them as 15,60,164")
    return counts


def _print_verdict(name: str, verdict: Verdict) -> None:
    from gates.reports.words import visible

    output.text(f"{name}: {verdict.verdict}")
    for reason in verdict.reasons:
        output.text(f"  {visible(reason)}")
    for result in verdict.gates:
        output.text(f"  {result.gate}: {result.status}")
        for rule in result.rules:
            output.text(f"    {rule.status:<10}  {visible(rule.detail)}")
            if rule.interval is not None:
                low, high = rule.interval
                seen = f"; a difference of {rule.detectable:.1f} would mostly be seen" if rule.detectable else ""
                output.text(f"    {'':<10}  90 % interval {low:.1f} to {high:.1f}{seen}")
