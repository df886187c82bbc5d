"""What a person decides: evidence taken back, an undecided gate let pass, the best of those that passed."""

from __future__ import annotations

from pathlib import Path

import pytest

from gates.errors import UsageError
from gates.policy import Policy, parse_policy
from registry import holding, judging, promotion, ranking, retractions, waivers
from registry.log import Log
from registry.store import Store
from tests.support import invariants, stores

PAIRED = f"""
name: paired
gates:
  - name: Tools
    rules:
      - paired: {{pack: {stores.PACK}, margin: 5}}
inconclusive: {{means: waiver}}
rank_by: [{stores.PACK}]
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.init(tmp_path / "models")
    for number, (name, right) in enumerate({"base": 9, "good": 9, "better": 10}.items()):
        stores.add(store, name, tmp_path, seed=number)
        stores.observe(store, name, right=right)
    return store


@pytest.fixture
def policy() -> Policy:
    return parse_policy(PAIRED, "paired.yaml")


def _judge(store: Store, policy: Policy, name: str = "good") -> str:
    return judging.judge(store, name, policy=policy, baseline="base").verdict


def _waive(store: Store, policy: Policy, **changes: str) -> None:
    about = {"gate": "Tools", "reason": "looked at by hand", "until": "2999-12-31"} | changes
    waivers.waive(store, store.candidate("good"), policy, **about)


def test_a_waiver_lets_an_undecided_gate_pass_and_the_candidate_can_be_promoted(store: Store, policy: Policy):
    assert _judge(store, policy) == "Inconclusive"
    _waive(store, policy, by="ada")
    assert _judge(store, policy) == "Pass"
    promotion.promote(store, "good", policy=policy)
    logged = store.log.newest("waiver", gate="Tools")
    assert (logged["waived_by"], logged["reason"]) == ("ada", "looked at by hand")
    invariants.check(store.layout.root)


def test_a_waiver_makes_a_verdict_from_before_stale(store: Store, policy: Policy):
    _judge(store, policy)
    _waive(store, policy)
    assert judging.fresh(store, store.candidate("good"), policy.identity()) is None


def test_a_verdict_on_a_waiver_ends_with_it(store: Store, policy: Policy, monkeypatch: pytest.MonkeyPatch):
    _waive(store, policy, until="2999-12-30")
    assert _judge(store, policy) == "Pass"
    monkeypatch.setattr(waivers, "today", lambda _: "2999-12-31")
    assert judging.fresh(store, store.candidate("good"), policy.identity()) is None
    assert holding.standing(store.layout, store.candidate("good").digest) == "stale"
    assert _judge(store, policy) == "Inconclusive"


def test_a_clock_that_was_set_back_revives_no_waiver(store: Store, monkeypatch: pytest.MonkeyPatch):
    newest = "2998-06-01T00:00:00Z"
    monkeypatch.setattr(Log, "last_time", lambda _: newest)
    assert waivers.today(store) == "2998-06-01"


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"gate": "Other"}, "has no gate 'Other'"),
        ({"reason": "  "}, "needs a reason"),
        ({"until": "2020-01-01"}, "is past"),
        ({"until": "soon"}, "is no day"),
        ({"until": "2999-02-30"}, "is no day"),
    ],
)
def test_a_waiver_without_gate_reason_or_day_is_refused(
    store: Store, policy: Policy, changes: dict[str, str], what: str
):
    with pytest.raises(UsageError, match=what):
        _waive(store, policy, **changes)
    assert waivers.of(store, store.candidate("good").digest) == []


def test_a_policy_that_takes_no_waivers_gets_none(store: Store):
    strict = parse_policy(PAIRED.replace("inconclusive: {means: waiver}", ""), "strict.yaml")
    with pytest.raises(UsageError, match="takes no waivers"):
        _waive(store, strict)


def test_retracted_evidence_counts_no_more_and_stays_on_record(store: Store):
    floor = parse_policy(
        f"name: floor\ngates:\n  - name: T\n    rules:\n      - floor: {{pack: {stores.PACK}, at_least: 50}}\n", "floor"
    )
    candidate = store.candidate("good")
    (digest,) = store.evidence(candidate.digest)
    assert judging.judge(store, "good", policy=floor, baseline=None).verdict == "Pass"
    retractions.retract(store, digest[:10], "the parser was wrong")
    assert judging.fresh(store, candidate, floor.identity()) is None
    assert holding.standing(store.layout, candidate.digest) == "stale"
    assert judging.judge(store, "good", policy=floor, baseline=None).verdict == "Inconclusive"
    assert digest in store.evidence(candidate.digest)
    logged = store.log.newest("retraction", evidence=digest)
    assert (logged["reason"], logged["manifest"]) == ("the parser was wrong", candidate.digest)
    invariants.check(store.layout.root)


def test_evidence_is_retracted_once_and_keeps_its_first_reason(store: Store):
    (digest,) = store.evidence(store.candidate("good").digest)
    first = retractions.retract(store, digest, "the parser was wrong")
    before = len(list(store.log.entries()))
    assert retractions.retract(store, digest, "another") == first
    assert len(list(store.log.entries())) == before


@pytest.mark.parametrize(("digest", "reason"), [("", "why"), ("zz", "why"), ("0" * 64, "why")])
def test_what_names_no_single_evidence_retracts_nothing(store: Store, digest: str, reason: str):
    with pytest.raises(UsageError):
        retractions.retract(store, digest, reason)
    assert all(retractions.retracted(store, store.candidate(name).digest) == {} for name in store.names())


def test_a_retraction_needs_a_reason(store: Store):
    (digest,) = store.evidence(store.candidate("good").digest)
    with pytest.raises(UsageError, match="needs a reason"):
        retractions.retract(store, digest, " ")


def test_the_best_of_those_that_passed_has_the_highest_score(store: Store):
    floor = parse_policy(
        f"name: floor\ngates:\n  - name: T\n    rules:\n      - floor: {{pack: {stores.PACK}, at_least: 95}}\n"
        f"rank_by: [{stores.PACK}]\n",
        "floor",
    )
    with pytest.raises(UsageError, match="no candidate has a Pass"):
        ranking.best(store, floor)
    for name in ("base", "good", "better"):
        judging.judge(store, name, policy=floor, baseline=None)
    assert ranking.best(store, floor).name == "better"


def test_scores_under_different_conditions_rank_nothing(store: Store, tmp_path: Path):
    floor = parse_policy(
        f"name: floor\ngates:\n  - name: T\n    rules:\n      - floor: {{pack: {stores.PACK}, at_least: 50}}\n"
        f"rank_by: [{stores.PACK}]\n",
        "floor",
    )
    stores.add(store, "other", tmp_path, seed=9)
    header, rows, responses = stores.evidence_on(store.candidate("other").digest, right=10)
    conditions = header.conditions.model_copy(update={"chat_template": "9" * 64})
    store.add_evidence(header.model_copy(update={"conditions": conditions}), rows=rows, responses=responses, timings={})
    for name in store.names():
        judging.judge(store, name, policy=floor, baseline=None)
    with pytest.raises(UsageError, match="not all taken under the same conditions"):
        ranking.best(store, floor)


def test_a_policy_that_ranks_by_nothing_names_no_best(store: Store):
    silent = parse_policy(PAIRED.replace(f"rank_by: [{stores.PACK}]", ""), "silent.yaml")
    with pytest.raises(UsageError, match="does not say which candidate is the best"):
        ranking.best(store, silent)
