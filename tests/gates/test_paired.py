"""Rules that look at single items: the same items on both sides, and items that must not be lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from gates.errors import UsageError
from gates.policy import Policy, explain, parse_policy
from gates.records import Evidence, Row, Verdict, Waiver
from gates.verdicts import judge
from tests.support.scores import BASELINE, CANDIDATE, asked, by_digest, header, totals_alone

PAIRED = "name: p\ngates:\n  - name: Tools\n    rules:\n      - paired: {pack: tools, margin: 5}\n"
TODAY = "2026-11-22"


def _policy(text: str = PAIRED, **more: str) -> Policy:
    return parse_policy(text + "".join(f"{key}: {value}\n" for key, value in more.items()), "policy.yaml")


def _runs(*runs: Sequence[float | None], categories: str = "all") -> list[Row]:
    return [row for number, run in enumerate(runs) for row in asked(run, repeat=number, category=categories)]


def _judge(
    policy: Policy,
    mine: list[Row] | Evidence,
    other: list[Row] | Evidence,
    *,
    pack: str = "tools",
    repeats: int = 1,
    known: dict[str, Any] | None = None,
    **more: Any,
) -> Verdict:
    sides = []
    for rows, owner in ((mine, CANDIDATE), (other, BASELINE)):
        given = (
            rows
            if isinstance(rows, Evidence)
            else header(rows, pack=pack, candidate=owner, repeats=repeats, **(known or {}))
        )
        sides.append((given, [] if isinstance(rows, Evidence) else rows))
    return judge(
        policy,
        candidate=CANDIDATE,
        evidence=by_digest([sides[0][0]]),
        baseline=BASELINE,
        baseline_evidence=by_digest([sides[1][0]]),
        rows={each.identity(): rows for each, rows in sides if rows},
        **more,
    )


def _solved(count: int, of: int) -> list[float]:
    return [1.0] * count + [0.0] * (of - count)


def test_the_same_answers_to_many_items_pass():
    verdict = _judge(_policy(), _runs(_solved(500, 570)), _runs(_solved(500, 570)))
    rule = verdict.gates[0].rules[0]
    assert (verdict.verdict, rule.status, rule.value, rule.limit, rule.items, rule.runs) == (
        "Pass", "passed", 0.0, 5.0, 570, 1,
    )  # fmt: skip
    assert rule.interval is not None
    assert rule.interval[0] > -5


def test_the_same_answers_to_fifteen_items_prove_nothing():
    verdict = _judge(_policy(), _runs(_solved(12, 15)), _runs(_solved(12, 15)))
    assert (verdict.verdict, verdict.gates[0].status) == ("Inconclusive", "undecided")
    assert verdict.gates[0].rules[0].detectable > 5


def test_losses_that_are_no_chance_and_larger_than_the_margin_fail():
    """Five regressions and no fix are the fewest that are not chance; of 60 items they are 8.3 points."""
    verdict = _judge(_policy(), _runs(_solved(50, 60)), _runs(_solved(55, 60)))
    rule = verdict.gates[0].rules[0]
    assert (verdict.verdict, rule.p_worse, round(rule.value or 0, 6)) == ("FailTools", 0.03125, 8.333333)
    assert "5 items worse, 0 better, p = 0.0312 (exact McNemar)" in rule.detail
    assert _judge(_policy(), _runs(_solved(51, 60)), _runs(_solved(55, 60))).verdict == "Inconclusive"


def test_a_loss_that_is_no_chance_but_within_the_margin_does_not_fail():
    verdict = _judge(_policy(), _runs(_solved(480, 500)), _runs(_solved(490, 500)))
    rule = verdict.gates[0].rules[0]
    assert rule.p_worse is not None
    assert rule.p_worse < 0.01
    assert (verdict.verdict, rule.value) == ("Pass", 2.0)


def test_items_that_traded_places_are_less_sure_than_items_that_stayed():
    stayed = _judge(_policy(), _runs(_solved(30, 60)), _runs(_solved(30, 60)))
    traded = _judge(_policy(), _runs(_solved(30, 60)), _runs(_solved(30, 60)[::-1]))
    widths = [rule.interval[1] - rule.interval[0] for rule in (stayed.gates[0].rules[0], traded.gates[0].rules[0])]
    assert widths[1] > 3 * widths[0]


def test_repeats_make_flaky_items_better_known():
    flaky = [[float((item + run) % 2) for item in range(200)] for run in range(6)]
    once = _judge(_policy(), _runs(flaky[0]), _runs(flaky[1]))
    often = _judge(_policy(), _runs(*flaky), _runs(*flaky[1:], flaky[0]), repeats=6)
    assert once.verdict == "Inconclusive"
    assert (often.verdict, often.gates[0].rules[0].runs) == ("Pass", 6)


def test_more_comparisons_need_more_to_call_a_loss_one():
    """One of eight packs lost five items: alone that is no chance, among eight it may be."""
    losing, same = _runs(_solved(50, 60)), _runs(_solved(55, 60))
    alone = _judge(_policy(), losing, same)
    packs = [f"pack{number}" for number in range(8)]
    rules = "".join(f"      - paired: {{pack: {pack}, margin: 5}}\n" for pack in packs)
    many = _policy(f"name: p\ngates:\n  - name: Tools\n    rules:\n{rules}")
    ours = [header(losing if pack == "pack0" else same, pack=pack) for pack in packs]
    theirs = [header(same, pack=pack, candidate=BASELINE) for pack in packs]
    rows = {each.identity(): losing if each.totals.overall.points == 50 else same for each in [*ours, *theirs]}
    among = judge(
        many,
        candidate=CANDIDATE,
        evidence=by_digest(ours),
        baseline=BASELINE,
        baseline_evidence=by_digest(theirs),
        rows=rows,
    )
    assert (alone.verdict, among.verdict) == ("FailTools", "Inconclusive")
    assert among.gates[0].rules[0].p_worse == pytest.approx(8 * 0.03125)


def test_totals_alone_are_not_enough_for_a_paired_rule():
    evidence = next(iter(totals_alone({"tools": 90}).values()))
    against = next(iter(totals_alone({"tools": 90}, candidate=BASELINE).values()))
    verdict = _judge(_policy(), evidence, against)
    assert (verdict.verdict, verdict.gates[0].status) == ("Inconclusive", "not judged")
    assert "this rule needs the items" in verdict.gates[0].rules[0].detail


@pytest.mark.parametrize(
    "other",
    [
        _runs(_solved(50, 60), categories="another"),
        [row.model_copy(update={"item": f"other-{row.item}"}) for row in _runs(_solved(50, 60))],
    ],
    ids=["another category", "other items"],
)
def test_other_items_under_the_same_conditions_are_refused(other: list[Row]):
    """Rows with the same totals under the name of the same dataset, but not its items."""
    verdict = _judge(_policy(), _runs(_solved(50, 60)), other)
    assert verdict.verdict == "Invalid"
    assert verdict.gates == ()


def test_a_missing_answer_is_not_compared():
    verdict = _judge(_policy(), _runs([*_solved(500, 569), None]), _runs(_solved(500, 570)))
    assert (verdict.verdict, verdict.gates[0].status) == ("Inconclusive", "not judged")


# items that must not be lost

GUARD = (
    "name: p\ngates:\n  - name: Core\n    rules:\n"
    "      - guard: {pack: tools, items: [item-000, item-001], at_least: 60}\n"
)


@pytest.mark.parametrize(
    ("runs", "verdict"),
    [
        ([[1, 1, 0]], "Pass"),
        ([[1, 0, 1]], "FailCore"),
        ([[1, 1, 0], [1, 0, 0], [1, 1, 0]], "Pass"),  # 2 of 3 runs
        ([[1, 1, 0], [1, 0, 0], [1, 0, 0]], "FailCore"),
    ],
)
def test_a_guarded_item_is_held_in_so_many_of_its_runs(runs: list[list[float]], verdict: str):
    found = _judge(_policy(GUARD), _runs(*runs), _runs(*runs), repeats=len(runs))
    assert found.verdict == verdict


def test_a_guarded_item_that_was_never_asked_is_not_judged():
    found = _judge(_policy(GUARD), _runs([1.0]), _runs([1.0]))
    assert (found.verdict, found.gates[0].rules[0].detail) == ("Inconclusive", "tools: there is no item item-001")


# what is not decided


def _undecided(policy: Policy, **more: Any) -> Verdict:
    return _judge(policy, _runs(_solved(12, 15)), _runs(_solved(12, 15)), **more)


def _waiver(bound_to: Policy, **changes: Any) -> Waiver:
    about = {
        "candidate": CANDIDATE,
        "policy": bound_to.identity(),
        "gate": "Tools",
        "reason": "looked at by hand",
        "by": "ada",
        "expires": TODAY,
    }
    return Waiver(**about | changes)


WAIVABLE = _policy(inconclusive="{means: waiver}")


def test_a_person_may_let_pass_what_is_not_decided_and_the_verdict_says_who():
    waiver = _waiver(WAIVABLE)
    verdict = _undecided(WAIVABLE, waivers=[waiver], today=TODAY)
    assert (verdict.verdict, verdict.gates[0].status, verdict.waivers) == ("Pass", "waived", (waiver.identity(),))
    assert "Tools: let pass by ada until 2026-11-22: looked at by hand" in verdict.reasons


@pytest.mark.parametrize(
    ("changes", "today"),
    [
        ({"expires": "2026-11-21"}, TODAY),
        ({"gate": "Other"}, TODAY),
        ({"candidate": "d" * 64}, TODAY),
        ({"policy": "d" * 64}, TODAY),
        ({}, None),
    ],
    ids=["expired", "another gate", "another candidate", "another policy", "a day that nobody knows"],
)
def test_a_waiver_holds_for_what_it_names_and_no_longer(changes: dict[str, str], today: str | None):
    verdict = _undecided(WAIVABLE, waivers=[_waiver(WAIVABLE, **changes)], today=today)
    assert (verdict.verdict, verdict.waivers) == ("Inconclusive", ())


def test_a_policy_that_knows_no_waivers_takes_none():
    plain = _policy()
    assert _undecided(plain, waivers=[_waiver(plain)], today=TODAY).verdict == "Inconclusive"


def test_a_waiver_lets_no_failure_and_no_missing_pack_pass():
    failing = _judge(WAIVABLE, _runs(_solved(40, 60)), _runs(_solved(55, 60)), waivers=[_waiver(WAIVABLE)], today=TODAY)
    missing = _judge(WAIVABLE, _runs([1.0]), _runs([1.0]), pack="elsewhere", waivers=[_waiver(WAIVABLE)], today=TODAY)
    assert (failing.verdict, missing.verdict) == ("FailTools", "Inconclusive")


def test_a_policy_that_wants_more_runs_says_how_many():
    verdict = _undecided(_policy(inconclusive="{means: repeat, repeats: 5}"))
    assert verdict.verdict == "Inconclusive"
    assert "tools: not decided by 1 run; evaluate it up to 4 times more" in verdict.reasons


def test_a_policy_without_the_new_words_keeps_its_digest():
    with_default = _policy(inconclusive="{means: block}")
    assert with_default.identity() == _policy().identity()
    assert WAIVABLE.identity() != _policy().identity()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (PAIRED.replace("margin: 5", "margin: 0"), 5),
        (PAIRED.replace("margin: 5", "margin: 5, category: x"), 5),
        (PAIRED + "inconclusive: {means: repeat}\n", 6),
        (PAIRED + "inconclusive: {means: ask}\n", 6),
        (PAIRED + "rank_by: []\n", 6),
        (GUARD.replace("pack: tools", "packs: [a, b]"), 5),
    ],
)
def test_what_a_policy_cannot_mean_is_refused_with_its_line(text: str, line: int):
    with pytest.raises(UsageError, match=f"line {line}"):
        parse_policy(text, "policy.yaml")


def test_the_policy_explains_what_it_does_with_what_is_not_decided():
    sentences = explain(_policy(inconclusive="{means: repeat, repeats: 5}", rank_by="[tools]"))
    assert sentences == [
        "Tools: tools: shown on the same items to be at most 5 points below the baseline",
        "What is not decided is asked again, up to 5 runs in all",
        "Of those that pass, the best has the highest mean score on tools",
    ]
