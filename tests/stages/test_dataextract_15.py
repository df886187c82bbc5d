"""dataextract-15: what each scenario's right answer earns, and that anything less earns less."""

from __future__ import annotations

import itertools
import json
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gates import canonical
from stages.common.grading import extraction
from stages.common.grading.extraction import Expected, Item
from stages.evaluate.packs import read_pack
from tests.support.scenarios import (
    AGENTS,
    Turn,
    conversation,
    grade,
    ideals,
    json_mutants,
    judged,
    response,
    share,
)

PROJECT = Path(__file__).resolve().parents[2]
PACK = read_pack(PROJECT, "dataextract-15")
IDEALS = ideals(PROJECT, "dataextract-15")
every_item = pytest.mark.parametrize("item", PACK.items, ids=lambda item: item.id)


def points(item: Item, value: object) -> float:
    text = value if isinstance(value, str) else json.dumps(value)
    return grade(PACK, item, [Turn(content=text)]).points


def right(item: Item) -> dict:
    """The ideal answer, as its reader sees it."""
    content = IDEALS[item.id][0].content
    return json.loads(content.removeprefix("```json").removesuffix("```"))


def test_there_are_three_scenarios_of_each_of_five_kinds():
    kinds = [item.category for item in PACK.items]
    assert len(kinds) == 15
    assert {kind: kinds.count(kind) for kind in kinds} == dict.fromkeys(
        ["Clean", "Noisy", "Multi-Entity", "Implicit", "Complex"], 3
    )
    assert "not BenchLocal's" in (PROJECT / "packs/dataextract-15.yaml").read_text()


def test_the_ideal_transcripts_are_those_of_the_items():
    assert list(IDEALS) == [item.id for item in PACK.items]


@every_item
def test_the_ideal_answer_earns_the_point(item):
    assert grade(PACK, item, IDEALS[item.id]).points == 1


@every_item
def test_the_question_names_every_key_of_the_answer(item):
    keys = {key for _, node in _nodes(right(item)) if isinstance(node, dict) for key in node}
    assert [key for key in keys if f'"{key}": ' not in item.messages[-1]["content"]] == []


@every_item
def test_a_key_dropped_added_or_changed_in_value_or_type_loses_points(item):
    kinds = set()
    for mutant in json_mutants(right(item)):
        if _equal(item, mutant):
            assert points(item, mutant.value) == 1, mutant
        else:
            assert points(item, mutant.value) < 1, mutant
            kinds.add(mutant.kind)
    assert kinds >= {"dropped", "added", "retyped", "changed", "emptied"}


@every_item
def test_two_fields_of_one_type_swapped_lose_points(item):
    leaves = [(path, node) for path, node in _nodes(right(item)) if not isinstance(node, dict | list)]
    swaps = 0
    for (one, first), (other, second) in itertools.combinations(leaves, 2):
        if type(first) is not type(second) or first == second or _in_one_set(item, one, other):
            continue
        mutant = right(item)
        _parent(mutant, one)[one[-1]], _parent(mutant, other)[other[-1]] = second, first
        assert points(item, mutant) < 1, (one, other)
        swaps += 1
    assert swaps >= 5


@every_item
def test_an_entity_nobody_mentioned_loses_points(item):
    for path in item.expected.keys:
        mutant = right(item)
        entries = mutant[path]
        entries.append({key: _other(value) for key, value in entries[0].items()})
        assert points(item, mutant) < 1


@every_item
def test_the_order_of_keys_entities_and_sets_and_the_white_space_mean_nothing(item):
    shuffled = _reversed(item, right(item), "")
    assert points(item, shuffled) == 1
    assert points(item, json.dumps(shuffled, indent=8, ensure_ascii=False)) == 1


@every_item
def test_prose_around_the_answer_and_a_draft_before_it_are_no_loss(item):
    text = json.dumps(right(item), ensure_ascii=False)
    draft = json.dumps(dict.fromkeys(right(item)))
    assert points(item, f"Here is the data:\n\n{text}\n\nThe rest is null {{as asked}}.") == 1
    assert points(item, f"```json\n{draft}\n```\nNo, wait:\n```\n{text}\n```\nThat is all {{}}.") == 1
    assert points(item, f"First {draft}, then {text}") == 1
    assert points(item, f"First {text}, then {draft}") == 0


@every_item
def test_what_an_explanation_quotes_from_the_answer_is_not_the_answer(item):
    text = json.dumps(right(item), ensure_ascii=False)
    key = next(path[-1] for path, node in _nodes(right(item)) if not isinstance(node, dict | list))
    assert points(item, f'{text}\n\n{{"{key}": null}} would be wrong here, and so would {{}}.') == 1
    assert points(item, f'```json\n{text}\n```\nOf these, this is certain:\n```json\n{{"{key}": 1}}\n```') == 1


@every_item
def test_loose_texts_may_be_written_in_another_case_and_typography(item):
    changed = _loosened(item, right(item), "")
    assert changed != right(item)
    assert points(item, changed) == 1


@every_item
def test_nulls_for_everything_earn_nothing(item):
    nulls = _nulled(right(item))
    assert points(item, nulls) == 0
    assert points(item, dict.fromkeys(right(item))) == 0


@every_item
def test_an_answer_of_another_item_or_half_an_answer_earns_little(item):
    others = [right(other) for other in PACK.items if other is not item]
    assert max(points(item, other) for other in others) < 0.1
    text = json.dumps(right(item))
    assert points(item, text[: len(text) // 2]) < 0.25


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_that_does_not_read_earns_less_than_a_quarter(name):
    assert share(PACK, AGENTS[name]) < 0.25


def test_an_agent_that_copies_the_schema_earns_less_than_a_quarter():
    def schema(messages, _):
        text = messages[-1]["content"]
        return response(text[text.index("{") : text.index("Text")])

    assert share(PACK, schema) < 0.25


def test_an_answer_that_never_ends_earns_nothing():
    item = PACK.items[0]
    cut = conversation(PACK, item, lambda *_: response(json.dumps(right(item)), reason="length"))
    assert judged(PACK, item, cut).outcome == "truncated"


# --- the grader itself ------------------------------------------------------------------------------------------------

leaves = st.none() | st.booleans() | st.integers(-99, 99) | st.floats(-9, 9).map(lambda x: round(x, 2)) | st.text()
trees = st.recursive(
    leaves, lambda inside: st.lists(inside, max_size=3) | st.dictionaries(st.text(), inside, max_size=3)
)
answers = st.dictionaries(st.text(min_size=1), trees, min_size=1, max_size=4)


def one(answer: dict, **how: object) -> Item:
    item = PACK.items[0].model_dump() | {"expected": {"answer": answer, **how}}
    return Item.model_validate(item)


@given(answers)
def test_any_value_earns_the_point_for_itself_and_every_mutant_less(answer):
    if all(node is None or isinstance(node, dict | list) for _, node in _nodes(answer)):
        return
    item = one(answer)
    assert points(item, answer) == 1
    for mutant in json_mutants(answer):
        if not _equal(item, mutant):
            assert points(item, mutant.value) < 1, mutant


@given(answers, st.text() | trees.map(json.dumps) | trees.map(json.dumps).map(lambda text: f"```\n{text}\n```"))
def test_whatever_is_answered_earns_between_nothing_and_the_point(answer, text):
    if all(node is None or isinstance(node, dict | list) for _, node in _nodes(answer)):
        return
    assert 0 <= points(one(answer), text) <= 1


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000, '{"a": [' * 20_000, '{"a":' * 50_000, '{"a":' * 400 + "1" + "}" * 400, "{" * 50_000,
        '{"n": NaN}', '{"n": 1e999}', '{"n": 1, "n": 1}', "9" * 10_000, '{"n": ' + "9" * 10_000 + "}",
        '{"n": "\\ud800"}', '"{"', "```", "```\n{",
    ],
)  # fmt: skip
def test_absurd_answers_earn_nothing_and_break_nothing(text):
    assert points(one({"n": 1}), text) == 0


def test_types_are_told_apart_but_a_number_is_a_number():
    assert points(one({"n": 12}), '{"n": 12.0}') == points(one({"n": 12.5}), '{"n": 1.25e1}') == 1
    for wrong in ('"12"', "true", "[12]", "null", "12.5", '{"n": 12}'):
        assert points(one({"n": 12}), f'{{"n": {wrong}}}') == 0
    assert points(one({"n": 1}), '{"n": true}') == points(one({"n": True}), '{"n": 1}') == 0
    assert points(one({"n": 0}), '{"n": false}') == points(one({"n": False}), '{"n": 0}') == 0


def test_points_are_the_share_of_right_fields():
    item = one({"a": 1, "b": [{"k": "x", "v": 1}, {"k": "y", "v": 2}], "c": None}, keys={"b": "k"})
    assert points(item, {"a": 1, "b": [{"k": "y", "v": 3}, {"k": "x", "v": 1}], "c": None}) == 5 / 6
    assert points(item, {"a": 1, "b": [{"k": "x", "v": 1}], "c": None}) == 4 / 6
    right_and_more = {"a": 1, "b": [{"k": "x", "v": 1}, {"k": "y", "v": 2}], "c": None}
    assert points(item, right_and_more) == 1
    right_and_more["b"].append({"k": "z", "v": 0})
    assert points(item, right_and_more) == 6 / 8, "an entity too many has two fields too many"
    right_and_more["b"].append({"k": "x", "v": 1})
    assert points(item, right_and_more) == 6 / 10, "and so has one given twice"
    assert points(item, {"c": None}) == 0, "a null alone is a guess"


@pytest.mark.parametrize(
    ("how", "complaint"),
    [
        ({"keys": {"c": "k"}}, "no list c"),
        ({"keys": {"b": "v"}}, "two entries"),
        ({"keys": {"b": "w"}}, "not every entry"),
        ({"sets": ["a"]}, "no list a"),
        ({"loose": ["b.v"]}, "no text b.v"),
    ],
)
def test_a_rule_that_fits_nothing_is_refused(how, complaint):
    with pytest.raises(ValidationError, match=complaint):
        Expected.model_validate({"answer": {"a": 1, "b": [{"k": "x", "v": 1}, {"k": "y", "v": 1}]}, **how})


def test_an_answer_of_nulls_alone_is_refused_as_an_expectation():
    with pytest.raises(ValidationError, match="not null"):
        Expected.model_validate({"answer": {"a": None}})


PINNED = {2: "e862f32f53f8f1a35bbc43a9f9611999320a8b6e85e28d2eb97c458dcb82e374"}


def test_the_version_rises_when_any_answer_is_graded_otherwise():
    """If this fails, the grading has changed: raise extraction.VERSION and write the new digest beside it."""
    item = one(
        {"a": 1, "t": "Ab c", "s": ["x", "y"], "b": [{"k": "x", "v": None}], "o": {"p": True, "q": 1.5}},
        keys={"b": "k"}, sets=["s"], loose=["t"],
    )  # fmt: skip
    whole = item.expected.answer
    changes = [
        {"a": 1.0}, {"a": "1"}, {"a": True}, {"a": None}, {"z": 1}, {"z": {"y": [1, 2], "x": {}}}, {"t": "aB  C"},
        {"t": "Abc"}, {"s": ["y", "x"]}, {"s": ["x"]}, {"s": ["x", "x"]}, {"s": ["x", "y", "y"]}, {"s": "x"},
        {"b": []}, {"b": [{"k": "x"}]}, {"b": [{"k": "X", "v": None}]},
        {"b": [{"k": "z", "v": 1}, {"k": "x", "v": None}]},
        {"o": {"p": 1, "q": 1.5}}, {"o": {"p": True, "q": 1.5, "r": None}}, {"o": []}, {},
    ]  # fmt: skip
    texts = [json.dumps({**whole, **change}) for change in changes]
    texts += [
        f"```\n{texts[-1]}\n```\n{{}}",
        f"{{}} {texts[-1]}",
        f"{texts[-1]} {{}}",
        f'{texts[-1]} {{"a": 2}}',
        texts[-1].replace("Ab c", "AB\u00a0C"),
        "",
        "{",
        "[]",
        '{"b": [{"v": null}]}',
    ]
    table = [[text, repr(points(item, text))] for text in texts]
    assert canonical.digest(canonical.dumps(table)) == PINNED[extraction.VERSION]


# --- helpers ----------------------------------------------------------------------------------------------------------


def _nodes(value, path=()):
    yield path, value
    for key, inside in (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    ):
        yield from _nodes(inside, (*path, key))


def _parent(value, path):
    for key in path[:-1]:
        value = value[key]
    return value


def _name(path) -> str:
    return ".".join(key for key in path if isinstance(key, str))


def _equal(item, mutant) -> bool:
    """Whether the mutant is none: the same number in another form, or another order where order means nothing."""
    if mutant.kind == "retyped":
        before, after = (_parent(value, mutant.path)[mutant.path[-1]] for value in (item.expected.answer, mutant.value))
        numbers = all(isinstance(each, int | float) and not isinstance(each, bool) for each in (before, after))
        return numbers and before == after
    free = (*item.expected.keys, *item.expected.sets)
    return mutant.kind == "swapped" and _name(mutant.path) in free


def _in_one_set(item, one, other) -> bool:
    return one[:-1] == other[:-1] and isinstance(one[-1], int) and _name(one) in item.expected.sets


def _other(value):
    if isinstance(value, bool) or value is None:
        return value
    return value + 1 if isinstance(value, int | float) else f"{value} x"


def _reversed(item, value, path):
    if isinstance(value, dict):
        return {
            key: _reversed(item, inside, f"{path}.{key}" if path else key) for key, inside in reversed(value.items())
        }
    if isinstance(value, list):
        entries = [_reversed(item, inside, path) for inside in value]
        return entries[::-1] if path in (*item.expected.keys, *item.expected.sets) else entries
    return value


def _loosened(item, value, path):
    if isinstance(value, dict):
        return {key: _loosened(item, inside, f"{path}.{key}" if path else key) for key, inside in value.items()}
    if isinstance(value, list):
        return [_loosened(item, inside, path) for inside in value]
    if isinstance(value, str) and path in item.expected.loose:
        typeset = value.upper().replace("-", "\u2011")  # as some models write every hyphen
        return f" {unicodedata.normalize('NFD', typeset)} ".replace(" ", " \u202f")
    return value


def _nulled(value):
    if isinstance(value, dict):
        return {key: _nulled(inside) for key, inside in value.items()}
    return [_nulled(inside) for inside in value] if isinstance(value, list) else None
