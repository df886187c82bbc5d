"""The pack instructfollow-15: every constraint that is broken costs its share, in answers that are about the task."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from stages.common.grading import constraints
from stages.common.grading.checks import Check, met
from stages.evaluate.packs import read_pack
from tests.support.scenarios import AGENTS, Call, Turn, grade, ideals, json_mutants, judged, response, share

PROJECT = Path(__file__).parents[2]
PACK = read_pack(PROJECT, "instructfollow-15")
IDEAL = {name: turns[0].content for name, turns in ideals(PROJECT, "instructfollow-15").items()}
ITEMS: dict[str, Any] = {item.id: item for item in PACK.items}
CASES = [(name, each) for name, item in ITEMS.items() for each in item.expected.constraints]
every_prompt = pytest.mark.parametrize("name", ITEMS)
every_constraint = pytest.mark.parametrize(
    ("name", "constraint"), CASES, ids=[f"{name}-{each.check}-{each.line or 'all'}" for name, each in CASES]
)


def points(name: str, text: str) -> float:
    return grade(PACK, ITEMS[name], [Turn(content=text)]).points


# --- the pack ---------------------------------------------------------------------------------------------------------


def test_there_are_three_prompts_of_each_category_and_three_to_six_constraints_each():
    assert Counter(item.category for item in PACK.items) == {
        "Format Constraints": 3,
        "Ordering and Sorting": 3,
        "Multi-Domain": 3,
        "Precision Under Pressure": 3,
        "Adversarial": 3,
    }
    assert all(3 <= len(item.expected.constraints) <= 6 for item in ITEMS.values())
    assert IDEAL.keys() == ITEMS.keys()


@every_prompt
def test_the_ideal_answer_meets_every_constraint(name):
    assert points(name, IDEAL[name]) == 1


# Other answers that are as right: nothing that the prompt leaves open may cost points.
RIGHT = {
    "format-list": [
        "- Rain jacket\n- Dry clothes\n- A first-aid kit\n- Enough drinking water\n- Warm hat and gloves\n- Head torch",
        "- Water filter\n- Light JACKET\n- Phone, fully charged\n- Quick-drying socks\n- Rucksack cover\n- Trail mix",
    ],
    "format-json": [
        json.dumps(json.loads(IDEAL["format-json"]), indent=2),
        IDEAL["format-json"].replace("Lentil soup", "lentil soup").replace('"lentils"', '"Lentils"'),
    ],
    "format-table": [
        IDEAL["format-table"].replace("Mondays", "Monday").replace("---", ":---:"),
        IDEAL["format-table"].replace("\n\n", "\n").replace("| Choir |", "| The choir |").replace("Hall", "the hall"),
        re.sub(r"(?m)^\| | \|$", "", IDEAL["format-table"]),
    ],
    "order-parcels": [IDEAL["order-parcels"]],
    "order-names": ["1. ZHANG\n\n2. QUIST\n\n3. OKAFOR\n\n4. NOVAK\n\n5. IBARRA\n\n6. ADAIR"],
    "domain-commit": [
        "Fix CSV export date format\n\n- Use ISO 8601 dates\n- Add test",
        "Fix local dates in export\n\n- The export has a test now.\n- Dates follow ISO 8601.",
    ],
    "domain-message": [
        "Dear customer, order 7731 is ready for collection from 14.05. (daily until 18:00). Your team at Nord",
        "Order 7731: collect it from 14.05.2026, any day until 18:00. Your team at Nord",
    ],
    "domain-settings": [IDEAL["domain-settings"].replace("warning", "WARNING")],
    "precise-sentence": [
        "Libraries open doors in your mind that stay open until long after tomorrow.".replace("long ", ""),
        "Libraries keep well-loved books so that each child may read them tomorrow.",
    ],
    "precise-letter": [
        "Snow lies on the roofs, smoke rises from the chimneys, lamps are lit early, and the children carry their "
        "sledges happily back home."
    ],
    "precise-acrostic": [
        "moss covers every stone\noaks stand in mist\nsongbirds call at dawn\nsunlight slips between leaves",
        "majestic canopy towers high\nother worlds unfold below\n"
        "squirrels scamper between trunks\nsecrets whisper through boughs",
        "mushrooms bloom in dark\nold ivy climbs high\nspiders weave silver threads\nslow seasons come again",
    ],
}


@pytest.mark.parametrize("name", RIGHT)
def test_other_answers_that_are_as_right_get_all_points(name):
    for text in RIGHT[name]:
        rows = (text.replace("\n", "\r\n"), text.replace("\n", "  \n"))
        for form in (text, f"\n{text}  \n", *rows, re.sub("(?<=[0-9]) ", "\u202f", text)):
            assert points(name, form) == 1, (form, grade(PACK, ITEMS[name], [Turn(content=form)]))


# Answers that are wrong in one place, as models that count or copy badly write them.
WRONG = {
    "format-json": [
        IDEAL["format-json"].replace('"servings": 4', '"servings": 3, "servings": 4'),
        f'{IDEAL["format-json"][:-1]}, "vegan": true}}',
    ],
    "format-table": [
        IDEAL["format-table"].replace("Room 4", "Room 40"),
        IDEAL["format-table"].replace("Hall", "Challenge"),
        IDEAL["format-table"].replace("Choir", "Book choir"),
        IDEAL["format-table"].replace("Monday", "Monday and Friday"),
    ],
    "order-names": [IDEAL["order-names"].replace("ZHANG", "MS ZHANG")],
    "domain-message": [
        IDEAL["domain-message"].replace("14.05.", "14.05"),
        IDEAL["domain-message"].replace("14.05.", "14.05.25"),
        IDEAL["domain-message"].replace("14.05.", "114.05."),
        IDEAL["domain-message"].replace("14.05.", "14 May"),
    ],
    "precise-sentence": [
        IDEAL["precise-sentence"].replace("the books", "books"),
        IDEAL["precise-sentence"].replace("the books", "all the books"),
    ],
    "precise-letter": [IDEAL["precise-letter"].replace("the fields", "our fields")],
}


@pytest.mark.parametrize("name", WRONG)
def test_an_answer_that_is_wrong_in_one_place_loses_points(name):
    for text in WRONG[name]:
        assert points(name, text) < 1, text


@every_constraint
def test_breaking_a_constraint_of_the_ideal_answer_costs_points(name, constraint):
    broken = [text for text in _broken(constraint, IDEAL[name]) if text != IDEAL[name]]
    assert broken
    for text in broken:
        assert not met(constraint, text), text
        assert points(name, text) < 1, text


@pytest.mark.parametrize("constraint", [each for _, each in CASES])
def test_no_constraint_is_met_by_an_empty_answer(constraint):
    assert not any(met(constraint, text) for text in ("", " ", "\n", "\r\n \t"))


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_without_understanding_gets_under_a_quarter(name):
    assert share(PACK, AGENTS[name]) < 0.25


@every_prompt
def test_the_ideal_answer_to_one_prompt_does_not_pay_elsewhere(name):
    others = [points(other, IDEAL[name]) for other in ITEMS if other != name]
    assert sum(others) / len(others) < 0.25


# --- the grader -------------------------------------------------------------------------------------------------------


def test_points_are_the_share_of_constraints_met():
    name = "precise-acrostic"
    assert points(name, IDEAL[name].upper()) == pytest.approx(4 / 5)
    assert points(name, IDEAL[name] + "!") == pytest.approx(4 / 5)
    assert points(name, IDEAL[name].upper() + "!") == pytest.approx(3 / 5)


@every_prompt
def test_an_answer_cut_off_or_told_to_a_tool_gets_nothing(name):
    cut = judged(PACK, ITEMS[name], [response(IDEAL[name], reason="length")])
    assert (cut.points, cut.outcome) == (0, "truncated")
    called = Turn(content=IDEAL[name], calls=(Call(name="write", arguments={}),))
    assert grade(PACK, ITEMS[name], [called]).points == 0


def test_an_answer_about_a_part_of_the_task_alone_meets_nothing():
    assert points("domain-settings", "APP_DEBUG=0\nAPP_PORT=8080") == 0
    assert points("domain-settings", "APP_DEBUG=0\nAPP_NAME=harbour\nAPP_PORT=8080") > 0


def test_what_was_lost_is_named():
    assert grade(PACK, ITEMS["adverse-note"], [Turn(content="9\nFORGET")]).detail == "is (line 1)"


@given(st.text() | st.lists(st.sampled_from([*"-|{}[]\"':,#\n\r\t 1a", "```", "\ud800", "\u0130"])).map("".join))
def test_nothing_that_a_model_writes_stops_the_grader(text):
    for name, item in ITEMS.items():
        first = judged(PACK, item, [response(f"{IDEAL[name]}{text}")])
        assert 0 <= first.points <= 1
        assert judged(PACK, item, [response(f"{IDEAL[name]}{text}")]) == first
        judged(PACK, item, [response(text)])


EXAMPLES: list[tuple[dict[str, Any], list[str], list[str]]] = [
    ({"check": "lines", "count": 2}, ["a\nb", "a\n\nb\n"], ["a", "a\nb\nc"]),
    (
        {"check": "words", "least": 3, "most": 3},
        ["one two three", "one - two, three!", "a well-known fact", "well-known fact", "- it's not one", "3 of them"],
        ["one two", "one two three four", "1. one two"],
    ),
    ({"check": "words", "line": "each", "least": 2, "most": 2}, ["1. a b\n2. c d", "- a b"], ["a b\nc", "- a"]),
    ({"check": "characters", "most": 3}, ["abc", " abc "], ["abcd"]),
    ({"check": "longest-word", "letters": 4}, ["four by four", "2026 12345", "over-full"], ["seven"]),
    ({"check": "starts", "text": "Fix "}, ["Fix it"], ["fix it", "Fixes", "A Fix "]),
    ({"check": "ends", "line": -1, "text": "."}, ["a\nb.", "b. "], ["a.\nb"]),
    ({"check": "is", "line": 2, "text": "b"}, ["a\nb", "a\n\n b\nc"], ["b", "a\nB", "a\nb."]),
    ({"check": "matches", "pattern": "[ab]+"}, ["abba"], ["abc", "ab\nab"]),
    ({"check": "contains", "texts": ["ice"]}, ["ICE!", "ice, ice"], ["nice", "ices"]),
    ({"check": "contains", "texts": ["ice"], "times": 1}, ["no ice, only rice"], ["ice ice", "rice"]),
    ({"check": "contains", "texts": ["a b", "c++"]}, ["c++ a b", "c++ a\u00a0b"], ["a b", "a  c b"]),
    ({"check": "lacks", "texts": ["ice"]}, ["nice"], ["the ice", "ICE."]),
    ({"check": "avoids", "characters": "e!"}, ["a b"], ["E", "b!", "the"]),
    ({"check": "case", "letters": "lower"}, ["abc 1"], ["Abc", "123"]),
    ({"check": "case", "letters": "upper"}, ["ABC 1"], ["ABc", "123"]),
    ({"check": "initials", "letters": "ab"}, ["a1\nB2"], ["a\nc", "a", "a\nb\nc", "b\na"]),
    ({"check": "numbered"}, ["1. a\n2. b"], ["1. a\n3. b", "1) a", "2. a", "1.a"]),
    ({"check": "among", "key": "^(.*)$", "texts": ["a", "b"]}, ["b", "a\nb"], ["a\na", "a\nc"]),
    ({"check": "ordered", "key": "([0-9]+)", "by": "number"}, ["9\n10", "9\nx\n9"], ["10\n9", "9", "x"]),
    ({"check": "ordered", "key": "(.*)", "by": "text", "descending": True}, ["b\nA", "B\na"], ["a\nb", "b"]),
    ({"check": "json", "keys": {"a": "integer", "b": "strings"}},
     ['{"a": 1, "b": []}', '```json\n{"a":1,"b":["x"]}\n```'],
     ['{"a": 1.0, "b": []}', '{"b": [], "a": 1}', '{"a": true, "b": []}', '{"a": 1}', '[1]', "{", '{"a": 1, "b": [1]}',
      '{"a": 1, "b": [], "c": 0}', '{"a": 1, "a": 1, "b": []}', '{"a": NaN, "b": []}', "[" * 9999]),
    ({"check": "values", "values": {"a": 1, "b": "X"}}, ['{"a": 1, "b": "x "}', '{"b": "X", "a": 1, "c": 2}'],
     ['{"a": "1", "b": "x"}', '{"a": true, "b": "x"}', '{"a": 1}', '["a", "b"]']),
    ({"check": "table", "columns": ["A", "B"], "rows": 1}, ["|A|B|\n|-|-|\n|1|2|", "T\n\nA | B\n:-: | --\n1 | 2"],
     ["|A|B|\n|1|2|", "|A|B|\n|1|2|\n|3|4|", "|A|B|\n|-|-|", "|A|\n|-|\n|1|", "|B|A|\n|-|-|\n|1|2|", "A B",
      "|A|B|\n|-|-|\n|1|2|3|"]),
    ({"check": "row", "number": 1, "cells": ["^a", "2"]}, ["|A|B|\n|-|-|\n|**A**|12|"],
     ["|A|B|\n|-|-|\n|2|a|", "|A|2|", "a"]),
]  # fmt: skip


@pytest.mark.parametrize(("given_", "right", "wrong"), EXAMPLES)
def test_a_check_tells_what_meets_it_from_what_does_not(given_, right, wrong):
    constraint = _constraint(given_)
    assert [text for text in right if not met(constraint, text)] == []
    assert [text for text in wrong if met(constraint, text)] == []


def test_every_check_is_used_and_has_examples():
    used = {each.check for _, each in CASES}
    assert used == {given_["check"] for given_, _, _ in EXAMPLES} == BREAK.keys()


@pytest.mark.parametrize(
    ("expected", "said"),
    [
        ({"about": [], "constraints": [{"check": "numbered"}]}, "at least 1 item"),
        ({"about": ["x"], "constraints": []}, "at least 1 item"),
        ({"about": ["("], "constraints": [{"check": "numbered"}]}, "not a regular expression"),
        ({"about": ["x"], "constraints": [{"check": "rhymes"}]}, "rhymes"),
        ({"about": ["x"], "constraints": [{"check": "lines", "count": 1, "most": 2}]}, "Extra inputs"),
        ({"about": ["x"], "constraints": [{"check": "lines", "count": "1"}]}, "valid integer"),
        ({"about": ["x"], "constraints": [{"check": "words", "least": 2, "most": 1}]}, "least is more than most"),
        ({"about": ["x"], "constraints": [{"check": "among", "key": "x", "texts": ["x"]}]}, "needs a group"),
        ({"about": ["x"], "constraints": [{"check": "numbered", "line": 0}]}, "the first line is 1"),
    ],
)
def test_an_item_that_cannot_be_meant_is_refused(expected, said):
    item = {"id": "one", "category": "any", "messages": [{"role": "user", "content": "?"}], "expected": expected}
    with pytest.raises(ValueError) as raised:
        constraints.Item.model_validate(item)
    assert said in str(raised.value)


def _constraint(given_: dict[str, Any]) -> Any:
    return TypeAdapter(Check).validate_python(given_)


# --- breaking a constraint: for each check, texts that surely no longer meet it ---------------------------------------


def _broken(constraint: Any, text: str) -> Iterator[str]:
    """The answer with the constraint broken: on its line, on each of its lines in turn, or as a whole."""
    breaks = BREAK[constraint.check]
    if constraint.line is None:
        yield from breaks(constraint, text)
        return
    rows = text.split("\n")
    filled = [number for number, row in enumerate(rows) if row.strip()]
    chosen = filled
    if isinstance(constraint.line, int):
        chosen = [filled[constraint.line - (constraint.line > 0)]]
    for number in chosen:
        for row in breaks(constraint, rows[number]):
            yield "\n".join([*rows[:number], row, *rows[number + 1 :]])


def _lines(c: Any, text: str) -> list[str]:
    rows = text.split("\n")
    return [f"{text}\nOne more", f"And one\n{text}", *(["\n".join(rows[:-1])] if c.count > 1 else [])]


def _words(c: Any, text: str) -> list[str]:
    marker, rest = re.match(r"((?:- )?)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    return [f"{text} {'more ' * c.most}", *([marker + rest.split()[0]] if c.least > 1 else [])]


def _matches(c: Any, text: str) -> list[str]:
    return {
        r"- \S.*": [text[2:], f"* {text[2:]}", f"-{text[2:]}"],
        r"(?s)\{.*\}": [f"Here it is: {text}", f"```json\n{text}\n```", f"{text}\nEnjoy!"],
        r".*\|.*": [f"{text}\nThat is all."],
        r"[A-Z][a-z]+: [0-9]+ g": [text.lower(), text.replace(":", " -"), text.replace(" g", "g"), f"- {text}"],
        r".*[^.]": [f"{text}."],
        r"(?s).*(?<!\d)14\.05\.(\d{4})?(?!\d).*": [text.replace("05.", "05"), text.replace("14.05.", "14 May")],
        r"[^\n]+\n\n- [^\n]+\n- [^\n]+": [text.replace("\n\n", "\n"), f"{text}\n- More", text.rsplit("\n", 1)[0]],
        r'[A-Z_]+=[^\s"]+': [text.lower(), text.replace("=", " = "), text.replace("=", ": "), f"{text} # set"],
        r"[^.!?,]+\.": [text.replace(" ", ", ", 1), text.replace(" ", ". ", 1), text[:-1], f"{text} Read!"],
        r"[A-Za-z ]+": [f"{text}.", text.replace(" ", ", ", 1), f"- {text}"],
        r"(?i)mercury": ["venus", f"1. {text}", f"{text}, the hottest"],
        r"(?i)venus": ["mercury", f"2. {text}", f"{text}."],
    }[c.pattern]


def _contains(c: Any, text: str) -> list[str]:
    gone = [re.sub(re.escape(phrase), "it", text, flags=re.IGNORECASE) for phrase in c.texts]
    return [*gone, *([f"{text} {c.texts[0]}"] if c.times else [])]


def _among(c: Any, text: str) -> Iterator[str]:
    rows = text.split("\n")
    keyed = [number for number, row in enumerate(rows) if re.search(c.key, row)]
    for number in keyed:
        key = re.search(c.key, rows[number])[1]  # type: ignore[index]
        other = next(each for each in keyed if each != number)
        for row in (rows[number].replace(key, f"{key[:-1]}Z"), rows[other]):
            yield "\n".join([*rows[:number], row, *rows[number + 1 :]])


def _ordered(c: Any, text: str) -> Iterator[str]:
    rows = text.split("\n")
    keyed = [number for number, row in enumerate(rows) if re.search(c.key, row)]
    for one, other in pairwise(keyed):
        swapped = list(rows)
        swapped[one], swapped[other] = rows[other], rows[one]
        yield "\n".join(swapped)


def _json(_c: Any, text: str) -> Iterator[str]:
    value = json.loads(text)
    yield json.dumps(dict(reversed(value.items())))
    yield text[:-1]
    for mutant in json_mutants(value):
        # its lists may have any length
        if mutant.kind == "retyped" or (mutant.kind, len(mutant.path)) in (("dropped", 1), ("added", 0)):
            yield json.dumps(mutant.value)


def _values(c: Any, text: str) -> Iterator[str]:
    for mutant in json_mutants(json.loads(text)):
        if mutant.path and mutant.path[0] in c.values:
            yield json.dumps(mutant.value)


def _table(_c: Any, text: str) -> list[str]:
    rows = text.split("\n")
    return [
        text.replace("| Group |", "| Club |"),
        text.replace("| Day | Time |", "| Time | Day |"),
        text.replace(" Place |", ""),
        text.replace("| --- | --- | --- | --- |\n", ""),
        f"{text}\n| {' | '.join('abcd')} |",
        "\n".join(rows[:-1]),
    ]


def _row(c: Any, text: str) -> Iterator[str]:
    rows = text.split("\n")
    at = next(number for number, row in enumerate(rows) if "---" in row) + c.number
    cells = rows[at].strip("| ").split(" | ")
    for number in range(len(cells)):
        for changed in ([*cells[:number], "-", *cells[number + 1 :]], cells[:number] + cells[number + 1 :]):
            yield "\n".join([*rows[:at], f"| {' | '.join(changed)} |", *rows[at + 1 :]])


BREAK: dict[str, Callable[[Any, str], Any]] = {
    "lines": _lines,
    "words": _words,
    "characters": lambda c, text: [text + "x" * c.most],
    "longest-word": lambda c, text: [text.replace(" ", f" {'x' * (c.letters + 1)} ", 1)],
    "starts": lambda _, text: [f"So {text}", text[0].swapcase() + text[1:], text[1:]],
    "ends": lambda _, text: [f"{text} Bye", text[:-1]],
    "is": lambda _, text: [f"{text}.", f"- {text}", text[:-1], text.swapcase() if text.swapcase() != text else "x"],
    "matches": _matches,
    "contains": _contains,
    "lacks": lambda c, text: [f"{text} {each}" for phrase in c.texts for each in (phrase, phrase.upper())],
    "avoids": lambda c, text: [f"{text}{each}{text}" for each in {*c.characters, *c.characters.upper()}],
    "case": lambda _, text: [text.swapcase(), text[:-1] + text[-1].swapcase(), text.title()],
    "initials": lambda _, text: [f"x{text}", text.replace("\n", "\nx"), text[::-1]],
    "numbered": lambda _, text: [text.replace("2.", "7."), text.replace(".", ")"), re.sub(r"[0-9]\. ", "", text)],
    "among": _among,
    "ordered": _ordered,
    "json": _json,
    "values": _values,
    "table": _table,
    "row": _row,
}
