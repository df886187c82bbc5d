"""What may be sent elsewhere: what a channel would serve, or what a person answers for."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from gates import canonical
from gates.errors import BusyError, IntegrityError, UsageError
from gates.policy import Policy
from gates.records import Verdict
from registry import generations, judging
from registry.store import Candidate, Store
from registry.verify import demand_whole, verify_records


@dataclass(frozen=True, slots=True)
class Approval:
    """Why a candidate may be sent: its Pass, or the reason for sending it without one (`override`)."""

    channel: str
    policy: str
    policy_name: str
    verdict: Verdict | None
    override: bool
    reason: str | None

    def logged(self) -> dict[str, str | bool | None]:
        """What the log says of it."""
        return {
            "policy": self.policy,
            "policy_name": self.policy_name,
            "verdict": self.verdict.identity() if self.verdict else None,
            "override": self.override,
            "reason": self.reason,
        }


def alone(store: Store, target: str) -> AbstractContextManager[None]:
    """One push to a target at a time.

    Raises:
        BusyError: another process is at it.
    """
    key = canonical.digest(canonical.dumps({"push": target}))
    return store.locked(f"push-{key}", wait=0, busy=f"another process sends something to {target}")


def approve(
    store: Store,
    candidate: Candidate,
    *,
    channel: str,
    policy: Policy | None = None,
    override: bool = False,
    reason: str | None = None,
) -> Approval:
    """Lets a candidate be sent that has a fresh Pass under the channel's policy.

    Args:
        channel: whose policy decides.
        policy: decides where the channel is bound to none yet. Under any other than the channel's own a Pass is not
            enough: it takes an override.
        override: send it without a Pass. Needs `reason`.

    Raises:
        UsageError: it may not be sent, or there is no policy to decide by.
        IntegrityError: a record is damaged.
    """
    bound = generations.newest(store.layout, channel)
    if policy is None:
        policy = judging.policy_of(store, None, channel=channel)
    digest, reason = policy.identity(), (reason or "").strip() or None
    verdict = judging.fresh(store, candidate, digest)
    passed = verdict is not None and verdict.verdict == "Pass" and (bound is None or bound.policy == digest)
    if not passed and not override:
        raise UsageError(
            f"{candidate.name} {_standing(verdict, policy.name, channel)}; only what has a Pass is sent",
            remedy=f"registry gate {candidate.name} --policy policies/{policy.name}.yaml --baseline NAME judges it; "
            '--override --reason "…" sends it all the same',
        )
    if not passed and reason is None:
        raise UsageError("an override needs a reason", remedy='say why: --override --reason "…"')
    return Approval(channel, digest, policy.name, verdict, override=not passed, reason=reason)


def demand_standing(store: Store, candidate: Candidate, approval: Approval) -> None:
    """To be asked at the last moment before others see the candidate: sending it may have taken hours.

    Raises:
        BusyError: evidence came or was retracted, it was judged again, the channel got another policy, or the candidate
            was replaced. Card and records say what was known before.
        UsageError: the candidate is gone.
    """
    bound = generations.newest(store.layout, approval.channel)
    moved = not approval.override and bound is not None and bound.policy != approval.policy
    replaced = store.candidate(candidate.name).digest != candidate.digest
    if moved or replaced or judging.fresh(store, candidate, approval.policy) != approval.verdict:
        what = "was replaced" if replaced else "came to be judged otherwise"
        raise BusyError(
            f"{candidate.name} {what} while it was sent, so nobody sees it yet",
            remedy="run this again: it is decided by what is known by then, and nothing is sent twice",
        )


def demand_sound(store: Store, candidate: Candidate) -> None:
    """
    Raises:
        IntegrityError: a byte of the model or of its records is not what it was.
    """
    demand_whole(store, candidate, full=True, harm=" and is not sent", remedy="make it again under another name")
    problems = verify_records(store, candidate.name)
    if problems:
        raise IntegrityError(
            f"what is recorded about {candidate.name} is damaged: {problems[0]}",
            where=str(store.layout.root / problems[0].file),
            remedy=f"registry verify {candidate.name} lists it all; restore it from a backup",
        )


def log(store: Store, candidate: Candidate, target: str, approval: Approval, **about: str) -> None:
    """Writes down a push: once before anything is sent, and once when all is there; each once, however often it is run.

    Args:
        target: where it is sent.
        about: `state`, and what names it there.
    """
    known = {"candidate": candidate.name, **approval.logged(), **about}

    def following(newest: Mapping[str, Any] | None) -> dict[str, Any] | None:
        return None if newest is not None and known.items() <= newest.items() else known

    store.log.follow("push", {"target": target, "manifest": candidate.digest}, following)


def _standing(verdict: Verdict | None, policy: str, channel: str) -> str:
    if verdict is None:
        return f"has no verdict that rests on all its evidence under the policy {policy}"
    if verdict.verdict == "Pass":
        return f"has a Pass under the policy {policy}, and the channel {channel} is bound to another"
    return f"is {verdict.verdict} under the policy {policy}"
