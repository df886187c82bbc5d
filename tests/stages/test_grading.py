"""Grading: what earns a point, and that nothing else does."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gates import canonical
from stages.common import grading
from stages.common.grading import Expected, Grade, grade

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=6
)
arguments = st.dictionaries(st.text(min_size=1), values, max_size=4)


def answer(
    content: str | None = None, *, calls: list[tuple[str, str]] | None = None, reason: str = "stop"
) -> dict[str, Any]:
    """A chat completion as servers send it."""
    made = [{"type": "function", "function": {"name": name, "arguments": text}} for name, text in calls or []]
    message = {"role": "assistant", "content": content, "reasoning": None, "tool_calls": made}
    return {"choices": [{"index": 0, "message": message, "finish_reason": reason}], "usage": {"completion_tokens": 3}}


def call(expected: Expected, text: str, *, name: str = "probe") -> float:
    return grade("tool-call", expected, answer(calls=[(name, text)])).points


@given(arguments)
def test_the_right_call_earns_its_point_in_any_order_of_keys(right):
    expected = Expected(name="probe", arguments=right)
    assert call(expected, json.dumps(right)) == 1
    assert call(expected, json.dumps(dict(reversed(right.items())), indent=2)) == 1


@given(arguments, st.data())
def test_any_one_change_of_the_right_arguments_loses_the_point(right, data):
    changed = json.loads(json.dumps(right))
    kinds = ["add"] + (["remove", "rename", "replace"] if right else [])
    kind = data.draw(st.sampled_from(kinds))
    key = data.draw(st.sampled_from(sorted(right))) if right else ""
    other = data.draw(st.text(min_size=1).filter(lambda text: text not in right))
    if kind == "add":
        changed[other] = data.draw(values)
    elif kind == "remove":
        del changed[key]
    elif kind == "rename":
        changed[other] = changed.pop(key)
    else:
        changed[key] = data.draw(values)
        assume(json.dumps(changed[key], sort_keys=True) != json.dumps(right[key], sort_keys=True))
        assume(not (changed[key] == right[key] == 0 and type(changed[key]) is type(right[key])))  # 0.0 and -0.0
    assert call(Expected(name="probe", arguments=right), json.dumps(changed)) == 0


@pytest.mark.parametrize("given_as", ["1.0", '"1"', "true", "[1]", "null", "1e0"])
def test_json_types_are_told_apart(given_as):
    expected = Expected(name="probe", arguments={"days": 1})
    assert call(expected, '{"days": 1}') == 1
    assert call(expected, f'{{"days": {given_as}}}') == 0


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", "{}", '{"days": 1,}', '{"days": 1, "days": 1}', '{"days": NaN}', "[" * 100_000]
)
def test_malformed_arguments_earn_nothing_and_break_nothing(text):
    assert call(Expected(name="probe", arguments={"days": 1}), text) == 0


def test_arguments_that_nobody_expects_are_malformed_none_the_less():
    assert call(Expected(name="probe"), "not JSON") == 1, "the right tool is all that counts here"
    assert call(Expected(name="probe", arguments={}), "not JSON") == 0


@given(arguments)
def test_another_tool_two_calls_or_none_earn_nothing(right):
    expected, text = Expected(name="probe", arguments=right), json.dumps(right)
    assert call(expected, text, name="Probe") == 0
    assert grade("tool-call", expected, answer(calls=[("probe", text)] * 2)).points == 0
    assert grade("tool-call", expected, answer(text)).points == 0


@given(st.text().filter(str.strip), st.sampled_from(grading.get_args(grading.Grader)))
def test_a_plain_answer_counts_without_the_space_around_it(text, grader):
    expected = Expected(answer=text.strip())
    assert grade(grader, expected, answer(f"\n\n{text.strip()} \n")) == Grade(1, "scored")
    assert grade(grader, expected, answer(text.strip() + ".")).points == 0
    assert grade(grader, expected, answer(None)).points == 0


def test_a_plain_answer_beside_a_call_is_no_plain_answer():
    said = answer("no tool fits.", calls=[("probe", "{}")])
    assert grade("tool-call", Expected(answer="no tool fits."), said).points == 0


def test_the_right_answer_cut_off_by_the_limit_is_truncated():
    assert grade("exact-text", Expected(answer="4"), answer("4", reason="length")) == Grade(0, "truncated")


@given(values)
def test_whatever_is_no_chat_completion_is_the_models_error_and_breaks_nothing(response):
    assert grade("tool-call", Expected(name="probe"), response) == Grade(0, "model_error")
    wrapped = {"choices": [{"message": response, "finish_reason": "stop"}]}
    assert grade("tool-call", Expected(name="probe"), wrapped).points == 0


@pytest.mark.parametrize(
    "calls",
    ["x", [1], [{"function": None}], [{"function": {"name": "probe"}}], [{"function": {"name": 1, "arguments": "{}"}}]],
)
def test_tool_calls_of_another_shape_are_the_models_error(calls):
    response = answer("")
    response["choices"][0]["message"]["tool_calls"] = calls
    assert grade("tool-call", Expected(name="probe"), response) == Grade(0, "model_error")


PINNED = {
    1: "7b642f1035e16ee64a4b7947e899ef6cc654d9c3fabd5231d095521e8c190fe9",
}


def test_the_version_rises_when_any_answer_is_graded_otherwise():
    """If this fails, the grading has changed: raise grading.VERSION and write the new digest beside it."""
    expectations = [
        Expected(answer="4"),
        Expected(name="probe"),
        Expected(name="probe", arguments={}),
        Expected(name="probe", arguments={"a": [1, {"b": None}]}),
    ]
    responses = [
        answer("4"),
        answer(" 4\n"),
        answer("4", reason="length"),
        answer("4", reason="tool_calls"),
        answer(None),
        answer("4", calls=[("probe", "{}")]),
        *(
            answer(calls=[("probe", text)])
            for text in ("{}", '{"a": [1, {"b": null}]}', '{"a": [1.0, {"b": null}]}', "{")
        ),
        answer(calls=[("probe", "{}"), ("probe", "{}")]),
        answer(calls=[("other", "{}")]),
        {},
        None,
        {"choices": []},
    ]
    table = [
        [grader, number, list(map(str, (graded.points, graded.outcome)))]
        for grader in ("tool-call", "exact-text")
        for expected in expectations
        for number, response in enumerate(responses)
        for graded in [grade(grader, expected, response)]
    ]
    assert canonical.digest(canonical.dumps(table)) == PINNED[grading.VERSION]
