"""Judging a candidate: its evidence and its baseline's out of the store, through the gates, and the verdict back in.

A verdict names its policy by the digest of the policy's canonical JSON (`gates.policy.Policy.to_bytes`). Those bytes
are kept as the blob of that digest and are themselves a policy's text: `stored_policy` reads them back.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gates import canonical, evidence, standing, verdicts
from gates.errors import IntegrityError, UsageError
from gates.evidence import Checked
from gates.policy import Policy, parse_policy
from gates.records import Evidence, Verdict, exit_code
from registry import generations, output, plain, retractions, waivers
from registry.objects import Candidate, Objects
from registry.recipes import read_text

Read = dict[str, Checked]
"""The rows that were read and checked already, by their evidence's digest. What is read is added."""


def judge(store: Objects, name: str, *, policy: Policy, baseline: str | None, read: Read | None = None) -> Verdict:
    """Judges the candidate by everything that is known of it and its baseline, records the verdict and logs it.

    A candidate that already is its own baseline (it was promoted to that channel) cannot be compared with itself: the
    verdict that it has under this policy, if it still holds, is the answer.

    Args:
        name: a candidate's or a channel's name; `baseline` likewise, or None to compare with nothing.
        read: spares a report, right afterwards, reading everything again.

    Raises:
        UsageError: there is no such candidate.
        IntegrityError: a record of evidence is damaged. (Damaged rows make the verdict Invalid.)
    """
    candidate = store.candidate(name)
    against = store.candidate(baseline) if baseline is not None else None
    if against is not None and against.digest == candidate.digest:
        held = fresh(store, candidate, policy.identity())
        if held is not None:
            output.hint(f"{name} is its own baseline by now; its verdict from before still holds")
            return held
    verdict = _judged(
        store, policy, candidate.digest, against.digest if against else None, {} if read is None else read
    )
    store.put(policy.to_bytes())
    log(store, candidate.name, verdict, store.add_verdict(verdict))
    return verdict


def fresh(store: Objects, candidate: Candidate, policy_digest: str) -> Verdict | None:
    """The verdict that the candidate stands under: the worst of those under this policy that judging again comes to.

    A candidate may have been judged against several baselines. A failure against one is not outvoted by a Pass against
    another, or whoever wants a Pass would look for a baseline that is weak enough. None if there is no verdict that
    rests on all evidence there is today, the baseline's included, or if rows are damaged.

    Raises:
        IntegrityError: the policy, a verdict or a record of evidence is damaged.
    """
    recorded = store.verdicts(candidate.digest).values()
    holding = [verdict for verdict in recorded if verdict.policy == policy_digest and _holds(store, verdict)]
    return standing.worst(holding)


def _holds(store: Objects, verdict: Verdict) -> bool:
    return same(verdict, _judged(store, stored_policy(store, verdict.policy), verdict.candidate, verdict.baseline))


def read_policy(path: Path) -> Policy:
    """
    Raises:
        UsageError: it cannot be read, or is no policy.
    """
    return parse_policy(read_text(path, "policy"), where=str(path))


def policy_of(store: Objects, path: Path | None, *, channel: str) -> Policy:
    """The policy in the file `path`; without one, the policy that the channel is bound to.

    Raises:
        UsageError: there is neither.
        IntegrityError: the channel's policy is missing or damaged.
    """
    if path is not None:
        return read_policy(path)
    generation = generations.current(store.layout, channel)
    if generation is None:
        raise UsageError(
            f"no policy is named, and there is no channel {channel} that would have one",
            remedy="name a policy: --policy policies/FILE.yaml",
        )
    return stored_policy(store, generation.policy)


def evaluated(store: Objects, *, other_than: str | None) -> list[str]:
    """The candidates that have evidence, but for the one that all are compared with; says which have none."""
    baseline = store.candidate(other_than).digest if other_than is not None else None
    candidates = [store.candidate(name) for name in store.names()]
    known = {each.name: each for each in candidates if plain.standing(store.layout, each.digest)}
    if missing := [each.name for each in candidates if each.name not in known]:
        output.hint(f"not judged, for they were never evaluated: {', '.join(missing)}")
    return [name for name, each in known.items() if each.digest != baseline]


def worst_exit_code(found: Iterable[Verdict]) -> int:
    """That of the worst verdict: Invalid before a failure, before Inconclusive. Of none, Inconclusive's."""
    codes = {exit_code(verdict.verdict) for verdict in found}
    return next((code for code in (4, 1, 3, 0) if code in codes), 3)


def stored_policy(store: Objects, digest: str) -> Policy:
    """The policy that a verdict or a generation names.

    Raises:
        IntegrityError: the blob is missing or damaged.
    """
    return parse_policy(store.read(digest).decode(), where=f"policy {digest[:12]}")


def _judged(store: Objects, policy: Policy, candidate: str, baseline: str | None, read: Read | None = None) -> Verdict:
    ours = retractions.standing(store, candidate)
    theirs = retractions.standing(store, baseline) if baseline is not None else {}
    read = {} if read is None else read
    known = {digest: checked(store, digest, each, read) for digest, each in (ours | theirs).items()}
    complaints = [
        f"{each.pack}, evidence {digest[:12]}: {what}"
        for digest, each in (ours | theirs).items()
        for what in known[digest].complaints
    ]
    return verdicts.judge(
        policy,
        candidate=candidate,
        evidence=ours,
        baseline=baseline,
        baseline_evidence=theirs,
        rows={digest: each.rows for digest, each in known.items() if each.rows},
        complaints=complaints,
        waivers=waivers.of(store, candidate),
        today=waivers.today(store),
    )


def checked(store: Objects, digest: str, each: Evidence, read: Read) -> Checked:
    """Reads the rows of one evidence out of the store, unless that was done; damaged ones are a complaint."""
    if digest not in read:
        try:
            rows = store.read(each.rows) if each.rows is not None else None
            read[digest] = evidence.check(each, rows)
        except IntegrityError as error:
            read[digest] = Checked((), (f"its rows cannot be read: {error.what}",))
    return read[digest]


def log(store: Objects, name: str, verdict: Verdict, digest: str) -> None:
    """Makes this the newest verdict that the log names of its candidate and policy. (A verdict holds no time.)"""

    def following(newest: dict[str, Any] | None) -> dict[str, Any] | None:
        if newest is not None and newest.get("verdict") == digest:
            return None
        return {"candidate": name, "says": verdict.verdict, "policy_name": verdict.policy_name, "verdict": digest}

    store.log.follow("verdict", {"manifest": verdict.candidate, "policy": verdict.policy}, following)


def same(one: Verdict, two: Verdict) -> bool:
    """Equal in all but wording."""

    def plain(verdict: Verdict) -> bytes:
        gates = [(gate.gate, [(rule.status, rule.value, rule.limit) for rule in gate.rules]) for gate in verdict.gates]
        bound = (verdict.candidate, verdict.baseline, verdict.policy, verdict.evidence, verdict.baseline_evidence)
        return canonical.dumps([verdict.verdict, bound, gates])

    return plain(one) == plain(two)
