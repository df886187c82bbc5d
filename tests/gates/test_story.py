"""The record of the one-GPU story, from totals alone, by the policy that is shipped."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gates.policy import Policy, parse_policy
from gates.records import Verdict
from gates.verdicts import judge
from tests.support.scores import BASELINE, CANDIDATE, totals_alone

TOOLS, OTHERS = "toolcall-15", ("bugfind-15", "dataextract-15", "instructfollow-15")
PACKS = (TOOLS, *OTHERS)
V3_V19 = (90, 8, 5, 20)


@pytest.fixture(scope="module")
def agentic(project: Path) -> Policy:
    return parse_policy((project / "policies" / "agentic.yaml").read_text(), "agentic.yaml")


def _judge(policy: Policy, scores: tuple[float, ...], against: tuple[float, ...]) -> Verdict:
    """A candidate's scores on the packs, in their order; a shorter tuple is a candidate with fewer packs."""
    return judge(
        policy,
        candidate=CANDIDATE,
        evidence=totals_alone(dict(zip(PACKS, scores, strict=False))),
        baseline=BASELINE,
        baseline_evidence=totals_alone(dict(zip(PACKS, against, strict=False)), candidate=BASELINE),
    )


@pytest.mark.parametrize(
    ("name", "scores", "against", "verdict"),
    [
        ("v7a", (63, 23, 24, 53), V3_V19, "FailToolcall"),
        ("v7c", (90, 0, 4, 16), V3_V19, "FailAgentic"),
        ("v7b", (93, 25, 22, 40), V3_V19, "Pass"),
        ("Mix-A", (90, 10), (97, 8), "FailToolcall"),
        ("Mix-B", (90, 3), (97, 8), "FailToolcall"),
        ("v3ratio", (90, 0), (97, 8), "FailToolcall"),
    ],
)
def test_the_story_comes_out_of_its_totals(
    agentic: Policy, name: str, scores: tuple[float, ...], against: tuple[float, ...], verdict: str
):
    assert _judge(agentic, scores, against).verdict == verdict, name


def test_no_candidate_is_named_in_the_policy(agentic: Policy):
    text = agentic.to_bytes().decode().lower()
    assert not [name for name in ("v3", "v7", "mix-a", "mix-b", "ratio") if name in text]


@pytest.mark.parametrize(
    ("scores", "verdict"),
    [
        ((85, 23, 20, 35), "Pass"),
        ((84, 23, 20, 35), "FailToolcall"),
        ((86, 23, 20, 35), "Pass"),
        ((84.9, 23, 20, 35), "FailToolcall"),
        ((90, 3, 20, 35), "Pass"),  # bugfind just holds: 8 to 3
        ((90, 2, 20, 35), "FailAgentic"),
        ((90, 23, 0, 35), "Pass"),  # dataextract: 5 to 0
        ((90, 23, 20, 15), "Pass"),  # instructfollow: 20 to 15
        ((90, 23, 20, 14), "FailAgentic"),
        ((90, 13, 10, 25), "Pass"),  # a gain of 5 on average
        ((90, 12, 10, 25), "FailAgentic"),
        ((90, 13, 10, 24.9), "FailAgentic"),
        ((90, 14, 10, 25), "Pass"),
    ],
)
def test_a_score_that_equals_its_limit_holds_and_one_beyond_fails(
    agentic: Policy, scores: tuple[float, ...], verdict: str
):
    assert _judge(agentic, scores, V3_V19).verdict == verdict


_SCORES = st.tuples(*[st.integers(0, 1000).map(lambda tenths: tenths / 10)] * 4)
_NEAR = st.tuples(*[st.integers(-120, 120)] * 4)


def _oracle(scores: tuple[float, ...], against: tuple[float, ...]) -> str:
    tools, *others = [Fraction(str(a)) - Fraction(str(b)) for a, b in zip(scores, against, strict=True)]
    if tools < -5:
        return "FailToolcall"
    return "FailAgentic" if min(others) < -5 or sum(others) < 15 else "Pass"


@given(scores=_SCORES, against=_SCORES)
def test_any_totals_are_judged_as_a_hand_would(agentic: Policy, scores: tuple[float, ...], against: tuple[float, ...]):
    assert _judge(agentic, scores, against).verdict == _oracle(scores, against)


@given(against=_SCORES, moved=_NEAR)
def test_totals_near_the_margins_are_judged_as_a_hand_would(
    agentic: Policy, against: tuple[float, ...], moved: tuple[int, ...]
):
    scores = tuple(min(1000, max(0, round(10 * b) + m)) / 10 for b, m in zip(against, moved, strict=True))
    assert _judge(agentic, scores, against).verdict == _oracle(scores, against)


def test_the_verdict_says_that_the_conditions_are_unknown(agentic: Policy):
    reasons = _judge(agentic, (93, 25, 22, 40), V3_V19).reasons
    assert reasons == tuple(f"{pack}: unknown conditions: all" for pack in PACKS)


def test_scores_under_another_chat_template_are_refused_and_it_is_named(agentic: Policy):
    """v18 and v19 differ by 7 points on the same weights: what looks like a loss is none."""
    verdict = judge(
        agentic,
        candidate=CANDIDATE,
        evidence=totals_alone(dict(zip(PACKS, (90, 8, 5, 20), strict=True)), chat_template="1" * 64),
        baseline=BASELINE,
        baseline_evidence=totals_alone(
            dict(zip(PACKS, (97, 8, 5, 20), strict=True)), candidate=BASELINE, chat_template="2" * 64
        ),
    )
    assert verdict.verdict == "Invalid"
    assert verdict.gates == ()
    assert [reason for reason in verdict.reasons if reason.startswith(TOOLS)] == [
        "toolcall-15: the candidate's scores and the baseline's cannot be compared: "
        "chat_template (111111111111… / 222222222222…)"
    ]
