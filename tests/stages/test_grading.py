"""Grading: what earns a point, and that nothing else does."""

from __future__ import annotations

import json
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from gates import canonical
from gates.errors import UsageError
from stages.common import grading
from stages.common.execution import Result
from stages.common.grading import exact_text, tool_call
from stages.common.grading.answers import Answer, Call, read, with_results, with_user
from stages.common.grading.items import Grade, Item
from stages.common.grading.tool_call import Expected
from stages.evaluate.packs import read_pack

PROJECT = Path(__file__).resolve().parents[2]

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


def grade(grader: str, expected: Expected, response: Any) -> Grade:
    asked = grading.grader(grader)
    said = expected.model_dump(exclude_unset=True)
    item = asked.item(id="a", category="A", messages=[{"role": "user"}], tools=[{"type": "function"}], expected=said)
    return asked.grade(item, [response])


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


@given(st.text().filter(str.strip), st.sampled_from(["exact-text", "tool-call"]))
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
    assert grade("tool-call", Expected(name="probe"), response).outcome == "model_error"
    wrapped = {"choices": [{"message": response, "finish_reason": "stop"}]}
    assert grade("tool-call", Expected(name="probe"), wrapped).points == 0


@pytest.mark.parametrize(
    "calls",
    ["x", [1], [{"function": None}], [{"function": {"name": "probe"}}], [{"function": {"name": 1, "arguments": "{}"}}]],
)
def test_tool_calls_of_another_shape_are_the_models_error(calls):
    response = answer("")
    response["choices"][0]["message"]["tool_calls"] = calls
    assert grade("tool-call", Expected(name="probe"), response).outcome == "model_error"


PINNED = {
    "exact-text": {1: "a0ac00d6ccdd9ce657714f6453c2c094e394d651e3b889ee993f64c75bc22360"},
    "tool-call": {1: "8ae647c20d9ff48f6c54a7714aa42bcf3d118920ab9f66e0079aed645e64ec50"},
}
RESPONSES = [
    answer("4"),
    answer(" 4\n"),
    answer("4", reason="length"),
    answer("4", reason="tool_calls"),
    answer(None),
    answer("4", calls=[("probe", "{}")]),
    *(answer(calls=[("probe", text)]) for text in ("{}", '{"a": [1, {"b": null}]}', '{"a": [1.0, {"b": null}]}', "{")),
    answer(calls=[("probe", "{}"), ("probe", "{}")]),
    answer(calls=[("other", "{}")]),
    {},
    None,
    {"choices": []},
]


@pytest.mark.parametrize(
    ("grader", "expectations"),
    [
        ("exact-text", [Expected(answer="4")]),
        (
            "tool-call",
            [
                Expected(answer="4"),
                Expected(name="probe"),
                Expected(name="probe", arguments={}),
                Expected(name="probe", arguments={"a": [1, {"b": None}]}),
            ],
        ),
    ],
)
def test_the_version_rises_when_any_answer_is_graded_otherwise(grader, expectations):
    """If this fails, the grading has changed: raise VERSION in the grader's module, and write the new digest beside."""
    table = [
        [number, graded.points, graded.outcome]
        for expected in expectations
        for number, response in enumerate(RESPONSES)
        for graded in [grade(grader, expected, response)]
    ]
    assert canonical.digest(canonical.dumps(table)) == PINNED[grader][grading.grader(grader).module.VERSION]


# -------------------------------------------------------------------------------------------------- what all share


def test_a_grader_that_is_not_there_is_refused_with_those_that_are():
    for name in ("exact", "answers", "items", "../answers", "__init__", ""):
        with pytest.raises(UsageError, match="there is no grader") as error:
            grading.grader(name)
        assert "exact-text, " in error.value.remedy
        assert "answers" not in error.value.remedy


def test_graders_differ_in_their_digests_and_so_do_versions_and_the_limits_of_the_verifier(monkeypatch):
    graders = [grading.grader(name) for name in grading.names()]
    assert len({each.digest for each in graders}) == len(graders) >= 2
    for each in graders:
        before = each.digest
        with monkeypatch.context() as patch:
            patch.setattr(each.module, "VERSION", each.module.VERSION + 1)
            assert each.digest != before
        with monkeypatch.context() as patch:
            patch.setattr("stages.common.execution.REVISION", "another")
            assert (each.digest != before) == each.executes


class _Talker:
    """A grader's module: a conversation of user turns, and code that is what the model said."""

    VERSION = 1
    Item = Item

    @staticmethod
    def reply(_, answers):
        return with_user(answers, "and?")

    @staticmethod
    def executions(_, answers):
        return tuple(answers)

    @staticmethod
    def grade(_, answers, __):
        return Grade(len(answers))


@dataclass
class _Ended:
    outcome: str


TALKER = grading.Grader("talker", _Talker)
ITEM = Item(id="a", category="A", messages=[{"role": "user", "content": "go"}])


@pytest.mark.parametrize(
    ("last", "outcome"), [(None, "model_error"), ({}, "model_error"), (answer("x", reason="length"), "truncated")]
)
def test_a_conversation_with_an_answer_that_is_none_is_over_and_worth_nothing(last, outcome):
    responses = [answer("one"), last]
    assert TALKER.reply(ITEM, responses) is None
    assert TALKER.executions(ITEM, responses) == ()
    graded = TALKER.grade(ITEM, responses)
    assert (graded.points, graded.outcome) == (0, outcome)
    assert TALKER.grade(ITEM, [last, answer("one")]).outcome == outcome


def test_code_that_ran_out_of_time_makes_the_item_a_timeout_and_code_that_failed_does_not():
    late = {"a": _Ended("done"), "b": _Ended("timeout")}
    assert TALKER.grade(ITEM, [answer("x")], late) == Grade(0, "verifier_timeout")
    assert TALKER.grade(ITEM, [answer("x")], {"a": _Ended("failed")}) == Grade(1)


def test_a_turn_is_sent_back_as_it_was_with_names_for_its_calls_that_never_change():
    said = answer("let me see", calls=[("a", '{"x": 1}'), ("b", "{broken"), ("c", "[1]")])
    said["choices"][0]["message"]["reasoning"] = "hm"
    for response in (said, json.loads(json.dumps(said))):
        turn, *told = with_results([read(answer("before")), read(response)], ["one", "two", "three"])
        assert (turn["role"], turn["content"], turn["reasoning"]) == ("assistant", "let me see", "hm")
        assert [call["function"]["arguments"] for call in turn["tool_calls"]] == ['{"x": 1}', "{}", "{}"]
        ids = [call["id"] for call in turn["tool_calls"]]
        assert ids == ["call02000", "call02001", "call02002"] == [message["tool_call_id"] for message in told]
        assert [message["content"] for message in told] == ["one", "two", "three"]
    assert with_user([read(said)], "why?") == [
        {"role": "assistant", "content": "let me see", "reasoning": "hm"},
        {"role": "user", "content": "why?"},
    ]
    with pytest.raises(ValueError, match="zip"):
        with_results([read(said)], ["one"])


@given(st.text())
def test_the_arguments_of_any_call_are_an_object(text):
    call = Call("a", text)
    assert isinstance(call.arguments, dict)
    assert call.arguments in (call.value, {})


@given(st.lists(st.tuples(st.text(), st.text()), max_size=3), st.text(), st.text())
def test_any_answer_can_be_sent_back(calls, content, reasoning):
    answers = [Answer(content, tuple(Call(*each) for each in calls), reasoning)]
    json.dumps(with_results(answers, ["x"] * len(calls)))
    json.dumps(with_user(answers, "x"))


@pytest.mark.parametrize(
    "text", ['{"x":1e999}', *('{"x":' + "[" * deep + "]" * deep + "}" for deep in range(900, 1000, 7))]
)
def test_arguments_that_json_cannot_say_again_go_back_to_the_server_as_json_all_the_same(text):
    turn, _ = with_results([Answer("", (Call("f", text),))], ["told"])
    assert isinstance(json.loads(turn["tool_calls"][0]["function"]["arguments"], parse_constant=_no_json), dict)


def _no_json(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_the_numbers_of_yaml_are_those_of_json_in_an_item():
    row = {"id": "a", "category": "A", "messages": [{"x": [Decimal("0.5"), 1]}], "expected": {"answer": "x"}}
    assert exact_text.Item.model_validate(row).messages == [{"x": [0.5, 1]}]
    called = row | {"tools": [{}], "expected": {"name": "f", "arguments": {"x": Decimal("1.0")}}}
    value = tool_call.Item.model_validate(called).expected.arguments["x"]
    assert (value, type(value)) == (1.0, float)


# ------------------------------------------------------------------------------------------- every pack of the project

PACKS = [
    read_pack(PROJECT, path.stem)
    for path in sorted((PROJECT / "packs").glob("*.yaml"))
    if "\nitems:" in path.read_text()
]
texts = st.text() | st.sampled_from(
    ["NO BUG", "VERDICT: BUG", "```python\ndef f(): pass\n```", "{}", "[1]", "null", "- a\n- b", "`" * 5000, "{" * 3000]
)
responses = st.builds(
    answer,
    st.none() | texts,
    calls=st.lists(st.tuples(texts, texts), max_size=3),
    reason=st.sampled_from(["stop", "tool_calls", "length"]),
)


@given(st.data(), st.lists(responses, min_size=1, max_size=4))
def test_no_answer_breaks_a_grader_or_earns_more_than_its_item_is_worth(data, given_responses):
    pack = data.draw(st.sampled_from(PACKS))
    item = data.draw(st.sampled_from(pack.items))
    said: list[Any] = []
    for response in given_responses[: pack.max_turns]:
        said.append(response)
        if pack.grader.reply(item, said) is None:
            break
    executions = pack.grader.executions(item, said)
    for result in (Result("failed", detail="x"), Result("timeout"), Result("done")):
        graded = pack.grader.grade(item, said, {execution.digest: result for execution in executions})
        assert 0 <= graded.points <= item.of
        assert graded.outcome == "scored" or graded.points == 0
