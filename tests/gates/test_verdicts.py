from __future__ import annotations

import random
from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gates.policy import Policy, parse_policy
from gates.records import Evidence, RuleResult, Score, Totals, Verdict, exit_code
from gates.verdicts import judge
from tests.support.scores import BASELINE, CANDIDATE, asked, by_digest, conditions, header, right

POLICY = """\
name: toy
gates:
  - name: Toolcall
    rules:
      - drop: {pack: tools, at_most: 5}
      - floor: {pack: tools, category: Parameter Precision, at_least: 90}
  - name: Skills
    rules:
      - drop: {packs: [facts, strings], at_most: 10}
      - gain: {packs: [facts, strings], at_least: 0}
"""


@cache
def policy(text: str = POLICY) -> Policy:
    return parse_policy(text, "policy.yaml")


def only(rule: str) -> Policy:
    return policy(f"name: p\ngates: [{{name: G, rules: [{rule}]}}]")


def taken(owner: str, tools: int = 60, facts: int = 40, strings: int = 40, **changes: Any) -> dict[str, Evidence]:
    """One run of each pack: so many of 60 and 40 and 40 items answered right."""
    runs = [_run("tools", tools, 60), _run("facts", facts, 40), _run("strings", strings, 40)]
    known = conditions(**changes)
    return by_digest(each.model_copy(update={"candidate": owner, "conditions": known}) for each in runs)


@cache
def _run(pack: str, count: int, of: int) -> Evidence:
    return header(right(count, of, category="Parameter Precision" if pack == "tools" else "all"), pack=pack)


def judged(
    mine: Mapping[str, Evidence], theirs: Mapping[str, Evidence] | None = None, by: Policy | None = None
) -> Verdict:
    other = taken(BASELINE) if theirs is None else theirs
    return judge(by or policy(), candidate=CANDIDATE, evidence=mine, baseline=BASELINE, baseline_evidence=other)


def rules(verdict: Verdict) -> list[RuleResult]:
    return [rule for gate in verdict.gates for rule in gate.rules]


def statuses(verdict: Verdict) -> list[str]:
    return [rule.status for rule in rules(verdict)]


def without(evidence: Mapping[str, Evidence], pack: str) -> dict[str, Evidence]:
    return {digest: each for digest, each in evidence.items() if each.pack != pack}


def test_a_candidate_as_good_as_its_baseline_passes():
    verdict = judged(taken(CANDIDATE))
    assert verdict.verdict == "Pass"
    assert statuses(verdict) == ["passed"] * 5
    assert verdict.reasons == ()


def test_the_verdict_is_bound_to_everything_that_it_was_read_from():
    mine, theirs = taken(CANDIDATE), taken(BASELINE)
    verdict = judged(mine, theirs)
    assert (verdict.candidate, verdict.baseline, verdict.policy) == (CANDIDATE, BASELINE, policy().identity())
    assert (verdict.evidence, verdict.baseline_evidence) == (tuple(sorted(mine)), tuple(sorted(theirs)))
    assert Verdict.from_bytes(verdict.to_bytes()).to_bytes() == verdict.to_bytes()


def test_the_detail_names_both_scores_the_limit_and_how_many_items_decided():
    verdict = judged(taken(CANDIDATE, tools=38), taken(BASELINE, tools=54))
    drop, floor, *_ = rules(verdict)
    assert drop.detail == ("tools: 63.3 against 90.0, down 26.7 (may drop at most 5); decided by 13 of 60 items, 1 run")
    assert floor.detail == "tools, Parameter Precision: 63.3 (at least 90); decided by 16 of 60 items, 1 run"
    assert (drop.limit, floor.limit) == (5, 90)
    assert drop.value == pytest.approx(80 / 3)


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_items_that_decided_are_the_least_that_would_have_made_it_otherwise(tools: int, base: int):
    by = only("{drop: {pack: tools, at_most: 5}}")

    def status(right_ones: int) -> str:
        return rules(judged(taken(CANDIDATE, tools=right_ones), taken(BASELINE, tools=base), by))[0].status

    (rule,) = rules(judged(taken(CANDIDATE, tools=tools), taken(BASELINE, tools=base), by))
    if "no score would fail" in rule.detail:
        assert status(0) == "passed"
        return
    count = int(rule.detail.split("decided by ")[1].split()[0])
    step = -1 if rule.status == "passed" else 1
    assert status(tools + step * count) != rule.status
    assert status(tools + step * (count - 1)) == rule.status


def test_the_first_gate_that_fails_names_the_verdict_and_all_failures_are_listed():
    verdict = judged(taken(CANDIDATE, tools=30, facts=20, strings=40))
    assert verdict.verdict == "FailToolcall"
    assert statuses(verdict) == ["failed", "failed", "failed", "passed", "failed"]
    assert [gate.status for gate in verdict.gates] == ["failed", "failed"]


def test_a_later_gate_names_the_verdict_when_the_earlier_ones_hold():
    assert judged(taken(CANDIDATE, facts=20)).verdict == "FailSkills"


@pytest.mark.parametrize("pack", ["tools", "facts", "strings"])
def test_without_evidence_on_a_pack_nothing_passes(pack: str):
    for mine, theirs in (
        (without(taken(CANDIDATE), pack), taken(BASELINE)),
        (taken(CANDIDATE), without(taken(BASELINE), pack)),
    ):
        verdict = judged(mine, theirs)
        assert verdict.verdict == "Inconclusive"
        assert any(f"on {pack}" in rule.detail or f"of {pack}" in rule.detail for rule in rules(verdict))


def test_without_any_evidence_nothing_passes():
    assert judged({}, {}).verdict == "Inconclusive"
    assert judge(policy(), candidate=CANDIDATE, evidence={}).verdict == "Inconclusive"


def test_what_is_not_judged_hides_no_failure():
    assert judged(without(taken(CANDIDATE, facts=20), "tools")).verdict == "FailSkills"
    assert judged(without(taken(CANDIDATE, tools=30), "facts")).verdict == "FailToolcall"
    inside = judged(without(taken(CANDIDATE, facts=20), "strings"))
    assert (inside.verdict, inside.gates[1].status) == ("FailSkills", "failed")


def test_without_a_baseline_floors_are_judged_and_comparisons_are_not():
    verdict = judge(policy(), candidate=CANDIDATE, evidence=taken(CANDIDATE))
    assert verdict.verdict == "Inconclusive"
    assert next((rule.status, rule.detail) for rule in rules(verdict)) == (
        "not judged",
        "there is no baseline to compare with",
    )
    assert rules(verdict)[1].status == "passed"
    floors = only("{floor: {pack: tools, at_least: 90}}")
    assert judge(floors, candidate=CANDIDATE, evidence=taken(CANDIDATE)).verdict == "Pass"


def test_a_candidate_compared_with_itself_does_not_pass():
    mine = taken(CANDIDATE)
    verdict = judge(policy(), candidate=CANDIDATE, evidence=mine, baseline=CANDIDATE, baseline_evidence=mine)
    assert verdict.verdict == "Inconclusive"


def test_answers_that_never_came_are_not_judged_until_they_are_there():
    rest = without(taken(CANDIDATE), "tools")
    partial = header(asked([1] * 59 + [None], category="Parameter Precision"), pack="tools")
    complete = header(right(60, 60, category="Parameter Precision"), pack="tools")
    verdict = judged(rest | by_digest([partial]))
    assert verdict.verdict == "Inconclusive"
    assert "1 answer of the candidate never came (infra)" in rules(verdict)[0].detail
    later = judged(rest | by_digest([partial, complete]))
    assert later.verdict == "Pass"
    assert later.reasons == ("tools: 1 unfinished run of the candidate not counted; complete ones are there",)
    base = header(asked([1] * 59 + [None], category="Parameter Precision"), pack="tools", candidate=BASELINE)
    assert judged(taken(CANDIDATE), without(taken(BASELINE), "tools") | by_digest([base])).verdict == "Inconclusive"


def test_an_answer_that_never_came_is_not_a_wrong_one():
    mine = header(asked([1] * 50 + [None] * 10, category="Parameter Precision"), pack="tools")
    assert judged(without(taken(CANDIDATE), "tools") | by_digest([mine])).verdict == "Inconclusive"


def test_a_category_that_is_not_there_is_not_judged():
    verdict = judged(taken(CANDIDATE), by=only("{floor: {pack: facts, category: Nothing, at_least: 1}}"))
    assert verdict.verdict == "Inconclusive"
    assert "no category Nothing" in rules(verdict)[0].detail


def test_all_comparable_runs_are_pooled_and_nobody_picks():
    base = taken(BASELINE)
    good, bad = (header(right(n, 60, category="Parameter Precision"), pack="tools") for n in (60, 46))
    rest = without(taken(CANDIDATE), "tools")
    by = only("{drop: {pack: tools, at_most: 5}}")
    assert judged(rest | by_digest([good]), base, by).verdict == "Pass"
    pooled = judged(rest | by_digest([good, bad]), base, by)
    assert pooled.verdict == "FailG"
    assert "tools: 88.3 against 100.0" in rules(pooled)[0].detail
    assert "2 runs against 1" in rules(pooled)[0].detail


def test_under_several_sets_of_conditions_the_worst_decides():
    mine = taken(CANDIDATE) | taken(CANDIDATE, tools=30, thinking="off")
    theirs = taken(BASELINE) | taken(BASELINE, thinking="off")
    verdict = judged(mine, theirs)
    assert verdict.verdict == "FailToolcall"
    assert "(the worst of 2 sets of conditions)" in rules(verdict)[0].detail
    assert rules(verdict)[0].value == 50


def test_a_floor_holds_under_all_conditions_or_not_at_all():
    by = only("{floor: {pack: tools, at_least: 90}}")
    mine = taken(CANDIDATE) | taken(CANDIDATE, tools=30, thinking="off")
    assert judge(by, candidate=CANDIDATE, evidence=mine).verdict == "FailG"


def test_what_only_the_candidate_was_asked_under_is_left_aside_and_said():
    verdict = judged(taken(CANDIDATE) | taken(CANDIDATE, tools=60, thinking="off"))
    assert verdict.verdict == "Pass"
    assert "tools: 1 set of conditions, unlike any of the baseline's, not compared" in verdict.reasons


@pytest.mark.parametrize(
    ("field", "value"),
    [("thinking", "off"), ("chat_template", "f" * 64), ("sampling", {"temperature": 0.6}), ("max_tokens", None)],
)
def test_scores_under_different_or_unknown_conditions_are_not_compared_and_the_field_is_named(field: str, value: Any):
    verdict = judged(taken(CANDIDATE), taken(BASELINE, **{field: value}))
    assert verdict.verdict == "Invalid"
    assert all(field in reason for reason in verdict.reasons)
    assert [reason.split(":")[0] for reason in verdict.reasons] == ["tools", "facts", "strings"]


def test_conditions_unknown_on_both_sides_do_not_agree():
    verdict = judged(taken(CANDIDATE, tool_parser=None), taken(BASELINE, tool_parser=None))
    assert verdict.verdict == "Invalid"
    assert "tool_parser (unknown / unknown)" in verdict.reasons[0]


def test_a_pack_that_the_policy_does_not_compare_need_not_be_comparable():
    by = only("{drop: {pack: tools, at_most: 5}}")
    mine = without(taken(CANDIDATE), "facts") | by_digest([header(right(1, 40), pack="facts", thinking="off")])
    assert judged(mine, taken(BASELINE), by).verdict == "Pass"


def test_a_run_that_left_items_out_is_invalid():
    fewer = header(right(59, 59, category="Parameter Precision"), pack="tools")
    verdict = judged(without(taken(CANDIDATE), "tools") | by_digest([fewer]))
    assert verdict.verdict == "Invalid"
    assert "runs of 59 and 60 items" in verdict.reasons[0]


def test_a_run_that_gives_more_points_for_an_item_is_invalid():
    heavier = header(asked([2] * 60, of=2, category="Parameter Precision"), pack="tools")
    assert judged(without(taken(CANDIDATE), "tools") | by_digest([heavier])).verdict == "Invalid"


def test_totals_on_another_scale_are_not_added_to_rows():
    """100 points of 100 would outweigh 40 items that were all wrong."""
    known = Totals(overall=Score(points=100, of=100, items=40), categories={}, missing=0)
    table = header(right(0, 40), pack="facts").model_copy(update={"rows": None, "responses": None, "totals": known})
    by = only("{floor: {pack: facts, at_least: 70}}")
    verdict = judged(by_digest([header(right(0, 40), pack="facts"), table]), {}, by)
    assert (verdict.verdict, verdict.reasons) == (
        "Invalid",
        ("facts: under equal conditions there are runs of 40 and 100 points",),
    )
    assert judged(by_digest([table]), {}, by).verdict == "Pass"
    theirs = by_digest([header(right(40, 40), pack="facts", candidate=BASELINE)])
    by = only("{drop: {pack: facts, at_most: 5}}")
    assert judged(by_digest([table]), theirs, by).verdict == "Pass", "a percentage can be compared with rows"


def test_runs_with_as_many_items_and_others_in_their_categories_are_invalid():
    few = header([*right(2, 2, category="hard"), *right(0, 15, category="easy")[2:]], pack="tools")
    many = header([*right(9, 13, category="hard"), *right(2, 15, category="easy")[13:]], pack="tools")
    many = many.model_copy(update={"candidate": BASELINE})
    verdict = judged(by_digest([few]), by_digest([many]), only("{drop: {pack: tools, category: hard, at_most: 5}}"))
    assert verdict.verdict == "Invalid"
    assert "other items in their categories" in verdict.reasons[0]


def test_any_complaint_makes_it_invalid():
    verdict = judge(policy(), candidate=CANDIDATE, evidence=taken(CANDIDATE), complaints=["its rows are not there"])
    assert (verdict.verdict, verdict.reasons) == ("Invalid", ("its rows are not there",))


def test_somebody_elses_evidence_is_invalid():
    assert judged(taken(BASELINE), taken(BASELINE)).verdict == "Invalid"
    assert judged(taken(CANDIDATE), taken(CANDIDATE)).verdict == "Invalid"


def test_edited_evidence_is_invalid():
    mine = taken(CANDIDATE, tools=30)
    better = taken(CANDIDATE)
    edited = dict(zip(mine, better.values(), strict=True))
    verdict = judged(edited)
    assert verdict.verdict == "Invalid"
    assert "its digest is another" in verdict.reasons[0]


@pytest.mark.parametrize("points", [float("nan"), float("inf"), -1.0, 61.0])
@pytest.mark.parametrize("whose", ["mine", "theirs"])
def test_numbers_that_are_no_score_never_pass(points: float, whose: str):
    mine, theirs = taken(CANDIDATE), taken(BASELINE)
    evidence = mine if whose == "mine" else theirs
    digest, each = next((digest, each) for digest, each in evidence.items() if each.pack == "tools")
    overall = Score.model_construct(points=points, of=60.0, items=60)
    sums = Totals.model_construct(overall=overall, categories=each.totals.categories, missing=0)
    evidence[digest] = each.model_copy(update={"totals": sums})
    assert judged(mine, theirs).verdict == "Invalid"


@given(st.lists(st.integers(0, 60), min_size=6, max_size=6), st.booleans(), st.randoms())
def test_a_verdict_depends_on_nothing_but_its_evidence(right_ones: list[int], twice: bool, shuffler: random.Random):
    """The order in which evidence is found, or asking again, changes no byte."""
    mine = taken(CANDIDATE, right_ones[0], right_ones[1] % 41, right_ones[2] % 41)
    if twice:
        mine |= taken(CANDIDATE, right_ones[3], right_ones[4] % 41, right_ones[5] % 41)
    shuffled = dict(shuffler.sample(sorted(mine.items(), key=lambda item: item[0]), len(mine)))
    assert judged(mine).to_bytes() == judged(shuffled).to_bytes()


@given(st.integers(0, 60), st.integers(0, 40), st.integers(0, 40), st.integers(0, 2))
def test_an_answer_more_never_turns_a_pass_into_anything_else(tools: int, facts: int, strings: int, which: int):
    mine = [tools, facts, strings]
    better = [n + (1 if index == which and n < (60, 40, 40)[index] else 0) for index, n in enumerate(mine)]
    before = judged(taken(CANDIDATE, *mine), taken(BASELINE, 50, 30, 30)).verdict
    after = judged(taken(CANDIDATE, *better), taken(BASELINE, 50, 30, 30)).verdict
    assert before != "Pass" or after == "Pass"


@given(st.sets(st.sampled_from(["tools", "facts", "strings"])), st.sampled_from([0, 30, 55, 60]))
def test_taking_evidence_away_never_makes_a_pass(gone: set[str], tools: int):
    mine = taken(CANDIDATE, tools)
    for pack in gone:
        mine = without(mine, pack)
    verdict = judged(mine).verdict
    assert verdict != "Pass" or (not gone and tools >= 57)


def test_what_is_shown_is_never_rounded_across_the_limit():
    by = only("{drop: {pack: tools, at_most: 5}}")
    points = [1.0] * 60
    points[0] = 0.0
    mine = header(asked([*points[:57], 0, 0, 0.99], category="c"), pack="tools")
    base = header(asked([1.0] * 60, category="c"), pack="tools", candidate=BASELINE)
    (rule,) = rules(judged(by_digest([mine]), by_digest([base]), by))
    assert rule.status == "failed"
    assert "down 5.02 (may drop at most 5)" in rule.detail


@pytest.mark.parametrize(
    ("verdict", "code"), [("Pass", 0), ("FailToolcall", 1), ("Inconclusive", 3), ("Invalid", 4), ("pass", 1), ("", 1)]
)
def test_only_pass_ends_with_0(verdict: str, code: int):
    assert exit_code(verdict) == code


def test_of_a_gain_under_several_sets_of_conditions_the_least_counts():
    by = only("{gain: {packs: [facts, strings], at_least: 5}}")
    theirs = taken(BASELINE, facts=20, strings=20) | taken(BASELINE, facts=20, strings=20, thinking="off")
    mine = taken(CANDIDATE, facts=30, strings=30) | taken(CANDIDATE, facts=16, strings=30, thinking="off")
    (rule,) = rules(judged(mine, theirs, by))
    assert (rule.status, rule.value) == ("passed", 7.5)
    worse = taken(CANDIDATE, facts=30, strings=30) | taken(CANDIDATE, facts=10, strings=30, thinking="off")
    assert judged(worse, theirs, by).verdict == "FailG"
