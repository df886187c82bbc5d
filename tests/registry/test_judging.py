"""Judging in a registry: what is recorded, what is logged, when a verdict still holds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gates import canonical
from gates.errors import IntegrityError, UsageError
from gates.policy import parse_policy
from gates.records import Evidence
from registry import holding, judging
from registry.store import Store
from tests.support.scores import header, right, written
from tests.support.tiny import write_checkpoint

POLICY = """\
name: trial  # a comment
gates:
  - name: Tools
    rules:
      - drop: {pack: tools, at_most: 5}
"""


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.init(tmp_path / "models")
    for seed, name in enumerate(("toy", "pruned", "other")):
        store.add(name, write_checkpoint(tmp_path / name, seed=seed))
    return store


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "trial.yaml"
    path.write_text(POLICY)
    return path


@pytest.fixture
def scored(store: Store) -> Callable[..., str]:
    """Records that a candidate answered so many of 20 items of a pack right, and gives the evidence's digest."""

    def record(name: str, count: int, pack: str = "tools", **changes: Any) -> str:
        rows = right(count, 20)
        responses = b'{"text":"x"}\n'
        evidence = header(rows, pack=pack, candidate=store.candidate(name).digest, **changes)
        evidence = evidence.model_copy(update={"responses": canonical.digest(responses)})
        return store.add_evidence(evidence, rows=written(rows), responses=responses, timings={"seconds": 1.0})

    return record


def standing(store: Store, name: str, policy: Path) -> str | None:
    identity = parse_policy(policy.read_text(), "p").identity()
    verdict = judging.fresh(store, store.candidate(name), identity)
    return verdict.verdict if verdict else None


def test_a_verdict_follows_the_evidence_is_recorded_and_logged(store: Store, policy: Path, scored: Callable[..., str]):
    theirs, mine = scored("toy", 20), scored("pruned", 18)
    verdict = judging.judge(store, "pruned", policy=judging.read_policy(policy), baseline="toy")
    assert verdict.verdict == "FailTools"
    assert (verdict.evidence, verdict.baseline_evidence) == ((mine,), (theirs,))
    assert store.verdicts(store.candidate("pruned").digest) == {verdict.identity(): verdict}
    assert [entry.about["verdict"] for entry in store.log.entries() if entry.event == "verdict"] == [verdict.identity()]
    scored("other", 19)
    assert judging.judge(store, "other", policy=judging.read_policy(policy), baseline="toy").verdict == "Pass"


def test_the_policy_can_be_read_back_by_what_the_verdict_says(store: Store, policy: Path, scored: Callable[..., str]):
    scored("toy", 20)
    verdict = judging.judge(store, "pruned", policy=judging.read_policy(policy), baseline="toy")
    policy.unlink()
    assert judging.stored_policy(store, verdict.policy) == parse_policy(store.read(verdict.policy).decode(), "stored")
    assert judging.stored_policy(store, verdict.policy).identity() == verdict.policy
    assert judging.stored_policy(store, verdict.policy).name == "trial"


def test_a_policy_is_named_as_verdicts_name_it(store: Store, policy: Path):
    read = judging.read_policy(policy)
    verdict = judging.judge(store, "toy", policy=judging.read_policy(policy), baseline=None)
    assert (read.name, read.identity()) == ("trial", verdict.policy)


def test_judging_again_changes_nothing(store: Store, policy: Path, scored: Callable[..., str]):
    scored("toy", 20), scored("pruned", 20)
    first = judging.judge(store, "pruned", policy=judging.read_policy(policy), baseline="toy")
    logged = len(list(store.log.entries()))
    policy.write_text("# another comment\n" + POLICY)
    assert (
        judging.judge(store, "pruned", policy=judging.read_policy(policy), baseline="toy").to_bytes()
        == first.to_bytes()
    )
    assert len(list(store.log.entries())) == logged


def test_a_verdict_holds_until_there_is_more_evidence(store: Store, policy: Path, scored: Callable[..., str]):
    scored("toy", 20), scored("pruned", 20)
    assert standing(store, "pruned", policy) is None
    judging.judge(store, "pruned", policy=judging.read_policy(policy), baseline="toy")
    assert standing(store, "pruned", policy) == "Pass"
    scored("pruned", 0)
    assert standing(store, "pruned", policy) is None
    assert judging.judge(store, "pruned", policy=judging.read_policy(policy), baseline="toy").verdict == "FailTools"
    assert standing(store, "pruned", policy) == "FailTools"


@pytest.mark.parametrize("pack", ["tools", "never-judged"])
def test_evidence_on_the_baseline_ends_it_too(store: Store, policy: Path, scored: Callable[..., str], pack: str):
    scored("toy", 20), scored("pruned", 20)
    judging.judge(store, "pruned", policy=judging.read_policy(policy), baseline="toy")
    scored("toy", 1, pack)
    assert standing(store, "pruned", policy) is None


def test_a_verdict_is_of_one_policy(store: Store, policy: Path, scored: Callable[..., str]):
    scored("toy", 20), scored("pruned", 19)
    judging.judge(store, "pruned", policy=judging.read_policy(policy), baseline="toy")
    policy.write_text(POLICY.replace("at_most: 5", "at_most: 4.9"))
    assert standing(store, "pruned", policy) is None
    assert judging.judge(store, "pruned", policy=judging.read_policy(policy), baseline="toy").verdict == "FailTools"


def test_a_failure_against_one_baseline_is_not_outvoted_by_a_pass_against_another(
    store: Store, policy: Path, scored: Callable[..., str]
):
    scored("toy", 20), scored("other", 10), scored("pruned", 15)
    assert judging.judge(store, "pruned", policy=judging.read_policy(policy), baseline="other").verdict == "Pass"
    assert standing(store, "pruned", policy) == "Pass"
    for baseline in ("toy", "other"):
        judging.judge(store, "pruned", policy=judging.read_policy(policy), baseline=baseline)
        assert standing(store, "pruned", policy) == "FailTools"
    assert store.log.verify() == len(list(store.log.entries()))


def test_a_candidate_that_became_its_own_baseline_keeps_its_verdict(
    store: Store, policy: Path, scored: Callable[..., str]
):
    scored("toy", 20), scored("pruned", 20)
    first = judging.judge(store, "pruned", policy=judging.read_policy(policy), baseline="toy")
    assert judging.judge(store, "pruned", policy=judging.read_policy(policy), baseline="pruned") == first
    scored("pruned", 0)
    assert (
        judging.judge(store, "pruned", policy=judging.read_policy(policy), baseline="pruned").verdict == "Inconclusive"
    )


def _evidence_of(store: Store, name: str) -> Evidence:
    (evidence,) = store.evidence(store.candidate(name).digest).values()
    return evidence


@pytest.mark.parametrize("whose", ["toy", "pruned"])
@pytest.mark.parametrize("damage", ["missing", "changed"])
def test_damaged_rows_make_it_invalid(store: Store, policy: Path, scored: Callable[..., str], whose: str, damage: str):
    scored("toy", 20), scored("pruned", 19)
    judging.judge(store, "pruned", policy=judging.read_policy(policy), baseline="toy")
    evidence = _evidence_of(store, whose)
    assert evidence.rows is not None
    blob = store.layout.blob(evidence.rows)
    blob.chmod(0o644)
    if damage == "missing":
        blob.unlink()
    else:
        blob.write_bytes(blob.read_bytes().replace(b'"points":1', b'"points":0', 1))
    assert standing(store, "pruned", policy) is None
    verdict = judging.judge(store, "pruned", policy=judging.read_policy(policy), baseline="toy")
    assert verdict.verdict == "Invalid"
    assert any("rows cannot be read" in reason for reason in verdict.reasons)


def test_a_forgotten_baseline_takes_no_pass_away(store: Store, policy: Path, scored: Callable[..., str]):
    scored("toy", 20), scored("pruned", 20)
    assert judging.judge(store, "pruned", policy=judging.read_policy(policy), baseline=None).verdict == "Inconclusive"
    assert (
        standing(store, "pruned", policy)
        == holding.standing(store.layout, store.candidate("pruned").digest)
        == "Inconclusive"
    )
    judging.judge(store, "pruned", policy=judging.read_policy(policy), baseline="toy")
    judging.judge(store, "pruned", policy=judging.read_policy(policy), baseline=None)
    assert (
        standing(store, "pruned", policy) == holding.standing(store.layout, store.candidate("pruned").digest) == "Pass"
    )


def test_a_floor_that_is_missed_without_a_baseline_is_a_failure(store: Store, policy: Path, scored: Callable[..., str]):
    policy.write_text(POLICY + "      - floor: {pack: tools, at_least: 90}\n")
    scored("toy", 10), scored("pruned", 10)
    judging.judge(store, "pruned", policy=judging.read_policy(policy), baseline=None)
    assert standing(store, "pruned", policy) == "FailTools"


def test_an_edited_header_is_a_broken_registry(store: Store, policy: Path, scored: Callable[..., str]):
    digest = scored("pruned", 10)
    path = store.layout.evidence(store.candidate("pruned").digest) / f"{digest}.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b'"points":10', b'"points":20'))
    with pytest.raises(IntegrityError):
        judging.judge(store, "pruned", policy=judging.read_policy(policy), baseline=None)


def test_evidence_whose_totals_are_not_its_rows_is_invalid(store: Store, policy: Path, scored: Callable[..., str]):
    scored("toy", 20)
    better, rows = header(right(20, 20), pack="tools"), written(right(10, 20))
    evidence = better.model_copy(
        update={"candidate": store.candidate("pruned").digest, "rows": canonical.digest(rows), "responses": None}
    )
    store.add_evidence(evidence, rows=rows, responses=b"", timings={})
    verdict = judging.judge(store, "pruned", policy=judging.read_policy(policy), baseline="toy")
    assert verdict.verdict == "Invalid"
    assert "the totals are not the sums of its rows" in verdict.reasons[0]


def test_other_conditions_are_invalid_and_named(store: Store, policy: Path, scored: Callable[..., str]):
    scored("toy", 20), scored("pruned", 20, chat_template="9" * 64)
    verdict = judging.judge(store, "pruned", policy=judging.read_policy(policy), baseline="toy")
    assert verdict.verdict == "Invalid"
    assert "chat_template" in verdict.reasons[0]


def test_a_forged_verdict_does_not_hold(store: Store, policy: Path, scored: Callable[..., str]):
    """Well-formed, rightly named and logged, but not what the evidence says."""
    scored("toy", 20), scored("pruned", 0)
    true = judging.judge(store, "pruned", policy=judging.read_policy(policy), baseline="toy")
    gates = tuple(gate.model_copy(update={"status": "passed"}) for gate in true.gates)
    forged = store.add_verdict(true.model_copy(update={"verdict": "Pass", "gates": gates}))
    store.log.append("verdict", manifest=true.candidate, policy=true.policy, verdict=forged)
    assert standing(store, "pruned", policy) == "FailTools"


@pytest.mark.parametrize(
    ("name", "baseline", "file"),
    [("nobody", None, "trial.yaml"), ("toy", "nobody", "trial.yaml"), ("toy", None, "none.yaml"), ("../toy", None, "")],
)
def test_what_is_not_there_is_said_and_nothing_is_written(
    store: Store, policy: Path, name: str, baseline: str | None, file: str
):
    before = sorted(store.layout.root.rglob("*"))
    with pytest.raises(UsageError):
        judging.judge(store, name, policy=judging.read_policy(policy.parent / file), baseline=baseline)
    assert sorted(store.layout.root.rglob("*")) == before
