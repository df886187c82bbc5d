"""Sending candidates elsewhere: push."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from gates.errors import UsageError
from registry import output
from registry.commands import CandidateName, Channel, Insecure, Json, Root, opened
from registry.layout import ROOT

app = typer.Typer(rich_markup_mode=None)


@app.command()
def push(
    name: CandidateName,
    target: Annotated[
        str, typer.Argument(help="hf://owner/name, which is made if it is not there, or oci://host/repository:tag.")
    ],
    channel: Channel = "best",
    policy: Annotated[Path | None, typer.Option(help="The policy, where the channel has none yet.")] = None,
    override: Annotated[
        bool, typer.Option("--override", help="Send it without a Pass. Needs --reason; is logged.")
    ] = False,
    reason: Annotated[str | None, typer.Option(help="Why it is sent without a Pass.")] = None,
    private: Annotated[bool, typer.Option("--private", help="hf:// only: make the repository private.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Put it in the place of what others changed there since the last push.")
    ] = False,
    no_records: Annotated[
        bool,
        typer.Option(
            "--no-records", help="The model and its card alone: no lineage, no evidence, no calibration rows."
        ),
    ] = False,
    licence: Annotated[
        str | None, typer.Option("--license", help="The base's licence, where its card on the Hub does not say it.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Look at everything, show the card, send nothing.")
    ] = False,
    insecure: Insecure = False,
    root: Root = ROOT,
    json: Json = False,
) -> None:
    """Send a candidate with a Pass to the Hub or an OCI registry.

    With it go a model card, its lineage and its verdict.

    registry push v7b hf://me/v7b --private

    registry push v7b oci://ghcr.io/me/v7b:v1

    On the Hub it goes into a pull request; when every file there is what it is here, that is merged and tagged. The
    token is the one that huggingface_hub finds (hf auth login, HF_TOKEN).

    In an OCI registry the tag names it once all its blobs are there; what is there already is not sent. The
    credentials are those that docker login or oras login keep.

    Run again, it goes on where it stopped.
    """
    from registry import judging
    from registry.pushing import eligibility
    from registry.pushing import hub as to_hub
    from registry.pushing import oci as to_oci
    from registry.remotes import hub, oci

    address = oci.parse(target, insecure=insecure) or hub.parse(target)
    if address is None:
        raise UsageError(
            f"nothing can be sent to {target}", remedy="write hf://owner/name or oci://host/repository:tag"
        )
    if isinstance(address, oci.Address) and private:
        raise UsageError(
            "--private is for hf://…", where=target, remedy="who may read it, the OCI registry's administrator decides"
        )
    store = opened(root)
    candidate = store.candidate(name)
    rules = judging.read_policy(policy) if policy else None
    approval = eligibility.approve(store, candidate, channel=channel, policy=rules, override=override, reason=reason)
    pushed: to_hub.Pushed | to_oci.Pushed
    if isinstance(address, hub.Address):
        options = to_hub.Options(private=private, replace=replace, with_records=not no_records, licence=licence)
        pushed = to_hub.push(store, candidate, address, approval, options, rehearse=dry_run)
        done = f"{pushed.tag}  {(pushed.commit or '')[:12]}"
    else:
        choices = to_oci.Options(replace=replace, with_records=not no_records, licence=licence)
        pushed = to_oci.push(store, candidate, address, approval, choices, rehearse=dry_run)
        done = f"{pushed.digest}  {output.size(pushed.missing)} sent"
    if json:
        output.data(asdict(pushed))
    elif dry_run:
        for file, size in pushed.files.items():
            output.text(f"{output.size(size):>12}  {file}")
        output.text("\n" + pushed.card)
        output.hint(f"{len(pushed.files)} files, {output.size(sum(pushed.files.values()))}; nothing was sent")
    else:
        output.text(f"{name} → {pushed.target}  {done}")
