"""Which of the candidates that passed is the best: `registry promote --best`."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from gates.errors import UsageError
from gates.evidence import pools
from gates.policy import Policy
from registry import judging, output, retractions
from registry.store import Candidate, Store


@dataclass(frozen=True, slots=True)
class Ranked:
    """A candidate with its mean score (0 to 100) on the packs that the policy ranks by."""

    candidate: Candidate
    score: Fraction


def best(store: Store, policy: Policy) -> Candidate:
    """Of the candidates with a fresh Pass under `policy`, the one with the highest mean score on its `rank_by`.

    Scores count only under conditions that all of them share, for a higher one under others proves nothing. Of equal
    ones the smaller model is the better.

    Raises:
        UsageError: the policy ranks by nothing, nobody passed, or the scores were taken under different conditions.
    """
    if policy.rank_by is None:
        raise UsageError(
            f"the policy {policy.name} does not say which candidate is the best",
            remedy="add rank_by: [PACK, …] to it, or name a candidate",
        )
    passed = []
    for name in store.names():
        candidate = store.candidate(name)
        verdict = judging.fresh(store, candidate, policy.identity())
        if verdict is not None and verdict.verdict == "Pass":
            passed.append(candidate)
    if not passed:
        raise UsageError(
            f"no candidate has a Pass under the policy {policy.name} that still holds",
            remedy="judge them: registry gate --all --policy FILE",
        )
    ranked = _ranked(store, passed, policy.rank_by)
    ranked.sort(key=lambda each: (-each.score, each.candidate.manifest.size, each.candidate.name))
    shown = ", ".join(f"{each.candidate.name} {float(each.score):.1f}" for each in ranked)
    output.hint(f"mean score on {', '.join(policy.rank_by)}: {shown}")
    return ranked[0].candidate


def _ranked(store: Store, candidates: list[Candidate], packs: tuple[str, ...]) -> list[Ranked]:
    known = {each.name: pools(retractions.standing(store, each.digest)) for each in candidates}
    scores: dict[str, list[Fraction]] = {each.name: [] for each in candidates}
    for pack in packs:
        shared = set.intersection(*({*known[each.name].get(pack, {})} for each in candidates))
        if not shared:
            raise UsageError(
                f"the scores on {pack} were not all taken under the same conditions, so they rank nothing",
                remedy=f"evaluate {', '.join(scores)} on {pack} alike, or name a candidate",
            )
        for each in candidates:  # several sets of conditions are never averaged: the lowest counts, as in a gate
            scores[each.name].append(min(known[each.name][pack][key].overall.percent for key in shared))
    return [Ranked(each, sum(scores[each.name], Fraction()) / len(packs)) for each in candidates]
