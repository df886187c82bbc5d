"""The commands of `registry`. Each reads its words, calls the registry, and prints what came of it.

Data goes to stdout (JSON with `--json`), hints and progress to stderr. Exit codes: 0 done, or the verdict Pass · 1 a
gate failed · 2 bad input · 3 Inconclusive · 4 evidence that cannot be trusted · 5 integrity · 6 busy · 130 interrupted.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperGroup

from gates.errors import UsageError
from registry import output
from registry.commands import (
    CandidateName,
    Channel,
    Insecure,
    Json,
    Root,
    Wait,
    demand_one,
    housekeeping,
    judgement,
    leases,
    opened,
    packs,
    planning,
    publishing,
    running,
)
from registry.layout import ROOT


class Commands(TyperGroup):
    """Every command ends with an exit code of ours: the one that it returns, or its error's."""

    def invoke(self, ctx: typer.Context) -> None:  # type: ignore[override]
        raise typer.Exit(output.end_with(lambda: super(Commands, self).invoke(ctx)))


app = typer.Typer(
    cls=Commands,
    name="registry",
    help="An evaluation-gated registry for compressed mixture-of-experts models.",
    epilog="Exit codes: 0 done/Pass, 1 a gate failed, 2 bad input, 3 Inconclusive, 4 invalid evidence, 5 integrity, "
    "6 busy, 130 interrupted. Commands take --root FOLDER, the registry that is meant (else SLUICE_ROOT, else models). "
    "Start with: registry init; registry add toy stages/toy/checkpoint; registry ls",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(judgement.app)
app.add_typer(housekeeping.app)
app.add_typer(planning.app)
app.add_typer(packs.app)
app.add_typer(publishing.app)
app.add_typer(running.app)
app.add_typer(leases.app)


@app.command()
def init(root: Root = ROOT) -> None:
    """Make an empty registry; one that is there stays as it is.

    Beside compose.yaml it writes .env too, so that containers run as the owner of the files.
    """
    from registry import ownership
    from registry.store import Store

    store = Store.init(root)
    output.hint(f"registry at {store.layout.root}")
    note = ownership.note_for_containers(Path(), store.layout.root)
    if note is not None:
        output.hint(note)


@app.command()
def add(
    name: Annotated[str, typer.Argument(help="What to call it: a-z 0-9 . _ -")],
    source: Annotated[
        str,
        typer.Argument(
            help="A folder with config.json and safetensors, hf://owner/name@revision, or oci://host/repository:tag."
        ),
    ],
    move: Annotated[
        bool, typer.Option("--move", help="Remove the folder's files once they are in; copies nothing on one disk.")
    ] = False,
    replace: Annotated[bool, typer.Option("--replace", help="Give the name to another model.")] = False,
    insecure: Insecure = False,
    root: Root = ROOT,
) -> None:
    """Take in a model from a folder, the Hub or an OCI registry.

    The source stays as it is, but for --move. Run again after an interruption, this goes on.

    registry add toy stages/toy/checkpoint

    registry add qwen3.6-35b-a3b hf://Qwen/Qwen3.6-35B-A3B@main
    """
    candidate = opened(root).add(name, source, move=move, replace=replace, insecure=insecure)
    output.text(f"{candidate.name}  {candidate.digest[:12]}  {output.size(candidate.manifest.size)}")


@app.command()
def ls(root: Root = ROOT, json: Json = False) -> None:
    """List the candidates: mix, depth, scores, verdict, size.

    An arrow marks what is served. Scores are percent; several of one pack were taken under different conditions.
    """
    from registry import overview

    overview.show(root, json=json)


@app.command()
def show(
    name: CandidateName,
    command: Annotated[
        bool, typer.Option("--serve", help="Print the command that serves it as it was judged, and nothing else.")
    ] = False,
    root: Root = ROOT,
    json: Json = False,
) -> None:
    """Show everything that is known about a candidate.

    What it is and what it was made from, how its training ended, evidence, verdicts, files.
    """
    from registry import details, serving

    if command:
        words = ["vllm", *serving.command(opened(root), name)]
        output.data(words) if json else output.text(shlex.join(words))
        return
    found = details.of(store := opened(root), store.candidate(name))
    if json:
        output.data(found.to_json())
    else:
        output.text(details.render(found))


@app.command()
def path(name: CandidateName, root: Root = ROOT, json: Json = False) -> None:
    """Print the folder to load, resolved once.

    vllm serve $(registry path best)
    """
    folder = str(opened(root).candidate(name).resolved())
    output.data(folder) if json else output.text(folder)


@app.command()
def serve(
    name: CandidateName = "best",
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.")] = 8000,
    wait: Wait = None,
    root: Root = ROOT,
) -> int:
    """Serve a candidate with vLLM under the flags it was judged with.

    It holds the device until the server and all that it started have ended, and ends with its exit code. The program
    is that of the environment that VLLM names, or vllm on the PATH.
    """
    from registry import devices, leases, processes, serving

    store = opened(root)
    words = serving.command(store, name, host=host, port=port)
    program = serving.program()
    candidate = store.candidate(name)
    claim = leases.Claim(f"serve {name}", candidate.name, candidate.digest)
    with leases.hold(store.layout, devices.names("auto"), claim, wait=wait) as held:
        output.hint(shlex.join(["vllm", *words]))
        environment = os.environ | serving.OFFLINE | devices.ORDER | held.environment
        code = processes.run([str(program), *words], environment, keep=held.descriptors)
        held.tell_what_stays()
    return code


@app.command()
def verify(
    name: Annotated[str | None, typer.Argument(help="A candidate or a channel.")] = None,
    every: Annotated[bool, typer.Option("--all", help="Every candidate.")] = False,
    fast: Annotated[bool, typer.Option("--fast", help="Structure alone: sizes, headers, links, scales.")] = False,
    root: Root = ROOT,
    json: Json = False,
) -> int:
    """Check that candidates are what they were, to the last byte.

    Their structure and, without --fast, every byte, their evidence and their verdicts. Exit code: 5 if anything is
    wrong.
    """
    from registry.verify import verify as problems_of
    from registry.verify import verify_records

    demand_one(name, every, "verify")
    store = opened(root)
    found = {}
    for each in store.names() if every else [name or ""]:
        try:
            found[each] = problems_of(store, each, full=not fast)
            if not fast:
                found[each] += verify_records(store, each)
        except UsageError:
            if not every:  # else it was removed since it was listed
                raise
    if json:
        output.data({each: [asdict(problem) for problem in problems] for each, problems in found.items()})
    else:
        for each, problems in found.items():
            output.text(f"{each}: {_count(problems)}")
            for problem in problems:
                output.text(f"  {problem}")
    return 5 if any(found.values()) else 0


@app.command()
def lineage(
    name: Annotated[str | None, typer.Argument(help="A candidate or a channel; without it, everything.")] = None,
    root: Root = ROOT,
    json: Json = False,
) -> None:
    """Draw what a candidate was made from, and what was made from it.

    Back to where its model came from.
    """
    from registry import lineage as lines

    found = lines.trees(opened(root), name)
    if json:
        output.data([asdict(tree) for tree in found])
    elif found:
        output.text(lines.render(found))
    else:
        output.hint("no candidates yet; take one in with: registry add NAME FOLDER")


@app.command()
def compare(
    left: CandidateName,
    right: CandidateName,
    project: Annotated[
        Path, typer.Option(help="The folder with mixes/, for the recipe of a missing control.")
    ] = Path(),
    root: Root = ROOT,
    json: Json = False,
) -> None:
    """Say in which settings two candidates differ.

    Then how they scored and what that can be put down to. Where several things differ, the control that tells them
    apart is named, or the recipe that would make it.

    registry compare v7a v7b
    """
    from registry import comparison

    store = opened(root)
    found = comparison.of(store, store.candidate(left), store.candidate(right), project=project)
    if json:
        output.data(asdict(found))
    else:
        output.text(comparison.render(found))


@app.command()
def derive(
    name: CandidateName,
    new: Annotated[str, typer.Argument(help="What to call it: a-z 0-9 . _ -")],
    files: Annotated[
        list[str], typer.Option("--replace", metavar="FILE=PATH", help="A file of the model, and its new content.")
    ],
    again: Annotated[bool, typer.Option("--again", help="Give the name to another candidate.")] = False,
    root: Root = ROOT,
) -> None:
    """Make a candidate with another chat template or tokenizer.

    Or another generation config. Weights are shared, not copied.

    registry derive v7b v7b-v19 --replace chat_template.jinja=templates/v19.jinja
    """
    from registry import deriving

    candidate = deriving.derive(opened(root), name, new, deriving.parsed(files), replace=again)
    output.text(f"{candidate.name}  {candidate.digest[:12]}  {output.size(candidate.manifest.size)}")


@app.command()
def promote(
    name: Annotated[str | None, typer.Argument(help="The candidate to serve.")] = None,
    best: Annotated[
        bool, typer.Option("--best", help="The one with the highest scores among those that passed.")
    ] = False,
    channel: Channel = "best",
    policy: Annotated[Path | None, typer.Option(help="The channel's policy: needed once, and to change it.")] = None,
    override: Annotated[
        bool, typer.Option("--override", help="Promote without a Pass. Needs --reason; is logged.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="Why: for an override, or for a change of policy.")] = None,
    root: Root = ROOT,
) -> None:
    """Serve a candidate that has a Pass under the channel's policy.

    The channel's link changes in one step.

    registry promote v7b --policy policies/toy.yaml

    registry promote --best
    """
    from registry import judging, promotion, ranking

    demand_one(name, best, "promote", "--best")
    store = opened(root)
    rules = judging.read_policy(policy) if policy else None
    chosen = name or ranking.best(store, judging.policy_of(store, policy, channel=channel)).name
    generation = promotion.promote(store, chosen, channel=channel, policy=rules, override=override, reason=reason)
    output.text(f"{channel} → {generation.candidate} (generation {generation.number})")


@app.command()
def rollback(
    to: Annotated[int | None, typer.Option(help="A generation's number; without it, the one before.")] = None,
    channel: Channel = "best",
    root: Root = ROOT,
) -> None:
    """Serve again what was served before, as a new generation."""
    from registry import promotion

    generation = promotion.rollback(opened(root), channel=channel, to=to)
    output.text(f"{channel} → {generation.candidate} (generation {generation.number})")


@app.command()
def log(
    check: Annotated[
        bool, typer.Option("--verify", help="Check that no entry and no generation was changed or is missing.")
    ] = False,
    root: Root = ROOT,
    json: Json = False,
) -> None:
    """Every change and every override, oldest first: when, who, what."""
    from registry import channels, training

    store = opened(root)
    if check:
        store.log.verify()
        channels.verify(store)
        output.hint("the log is whole, and the channels' generations are those that it names")
        return
    entries = [entry.model_dump(mode="json") for entry in store.log.entries()]
    if json:
        output.data(entries)
        return
    standard = {"seq", "previous", "time", "user", "host", "event", "format", "seal"}
    for entry in entries:
        fields = "  ".join(f"{key}={_short(value)}" for key, value in entry.items() if key not in standard)
        ended = training.logged(store, entry)
        fields += f"  training={ended}" if ended else ""
        output.text(f"{entry['seq']:>5}  {entry['time']}  {entry['user']}  {entry['event']:<10}  {fields}")


def _count(problems: Sequence[object]) -> str:
    return f"{len(problems)} problem{'s' * (len(problems) > 1)}" if problems else "sound"


def _short(value: object) -> str:
    """One value on one line: digests cut, what has parts left to --json."""
    text = "…" if isinstance(value, dict | list) else str(value)
    is_digest = len(text) == 64 and all(letter in "0123456789abcdef" for letter in text)
    return text[:12] if is_digest else text
