"""The rules by which a channel comes to serve a candidate.

1. A channel serves a candidate with a fresh Pass for its manifest under the channel's policy, or an override, which its
   generation and the log hold with the reason.
2. The first promotion binds the channel to a policy; binding it to another needs a reason.
3. The candidate is read byte by byte before it is served.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gates.errors import IntegrityError, UsageError
from gates.policy import Policy
from gates.records import Verdict
from registry import commits, generations, naming
from registry.channels import create, settle
from registry.generations import FORMAT, Generation
from registry.layout import checked_name
from registry.log import signature

if TYPE_CHECKING:
    from registry.store import Candidate, Store


def promote(
    store: Store,
    name: str,
    *,
    channel: str = "best",
    policy: Policy | None = None,
    override: bool = False,
    reason: str | None = None,
) -> Generation:
    """Makes `channel` serve the candidate `name`. One that it serves already, on the same verdict, is found promoted.

    Args:
        policy: where the channel has none yet, or is to have another.
        override: promote without a Pass. Needs `reason`.

    Raises:
        UsageError: there is no fresh Pass and no override, a reason or a policy is missing, or a name is wrong.
        IntegrityError: the candidate is damaged.
        BusyError: another process has been giving its name to a candidate for a minute.
    """
    candidate = _sound(store, name)
    _refuse_candidates_name(store, channel)
    request = _Request(channel, policy, override, (reason or "").strip() or None)
    with _unchanging(store, candidate):
        naming.write_log(store, candidate.name)
        while True:
            before = _before(store, request)
            generation = _following(store, candidate, before, request)
            now = generations.current(store.layout, channel)
            if before is not None and before == now and _same(before, generation):
                generation = before
                break
            if create(store, generation):
                break
    settle(store, channel)
    return generation


def rollback(store: Store, *, channel: str = "best", to: int | None = None) -> Generation:
    """Serves again what `channel` served in an earlier generation, as a new generation.

    Args:
        to: that generation's number; None: the one before, and after a rollback the one before that.

    Raises:
        UsageError: there is no such generation, or its candidate is gone or replaced.
        IntegrityError: its candidate is damaged.
        BusyError: as `promote`.
    """
    checked_name(channel)
    while True:
        before = generations.newest(store.layout, channel)
        if before is None:
            known = ", ".join(generations.channels(store.layout))
            remedy = f"there is {known}" if known else "registry promote NAME makes the first"
            raise UsageError(f"there is no channel {channel!r}", remedy=remedy)
        earlier = _earlier(store, before, to)
        if (before.candidate, before.manifest) == (earlier.candidate, earlier.manifest):
            return before
        candidate = _kept(store, earlier)
        with _unchanging(store, candidate):
            generation = Generation(
                format=FORMAT,
                number=before.number + 1,
                channel=channel,
                candidate=candidate.name,
                manifest=candidate.digest,
                replaces=before.candidate,
                restores=earlier.number,
                policy=before.policy,
                policy_name=before.policy_name,
                verdict=earlier.verdict,
                override=earlier.override or earlier.policy != before.policy,
                reason=f"rollback to generation {earlier.number}",
                **signature(),
            )
            if create(store, generation):
                break
    settle(store, channel)
    return generation


@dataclass(frozen=True, slots=True)
class _Request:
    channel: str
    policy: Policy | None
    override: bool
    reason: str | None


def _sound(store: Store, name: str) -> Candidate:
    """The candidate, every byte of it as its manifest says."""
    from registry.verify import demand_whole

    candidate = store.candidate(name)
    demand_whole(store, candidate, full=True, harm=" and cannot be served", remedy="make it again under another name")
    return candidate


def _refuse_candidates_name(store: Store, channel: str) -> None:
    if os.path.lexists(store.layout.candidate(channel)):
        raise UsageError(f"{channel} is a candidate, so no channel can be called so", remedy="choose another channel")


@contextmanager
def _unchanging(store: Store, candidate: Candidate) -> Iterator[None]:
    """Keeps the candidate's name from being given to another while the block runs.

    Where locks do not work, `commits` and `channels.settle` both look again and put the promoted one back.
    """
    busy = f"another process is giving the name {candidate.name} to a candidate"
    with store.locked(f"candidate-{candidate.name}", wait=commits.LOCK_WAIT, busy=busy):
        if store.candidate(candidate.name).digest != candidate.digest:
            raise UsageError(f"{candidate.name} was replaced while it was checked", remedy="run this again")
        yield


def _before(store: Store, request: _Request) -> Generation | None:
    """The generation that the next follows. One that is lost is passed over by an override alone, as the log has it."""
    try:
        return generations.newest(store.layout, request.channel)
    except IntegrityError:
        if not (request.override and request.reason):
            raise
        return generations.last_logged(store.layout, request.channel)


def _following(store: Store, candidate: Candidate, before: Generation | None, request: _Request) -> Generation:
    """The generation after `before` that serves `candidate`, if the rules allow it."""
    from registry import judging

    policy_name, policy = _policy(candidate, before, request)
    verdict = judging.fresh(store, candidate, policy)
    passed = verdict is not None and verdict.verdict == "Pass"
    if not passed:
        _refuse_unless_overridden(candidate.name, verdict, policy_name, request)
    if request.policy is not None:
        store.put(request.policy.to_bytes())
    return Generation(
        format=FORMAT,
        number=before.number + 1 if before else 1,
        channel=request.channel,
        candidate=candidate.name,
        manifest=candidate.digest,
        replaces=before.candidate if before else None,
        policy=policy,
        policy_name=policy_name,
        verdict=verdict.identity() if verdict else None,
        override=not passed,
        reason=request.reason,
        **signature(),
    )


def _policy(candidate: Candidate, before: Generation | None, request: _Request) -> tuple[str, str]:
    """Name and digest of the policy that decides."""
    if request.policy is None:
        if before is None:
            raise UsageError(
                f"the channel {request.channel} has no policy yet",
                remedy=f"registry promote {candidate.name} --channel {request.channel} --policy FILE binds it to one",
            )
        return before.policy_name, before.policy
    name, policy = request.policy.name, request.policy.identity()
    if before is not None and policy != before.policy and not request.reason:
        raise UsageError(
            f"the channel {request.channel} is bound to the policy {before.policy_name} ({before.policy[:12]})",
            remedy=f"leave --policy away, or give --reason to bind it to {name} ({policy[:12]}) from now on",
        )
    return name, policy


def _refuse_unless_overridden(name: str, verdict: Verdict | None, policy_name: str, request: _Request) -> None:
    if not request.override:
        standing = f"is {verdict.verdict}" if verdict else "has no verdict that rests on all its evidence"
        raise UsageError(
            f"{name} {standing} under the policy {policy_name}; {request.channel} serves only what has a Pass",
            remedy=f"registry gate {name} --policy policies/{policy_name}.yaml --baseline NAME judges it; "
            '--override --reason "…" promotes it all the same',
        )
    if not request.reason:
        raise UsageError("an override needs a reason", remedy='say why: --override --reason "…"')


def _same(before: Generation, generation: Generation) -> bool:
    """Whether `generation` would change nothing: then a promotion that runs again finds it done."""
    fields = ("candidate", "manifest", "policy", "verdict", "override")
    return all(getattr(before, field) == getattr(generation, field) for field in fields)


def _earlier(store: Store, before: Generation, to: int | None) -> Generation:
    kept = generations.kept(store.layout, before.channel)
    if to is not None:
        found = [each for each in kept if each.number == to]
    else:
        since = before.restores or before.number
        found = [each for each in kept if each.number < since and each.manifest != before.manifest]
    if not found:
        listed = ", ".join(f"{each.number} ({each.candidate})" for each in kept)
        what = "served nothing else before this" if to is None else f"has no generation {to}"
        raise UsageError(f"{before.channel} {what}", remedy=f"its generations are {listed}")
    return found[-1]


def _kept(store: Store, generation: Generation) -> Candidate:
    """The candidate that `generation` served, if its name still has that manifest."""
    remedy = "roll back to another generation (--to N), or promote a candidate"
    name = generation.candidate
    if name not in store.names():
        raise UsageError(f"{name}, which generation {generation.number} served, is gone", remedy=remedy)
    candidate = _sound(store, name)
    if candidate.digest != generation.manifest:
        raise UsageError(f"{name} was replaced since generation {generation.number} served it", remedy=remedy)
    return candidate
