from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gates import canonical
from gates.evidence import conditions_key, incomparable, pools, run, totals
from gates.pooling import CONDITIONS, exact, scores
from gates.records import Conditions, Evidence, Row, Score, Totals
from tests.support.scores import (
    KNOWN,
    asked,
    by_digest,
    complaints_of,
    conditions,
    header,
    right,
    totals_alone,
    written,
)

_ROWS = st.lists(
    st.builds(
        lambda category, points, of: (category, min(points, of), of),
        st.sampled_from(["a", "b", "c"]),
        st.integers(0, 300).map(lambda n: n / 100),
        st.sampled_from([1.0, 2.0, 3.0]),
    ),
    min_size=1,
    max_size=40,
).map(
    lambda items: [
        Row(item=f"i{number}", repeat=0, category=category, points=points, of=of, outcome="scored")
        for number, (category, points, of) in enumerate(items)
    ]
)


def test_totals_are_exact_where_floats_are_not():
    rows = asked([0.1] * 10)
    assert totals(rows).overall == Score(points=1, of=10, items=10)
    assert sum([row.points or 0 for row in rows]) != 1


@given(_ROWS, st.randoms())
def test_totals_do_not_depend_on_the_order_of_rows(rows: list[Row], shuffler: random.Random):
    shuffled = shuffler.sample(rows, len(rows))
    assert totals(shuffled).to_bytes() == totals(rows).to_bytes()


@given(_ROWS)
def test_categories_add_up_to_the_whole(rows: list[Row]):
    found = totals(rows)
    parts = found.categories.values()
    assert sum(exact(part.points) for part in parts) == exact(found.overall.points)
    assert sum(part.items for part in parts) == found.overall.items == len(rows)


def test_answers_that_never_came_are_missing_and_nowhere_else():
    found = totals(asked([1, None, 0, None]))
    assert (found.overall, found.missing) == (Score(points=1, of=2, items=2), 2)


def test_an_item_asked_three_times_is_one_item():
    rows = [row for repeat in range(3) for row in asked([1, 0], repeat=repeat)]
    assert totals(rows).overall == Score(points=3, of=6, items=2)


@given(_ROWS)
def test_evidence_as_it_is_made_can_be_trusted(rows: list[Row]):
    assert complaints_of(header(rows, pack="p"), written(rows)) == []


def test_evidence_known_by_totals_alone_needs_no_rows():
    (evidence,) = totals_alone({"p": 90}).values()
    assert complaints_of(evidence, None) == []


GOOD = [*asked([1, 0.5, 0]), *asked([1, 1, None], repeat=1)]


def _row(**changes: Any) -> Row:
    return Row(
        **{"item": "item-000", "repeat": 0, "category": "all", "points": 1, "of": 1, "outcome": "scored"} | changes
    )


def _bad_rows() -> dict[str, tuple[list[Row], str]]:
    return {
        "more points than there are": ([_row(points=1.5), *GOOD[1:]], "1.5 points of 1"),
        "less than nothing": ([_row(points=-1), *GOOD[1:]], "-1 points of 1"),
        "scored without points": ([_row(points=None), *GOOD[1:]], "no points"),
        "infra with points": ([_row(outcome="infra", points=1), *GOOD[1:]], "although no answer came"),
        "truncated with points": ([_row(outcome="truncated", points=1), *GOOD[1:]], "it ended as truncated"),
        "an item twice": ([GOOD[0], *GOOD], "a repeat is there twice"),
        "an item twice instead of another": ([GOOD[0], GOOD[0], *GOOD[2:]], "twice"),
        "a repeat is not there": (GOOD[:-1], "1 of 2 repeats"),
        "a repeat too many": ([*GOOD, _row(repeat=2)], "3 of 2 repeats"),
        "an item that changes its category": ([_row(category="other"), *GOOD[1:]], "differ in category"),
        "nothing at all": ([], "no items"),
    }


@pytest.mark.parametrize("kind", _bad_rows())
def test_rows_that_cannot_be_trusted_are_named(kind: str):
    rows, words = _bad_rows()[kind]
    complaints = complaints_of(header(rows, pack="p", repeats=2), written(rows))
    assert any(words in complaint for complaint in complaints), complaints
    assert complaints_of(header(GOOD, pack="p", repeats=2), written(GOOD)) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"category":"all","item":"x","of":1,"outcome":"scored","points":NaN,"repeat":0}', "NaN is not JSON"),
        (b'{"category":"all","item":"x","of":1,"outcome":"scored","points":1e999,"repeat":0}', "row 1"),
        (b'{"category":"all","item":"x","of":0,"outcome":"scored","points":0,"repeat":0}', "greater than 0"),
        (b'{"category":"all","item":"x","of":1,"outcome":"great","points":1,"repeat":0}', "outcome"),
        (b'{"item":"x","of":1,"outcome":"scored","points":1,"category":"all","repeat":0}', "not in canonical form"),
        (b"[]", "row 1"),
        (b"", "row 1"),
        (b"\xff", "row 1"),
        (b"[" * 100_000, "row 1"),
    ],
)
def test_a_line_that_is_no_row_is_named(line: bytes, words: str):
    data = line + b"\n" + written(asked([1]))
    evidence = header(asked([1]), pack="p").model_copy(update={"rows": canonical.digest(data)})
    complaints = complaints_of(evidence, data)
    assert any(words in complaint for complaint in complaints), complaints


@given(st.data())
def test_no_byte_of_the_rows_can_change_unnoticed(data: st.DataObject):
    whole = written(GOOD)
    place = data.draw(st.integers(0, len(whole) - 1))
    other = data.draw(st.integers(0, 255).filter(lambda byte: byte != whole[place]))
    changed = whole[:place] + bytes([other]) + whole[place + 1 :]
    evidence = header(GOOD, pack="p", repeats=2)
    assert complaints_of(evidence, changed) != []
    assert complaints_of(evidence.model_copy(update={"rows": canonical.digest(changed)}), changed) != [] or (
        [Row.from_bytes(line).points for line in changed.splitlines()] == [row.points for row in GOOD]
    )


def test_rows_that_are_named_but_not_there_cannot_be_trusted():
    assert complaints_of(header(GOOD, pack="p", repeats=2), None) == ["its rows are not there"]


def test_one_row_fewer_than_the_totals_say_is_seen():
    evidence = header(right(3, 5), pack="p")
    fewer = written(right(3, 4))
    assert complaints_of(evidence.model_copy(update={"rows": canonical.digest(fewer)}), fewer) == [
        "the totals are not the sums of its rows"
    ]


def test_rows_with_more_points_than_a_number_holds_cannot_be_trusted():
    rows = [_row(item=item, repeat=0, points=0, of=1e308) for item in "ab"]
    evidence = header(GOOD[:1], pack="p").model_copy(update={"rows": canonical.digest(written(rows))})
    assert "the totals are not the sums of its rows" in complaints_of(evidence, written(rows))


@pytest.mark.parametrize("points", [float("nan"), float("inf"), float("-inf"), -1.0, 101.0])
def test_totals_that_are_no_score_cannot_be_trusted(points: float):
    overall = Score.model_construct(points=points, of=100.0, items=15)
    sums = Totals.model_construct(overall=overall, categories={}, missing=0)
    (evidence,) = totals_alone({"p": 90}).values()
    assert complaints_of(evidence.model_copy(update={"totals": sums}), None) != []


@given(_ROWS, st.integers(1, 3))
def test_pooling_equal_runs_changes_no_score(rows: list[Row], runs: int):
    # another `tokens` makes another run of the same results
    evidence = [header([row.model_copy(update={"tokens": run}) for row in rows], pack="p") for run in range(runs)]
    (pool,) = pools(by_digest(evidence))["p"].values()
    (single,) = pools(by_digest(evidence[:1]))["p"].values()
    assert pool.overall.percent == single.overall.percent
    assert (pool.overall.items, pool.runs) == (len(rows), runs)


def test_the_same_rows_recorded_twice_count_once():
    evidence = header(right(3, 4), pack="p")
    again = evidence.model_copy(update={"recorded": {"concurrency": 8}})
    (pool,) = pools(by_digest([evidence, again]))["p"].values()
    assert (pool.runs, pool.overall.of) == (1, 4)


def test_runs_under_other_conditions_are_not_pooled():
    evidence = by_digest([header(right(3, 4), pack="p"), header(right(2, 4), pack="p", thinking="off")])
    assert sorted(pool.overall.percent for pool in pools(evidence)["p"].values()) == [50, 75]
    assert sorted(scores({digest: run(each) for digest, each in evidence.items()})["p"]) == [50, 75]


def test_the_conditions_that_may_be_unknown_are_those_of_the_record():
    assert set(Conditions.model_fields) == CONDITIONS


def test_an_unfinished_run_counts_for_nothing_once_a_complete_one_is_there():
    """The complete run may hold the same answers; counted twice, they would weigh more than those that came late."""
    partial, whole = header(asked([1, None]), pack="p"), header(asked([1, 0]), pack="p")
    assert [pool.missing for pool in pools(by_digest([partial]))["p"].values()] == [1]
    (pool,) = pools(by_digest([partial, whole]))["p"].values()
    assert (pool.missing, pool.left_out, pool.runs, pool.overall.percent) == (0, 1, 1, 50)


OTHER: dict[str, Any] = {
    field: {"x": 1}
    if isinstance(value, dict)
    else "f" * 64
    if len(str(value)) == 64
    else 7
    if value in (256, 1024)
    else "off"
    for field, value in KNOWN.items()
}


@pytest.mark.parametrize("field", Conditions.model_fields)
def test_each_condition_must_agree_and_be_known(field: str):
    assert incomparable(conditions(), conditions(**{field: OTHER[field]})) == [field]
    assert incomparable(conditions(), conditions(**{field: None})) == [field]
    assert incomparable(conditions(**{field: None}), conditions(**{field: None})) == [field]


def test_a_condition_that_a_later_version_adds_must_agree_too():
    assert incomparable(conditions(), conditions(kv_cache="fp8")) == ["kv_cache"]


def test_what_is_known_by_totals_alone_agrees_as_far_as_it_is_known():
    nothing, template = Conditions(), Conditions(chat_template="1" * 64)
    assert incomparable(nothing, nothing, totals_alone=True) == []
    assert incomparable(template, Conditions(chat_template="2" * 64), totals_alone=True) == ["chat_template"]
    assert incomparable(nothing, template, totals_alone=True) == ["chat_template"]


_CONDITIONS = st.fixed_dictionaries(
    {},
    optional={
        "engine": st.sampled_from(["vllm", "embedded", None]),
        "server_flags": st.sampled_from([{}, {"a": 1}, {"a": True}, {"a": 1.0}]),
        "thinking": st.sampled_from(["on", "off", None]),
    },
)


@given(_CONDITIONS, _CONDITIONS, st.booleans(), st.booleans(), st.booleans())
def test_evidence_is_grouped_exactly_when_its_conditions_agree(
    one: dict[str, Any], two: dict[str, Any], known: bool, first_has_rows: bool, second_has_rows: bool
):
    def evidence(changes: dict[str, Any], has_rows: bool) -> Evidence:
        found = Conditions(**(KNOWN if known else {}) | changes)
        made = header(right(1, 2), pack="p").model_copy(update={"conditions": found})
        return made if has_rows else made.model_copy(update={"rows": None, "responses": None})

    first, second = evidence(one, first_has_rows), evidence(two, second_has_rows)
    same = conditions_key("first", first) == conditions_key("second", second)
    totals_alone = not first_has_rows and not second_has_rows
    assert same == (incomparable(first.conditions, second.conditions, totals_alone=totals_alone) == [])
