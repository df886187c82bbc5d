"""A pull request of our own: made or found, filled, compared, merged. Main is never half of anything."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from gates.errors import BusyError, IntegrityError, UsageError
from registry import bulk, output
from registry.parallel import each_file
from registry.pushing import uploads
from registry.pushing.parcel import Parcel
from registry.pushing.site import State, Stored, differing, look, told
from registry.remotes.hub import Address
from registry.sources import KINDS, RECORDS
from registry.store import Candidate

if TYPE_CHECKING:
    from huggingface_hub import HfApi

UPLOADS = 4
"""Files sent at once."""

THE_HUBS = ".gitattributes"
"""The Hub writes into this file itself."""

_STANDS = ("draft", "open")
"""What a pull request is that can still be merged."""

_LARGE = 1 << 20
"""Bytes. What is larger is sent by itself; the rest goes with the commit."""


@dataclass(slots=True)
class Push:
    """One push: what it works on, and the pull request once it is known."""

    api: HfApi
    who: str
    address: Address
    candidate: Candidate
    parcel: Parcel
    request: int | None = field(default=None)


def send(work: Push, site: State | None, *, private: bool, last: Callable[[], None]) -> State:
    """Main as it is once the candidate is there; `last` may refuse that at the last moment."""
    if site is None:
        site = _create(work, private=private)
    work.request = _pull_request(work, site)
    ref = f"refs/pr/{work.request}"
    head = _at(work, ref)
    if not holds(head, site, work.parcel):
        head = _upload(work, ref, head)
    _demand_same(work, head, site, f"{ref} is not what was sent, so it is not merged")
    now = _at(work, None)
    if now.commit != site.commit:
        raise BusyError(
            f"main was changed meanwhile ({site.commit[:12]} then, {now.commit[:12]} now), so nothing was merged",
            where=str(work.address),
            remedy="look at what was changed; then run this again",
        )
    status = _status(work)
    if status not in _STANDS:
        raise BusyError(
            f"somebody gave pull request {work.request} the status {status} meanwhile, so nothing was merged",
            where=str(work.address),
            remedy="ask who did and why; to send it all the same, run this again: it opens another",
        )
    last()
    with told(work.address):
        if status == "draft":
            work.api.change_discussion_status(work.address.repository, work.request, "open")
        work.api.merge_pull_request(work.address.repository, work.request)
    merged = _at(work, None)
    _demand_same(work, merged, site, "main is not what was verified, so it is not tagged")
    return merged


def _create(work: Push, *, private: bool) -> State:
    from huggingface_hub.errors import HfHubHTTPError

    with told(work.address):
        try:
            work.api.create_repo(work.address.repository, private=private or None, exist_ok=False)
        except HfHubHTTPError as error:
            if error.response.status_code != 409:
                raise
            raise UsageError(
                "this name is taken by a repository that this token cannot see",
                where=str(work.address),
                remedy="choose another name; or, if it was made this moment, run this again",
            ) from None
    made = _at(work, None)
    if private and not made.private:
        raise UsageError("the Hub made the repository public", where=str(work.address), remedy="make it private there")
    return made


def _at(work: Push, revision: str | None) -> State:
    state = look(work.api, work.address, revision)
    if state is None:
        raise UsageError("the repository is gone", where=str(work.address), remedy="run this again to make it")
    return state


def _pull_request(work: Push, site: State) -> int:
    """The number of our own pull request on what main is now; one on what main was is closed."""
    api, repository = work.api, work.address.repository
    digest = work.candidate.digest[:12]
    title = f"Sluice: {digest} on {site.commit[:12]}"
    with told(work.address):
        found = None
        for each in api.get_repo_discussions(repository, discussion_type="pull_request", discussion_status="all"):
            if each.author != work.who or each.status not in _STANDS:
                continue
            if each.title == title and found is None:
                found = each
            elif each.title.startswith(f"Sluice: {digest} on "):
                api.change_discussion_status(repository, each.num, "closed")
        if found is None:
            about = f"The candidate {work.candidate.name}, manifest {work.candidate.digest}."
            found = api.create_pull_request(repository, title, description=about)
    output.hint(f"pull request {found.num}: {found.url}")
    return int(found.num)


def _status(work: Push) -> str:
    """Of our own pull request, now."""
    with told(work.address):
        every = work.api.get_repo_discussions(
            work.address.repository, discussion_type="pull_request", discussion_status="all"
        )
        return next((str(each.status) for each in every if each.num == work.request), "gone")


def _upload(work: Push, ref: str, head: State) -> State:
    """The commit in the pull request that holds all of the parcel."""
    from huggingface_hub import CommitOperationDelete

    missing = differing(head.files, work.parcel.expected)
    added = {name: uploads.addition(name, work.parcel.contents[name]) for name in missing}
    sizes = {name: work.parcel.expected[name].size for name in missing}
    large = {name: size for name, size in sizes.items() if size > _LARGE}

    def one(name: str, advance: bulk.Advance) -> None:
        with uploads.counting(added[name], sizes[name], advance):
            work.api.preupload_lfs_files(
                work.address.repository, [added[name]], revision=ref, free_memory=False, num_threads=1
            )

    deleted = [CommitOperationDelete(name) for name in _gone(head, work.parcel)]
    with told(work.address):
        if large:
            each_file(f"push {work.candidate.name}", large, one, workers=UPLOADS, small=0, finish=True)
        commit = work.api.create_commit(
            work.address.repository,
            [*added.values(), *deleted],
            commit_message=f"{work.candidate.name} ({work.candidate.digest[:12]})",
            revision=ref,
            parent_commit=head.commit,
        )
    return _at(work, commit.oid)


def _demand_same(work: Push, state: State, before: State, what: str) -> None:
    """
    Raises:
        IntegrityError: a file is missing, or another than was sent; or one is there that nobody expected.
    """
    expected = work.parcel.expected | _kept(before, work.parcel)
    wrong = differing(state.files, expected)
    more = sorted(state.files.keys() - expected.keys() - {THE_HUBS})
    if wrong or more:
        name = (wrong or more)[0]
        there = state.files.get(name)
        found = (there.sha256 or there.blob) if there else "nothing"
        raise IntegrityError(
            f"{what}: {name} has {found} there, expected {_digest_of(expected.get(name), there)}",
            where=f"{work.address}, {state.commit[:12]}",
            remedy="close the pull request on its page, then run this again",
        )


def _digest_of(want: Stored | None, there: Stored | None) -> str:
    if want is None:
        return "nothing"
    return str(want.sha256 if there is None or there.sha256 else want.blob)


def holds(state: State, before: State, parcel: Parcel) -> bool:
    """Whether `state` is what `before` becomes by the push: all that is sent, and of the rest what is no model's."""
    return not differing(state.files, parcel.expected | _kept(before, parcel)) and not _gone(state, parcel)


def _gone(state: State, parcel: Parcel) -> list[str]:
    """Files of another model or of its records, which must not lie beside this one's."""
    ours = {name for name in state.files if name.startswith(f"{RECORDS}/")}
    ours |= {name for name in state.files if Path(name).suffix in KINDS and not name.startswith(".")}
    return sorted(ours - parcel.expected.keys())


def _kept(state: State, parcel: Parcel) -> dict[str, Stored]:
    """What others put there, and stays: pictures, notes."""
    leaving = {THE_HUBS, *parcel.expected, *_gone(state, parcel)}
    return {name: each for name, each in state.files.items() if name not in leaving}
