"""Evidence and a policy in, a verdict out: a pure function that anyone can check by hand.

1. Validity comes first: evidence that cannot be trusted, or cannot be compared, makes the verdict Invalid.
2. All rules of all gates are judged. The first gate with a failed rule, in the policy's order, names the verdict.
3. A rule without evidence, without baseline or with missing answers is not judged. That prevents Pass, and hides no
   failure: Inconclusive is what remains when nothing failed. So it is where the evidence does not decide; that a person
   may let pass, if the policy says so.
4. All comparable evidence is pooled (an unfinished run only until a complete one is there). Where there is evidence
   under several sets of conditions, a rule is judged under each, and the worst decides: nobody picks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product

from gates.evidence import Pool, check_header, conditions_key, flat, incomparable, pools, unknown
from gates.policy import Gate, Policy
from gates.pooling import exact
from gates.records import Evidence, GateResult, Row, Verdict, Waiver
from gates.rules import WORST_FIRST, Pools, Sides, results, sides
from gates.wording import count


def judge(
    policy: Policy,
    *,
    candidate: str,
    evidence: Mapping[str, Evidence],
    baseline: str | None = None,
    baseline_evidence: Mapping[str, Evidence] | None = None,
    rows: Mapping[str, Sequence[Row]] | None = None,
    complaints: Sequence[str] = (),
    waivers: Sequence[Waiver] = (),
    today: str | None = None,
) -> Verdict:
    """What `policy` says of a candidate.

    Args:
        candidate: the digest of its manifest; `baseline` likewise, or None where there is none.
        evidence: all that there is of the candidate, by digest; `baseline_evidence` likewise.
        rows: the rows of any of it, by the evidence's digest, as `gates.evidence.check` read them. Without them nothing
            is known of single items.
        complaints: what `gates.evidence.check` found in any of it; one is enough for Invalid.
        waivers: those that were given for the candidate; `today` (2026-11-22, UTC) decides which still hold. Without it
            none does.
    """
    against = (baseline_evidence or {}) if baseline is not None else {}
    reasons = [*complaints, *_strangers(candidate, evidence), *_strangers(baseline, against)]
    gates: tuple[GateResult, ...] = ()
    used: dict[str, Waiver] = {}
    if not reasons:
        ours, theirs = pools(evidence, rows), pools(against, rows)
        reasons = [
            *_uneven([*evidence.items(), *against.items()]),
            *_other_items(ours, theirs),
            *_not_comparable(policy, ours, theirs),
        ]
    if reasons:
        name = "Invalid"
    else:
        both = sides(policy, ours, theirs, _why_no_comparison(candidate, baseline))
        used = _standing(policy, candidate, waivers, today)
        gates = tuple(_gate(gate, both, used) for gate in policy.gates)
        used = {gate.gate: used[gate.gate] for gate in gates if gate.status == "waived"}
        name, reasons = _name(gates), [*_waived(used), *_more_runs(policy, gates), *_notes(policy, ours, theirs)]
    return Verdict(
        format=1,
        verdict=name,
        candidate=candidate,
        baseline=baseline,
        policy=policy.identity(),
        policy_name=policy.name,
        evidence=tuple(sorted(evidence)),
        baseline_evidence=tuple(sorted(against)),
        gates=gates,
        reasons=tuple(dict.fromkeys(reasons)),
        # left out where there are none, as it was before there were any
        **({"waivers": tuple(sorted(each.identity() for each in used.values()))} if used else {}),
    )


def _strangers(owner: str | None, evidence: Mapping[str, Evidence]) -> list[str]:
    """Evidence that is not what it is said to be: broken, edited, or somebody else's."""
    reasons = []
    for digest, each in evidence.items():
        broken = check_header(each)
        if not broken and each.identity() != digest:
            broken = ["it was edited: its digest is another"]
        if each.candidate != owner:
            broken.append("it is another candidate's")
        reasons += [f"{each.pack}, evidence {digest[:12]}: {what}" for what in broken]
    return reasons


def _uneven(evidence: Sequence[tuple[str, Evidence]]) -> list[str]:
    """Complete runs of one pack under equal conditions ask the same items, for the same points.

    Totals alone may be on a scale of their own (a percentage), but runs of one candidate are added up, and then all
    must be on the same one: 100 points of 100 would outweigh 15 items.
    """
    seen: dict[tuple[str, str], list[Evidence]] = {}
    for digest, each in evidence:
        if each.totals.missing == 0:
            seen.setdefault((each.pack, conditions_key(digest, each)), []).append(each)
    reasons = []
    for (pack, _), runs in seen.items():
        items = sorted({each.totals.overall.items for each in runs})
        asked = [each for each in runs if each.rows is not None]
        added = [
            [each for each in runs if each.candidate == owner] for owner in sorted({each.candidate for each in runs})
        ]
        of = max(
            ({exact(each.totals.overall.of) / each.repeats for each in group} for group in [asked, *added]), key=len
        )
        parts = {tuple((name, part.items) for name, part in sorted(each.totals.categories.items())) for each in asked}
        if len(items) > 1:
            reasons.append(
                f"{pack}: under equal conditions there are runs of {_among(items)} items; some left items out"
            )
        elif len(of) > 1:
            reasons.append(f"{pack}: under equal conditions there are runs of {_among(sorted(map(float, of)))} points")
        elif len(parts) > 1:
            reasons.append(f"{pack}: under equal conditions there are runs with other items in their categories")
    return reasons


def _other_items(ours: Pools, theirs: Pools) -> list[str]:
    """Under equal conditions both sides were asked the same items, in the same categories and for the same points."""
    reasons = []
    for pack in ours.keys() & theirs.keys():
        for key in ours[pack].keys() & theirs[pack].keys():
            mine, other = ours[pack][key], theirs[pack][key]
            if mine.items is None or other.items is None or mine.missing or other.missing:
                continue
            asked, expected = (
                {(name, item.category, item.of) for name, item in pool.items.items()}
                for pool in (mine, other)
                if pool.items is not None
            )
            if asked != expected:
                first = min(asked ^ expected)[0]
                reasons.append(f"{pack}: under equal conditions both were asked other items ({first!r} for one)")
    return sorted(reasons)


def _standing(policy: Policy, candidate: str, waivers: Sequence[Waiver], today: str | None) -> dict[str, Waiver]:
    """The waivers that hold today, by gate; of several for one gate the one that holds longest."""
    if policy.inconclusive.means != "waiver" or today is None:
        return {}
    bound = [each for each in waivers if (each.candidate, each.policy) == (candidate, policy.identity())]
    return {each.gate: each for each in sorted(bound, key=lambda each: each.expires) if each.expires >= today}


def _waived(used: Mapping[str, Waiver]) -> list[str]:
    return [f"{gate}: let pass by {each.by} until {each.expires}: {each.reason}" for gate, each in used.items()]


def _more_runs(policy: Policy, gates: Sequence[GateResult]) -> list[str]:
    """What to do about what is not decided, where the policy wants more runs."""
    if policy.inconclusive.repeats is None:
        return []
    reasons = []
    for rule in (rule for gate in gates for rule in gate.rules if rule.status == "undecided"):
        packs, left = ", ".join(rule.packs), policy.inconclusive.repeats - (rule.runs or 0)
        if left > 0:
            reasons.append(
                f"{packs}: not decided by {count(rule.runs or 0, 'run')}; evaluate it up to {left} times more"
            )
        else:
            reasons.append(f"{packs}: not decided by {count(rule.runs or 0, 'run')}, and the policy allows no more")
    return reasons


def _not_comparable(policy: Policy, ours: Pools, theirs: Pools) -> list[str]:
    """The packs that the policy compares and that both have, but never under the same conditions."""
    reasons = []
    for pack in policy.compared():
        mine, other = ours.get(pack, {}), theirs.get(pack, {})
        if mine and other and not mine.keys() & other.keys():
            reasons.append(
                f"{pack}: the candidate's scores and the baseline's cannot be compared: {_nearest(mine, other)}"
            )
    return reasons


def _nearest(mine: Mapping[str, Pool], other: Mapping[str, Pool]) -> str:
    """What differs between the two sets of conditions that differ least."""

    def differences(one: Pool, two: Pool) -> list[str]:
        return incomparable(one.conditions, two.conditions, totals_alone=one.totals_alone and two.totals_alone)

    one, two = min(product(mine.values(), other.values()), key=lambda pair: len(differences(*pair)))
    a, b = one.conditions.model_dump(mode="json"), two.conditions.model_dump(mode="json")
    return ", ".join(f"{field} ({flat(a.get(field))} / {flat(b.get(field))})" for field in differences(one, two))


def _why_no_comparison(candidate: str, baseline: str | None) -> str | None:
    if baseline is None:
        return "there is no baseline to compare with"
    return "the baseline is the candidate itself" if baseline == candidate else None


def _gate(gate: Gate, both: Sides, waivers: Mapping[str, Waiver]) -> GateResult:
    judged = tuple(each for rule in gate.rules for each in results(rule, both))
    status = min((each.status for each in judged), key=WORST_FIRST.index)
    if status == "undecided" and gate.name in waivers:
        status = "waived"
    return GateResult(gate=gate.name, status=status, rules=judged)


def _name(gates: Sequence[GateResult]) -> str:
    failed = [gate.gate for gate in gates if gate.status == "failed"]
    if failed:
        return f"Fail{failed[0]}"
    # Pass is what must be earned: anything but a list of passed gates is not one.
    return "Pass" if gates and all(gate.status in ("passed", "waived") for gate in gates) else "Inconclusive"


def _notes(policy: Policy, ours: Pools, theirs: Pools) -> list[str]:
    """What a reader of the numbers should know about the conditions they were taken under."""
    notes = []
    packs = dict.fromkeys(name for gate in policy.gates for rule in gate.rules for name in rule.demand.names)
    for pack in packs:
        for pool in ours.get(pack, {}).values():
            fields = unknown(pool.conditions)
            if fields:
                everything = len(fields) == len(pool.conditions.model_dump())
                notes.append(f"{pack}: unknown conditions: {'all' if everything else ', '.join(fields)}")
        for whose, everything_known in (("the candidate", ours), ("the baseline", theirs)):
            left_out = sum(pool.left_out for pool in everything_known.get(pack, {}).values())
            if left_out:
                notes.append(
                    f"{pack}: {count(left_out, 'unfinished run')} of {whose} not counted; complete ones are there"
                )
        aside = ours.get(pack, {}).keys() - theirs.get(pack, {}).keys()
        if aside and pack in policy.compared() and theirs.get(pack):
            notes.append(
                f"{pack}: {count(len(aside), 'set')} of conditions, unlike any of the baseline's, not compared"
            )
    return notes


def _among(numbers: Sequence[float]) -> str:
    return " and ".join(f"{number:g}" for number in numbers)
