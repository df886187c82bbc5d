"""Sending a candidate to the Hugging Face Hub so that main is either what it was or all of the candidate.

    look        who writes, what lies there; all that can be refused is refused before anything is sent
    verify      every byte of the candidate, its records, its verdict
    request     a pull request of our own on what main is now; one that an earlier attempt left is found
    send        the large files side by side, then one commit; what the Hub holds already is not sent again
    compare     every file of that commit with the manifest, by SHA-256 or git blob id
    merge, tag  if main is still what it was, and the verdict too; main is compared once more before it is tagged

Whatever is interrupted is continued by running the same again. The token is the one that huggingface_hub finds.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gates.errors import UsageError
from registry.carried import records
from registry.pushing import eligibility
from registry.pushing.eligibility import Approval
from registry.pushing.merging import THE_HUBS, Push, holds, send
from registry.pushing.parcel import pack
from registry.pushing.site import State, check_card, check_rights, connect, look, told
from registry.remotes.hub import Address
from registry.store import Candidate, Store

TAG = "sluice-"
"""How the tag of a push begins; the beginning of the manifest's digest follows."""


@dataclass(frozen=True, slots=True)
class Options:
    """`private`: a repository that is made is private. `replace`: what others changed since the last push gives way.
    `with_records`: lineage, evidence and their rows travel too. `licence` is that of the base, if it is stated."""

    private: bool = False
    replace: bool = False
    with_records: bool = True
    licence: str | None = None


@dataclass(frozen=True, slots=True)
class Pushed:
    """What came of it. `commit` and `tag` are None of a rehearsal."""

    target: str
    manifest: str
    override: bool
    files: dict[str, int]
    card: str
    commit: str | None = None
    tag: str | None = None
    pull_request: int | None = None


def push(
    store: Store,
    candidate: Candidate,
    address: Address,
    approval: Approval,
    options: Options,
    *,
    rehearse: bool = False,
) -> Pushed:
    """Sends the candidate to the repository `address`, which is made if it is not there.

    Args:
        rehearse: look at everything, send nothing.

    Raises:
        UsageError: it cannot be sent there: no token, no right, another's repository, no answer.
        IntegrityError: the candidate is damaged, or the Hub holds other bytes than were sent: nothing is merged then.
        BusyError: somebody else changes the repository, or what the candidate is approved by.
    """
    if address.revision is not None:
        what = "a push goes to main and is tagged by itself"
        raise UsageError(what, where=str(address), remedy=f"hf://{address.repository}")
    api, who = connect(address)
    site = look(api, address)
    if site is not None:
        check_rights(api, address, site, private=options.private)
    parcel = pack(
        store,
        candidate,
        str(address),
        approval,
        with_records=options.with_records,
        licence=options.licence,
    )
    check_card(api, address, parcel.card)
    work = Push(api, who, address, candidate, parcel)
    done = site is not None and holds(site, site, parcel)
    if site is not None and not done:
        _refuse_others(site, address, replace=options.replace)
    eligibility.demand_sound(store, candidate)
    if rehearse:
        return _pushed(work, approval)
    with eligibility.alone(store, str(address)):
        if site is None or not done:
            eligibility.log(store, candidate, str(address), approval, state="begun")
            site = send(
                work,
                site,
                private=options.private,
                last=lambda: eligibility.demand_standing(store, candidate, approval),
            )
        tag = _tag(work, site)
        eligibility.log(store, candidate, str(address), approval, state="done", commit=site.commit, tag=tag)
    return _pushed(work, approval, commit=site.commit, tag=tag)


def _refuse_others(site: State, address: Address, *, replace: bool) -> None:
    """
    Raises:
        UsageError: the repository is not one that pushes went to, or was changed since the last.
    """
    theirs = sorted(site.files.keys() - {THE_HUBS})
    tagged = [tag for tag in site.tags if tag.startswith(TAG)]
    if not theirs:
        return
    if not tagged and records.FILE not in site.files:
        raise UsageError(
            f"this repository holds something else: {len(theirs)} files, such as {theirs[0]}",
            where=str(address),
            remedy="choose another name for it; nothing was changed",
        )
    if not replace and not any(site.tags[tag] == site.commit for tag in tagged):
        raise UsageError(
            f"main was changed since the last push: its newest commit {site.commit[:12]} has no {TAG}… tag",
            where=str(address),
            remedy="look at what was changed there; --replace puts this in its place (the history keeps what was)",
        )


def _tag(work: Push, site: State) -> str:
    """The tag of main, which is made if it has none."""
    wanted = f"{TAG}{work.candidate.digest[:12]}"
    for tag in _names(wanted):
        if site.tags.get(tag) == site.commit:
            return tag
        if tag not in site.tags:
            with told(work.address):
                work.api.create_tag(work.address.repository, tag=tag, revision=site.commit)
            return tag
    raise AssertionError("unreachable")


def _names(tag: str) -> Iterator[str]:
    """The tag, and what the same candidate's next pushes are called."""
    yield tag
    number = 2
    while True:
        yield f"{tag}.{number}"
        number += 1


def _pushed(work: Push, approval: Approval, *, commit: str | None = None, tag: str | None = None) -> Pushed:
    return Pushed(
        target=str(work.address),
        manifest=work.candidate.digest,
        override=approval.override,
        files={name: each.size for name, each in work.parcel.expected.items()},
        card=work.parcel.card.decode(),
        commit=commit,
        tag=tag,
        pull_request=work.request,
    )
