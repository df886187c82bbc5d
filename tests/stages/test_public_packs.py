"""gsm8k, mmlu, toolcall and humaneval-plus: right answers in any wording earn the point, and nothing else does."""

from __future__ import annotations

import ast
import json
import os
import random
import re
import time
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gates.errors import IntegrityError, UsageError
from registry import fetching
from registry.published.reading import rows_in
from registry.store import Store
from stages.common.execution import Raised, Result, Returned, encode
from stages.common.grading import bfcl, choice, grader, humaneval, number
from stages.evaluate.packs import Pack, read_pack
from tests.conftest import public_data
from tests.support.executed import local_verifier
from tests.support.scenarios import AGENTS, Call, Turn, call_mutants, grade, judged, response, share

PROJECT = Path(__file__).resolve().parents[2]
PUBLIC = {"gsm8k": "gsm8k", "mmlu": "mmlu", "toolcall": "bfcl", "humaneval-plus": "humaneval-plus"}
ALL = os.environ.get("SLUICE_HUMANEVAL") == "all"
"""Whether all of HumanEval+ is executed (minutes of a core), or a part that a seed chooses."""
PART = 12

needs_data = pytest.mark.needs("data")


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    """A registry with the public sets."""
    store = Store.init(tmp_path_factory.mktemp("sets") / "models")
    for pack, folder in PUBLIC.items():
        fetching.fetch(store, PROJECT, pack, source=public_data() / folder)
    return store


@pytest.fixture(scope="module")
def verify():
    with local_verifier() as execute:
        yield execute


def points(pack: Pack, item: Any, content: str = "", calls: Any = ()) -> float:
    return judged(pack, item, [response(content, calls)]).points


# --- packs of public sets ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLIC)
def test_a_pack_that_was_not_fetched_is_refused_with_the_command(tmp_path, name):
    for store in (None, Store.init(tmp_path / "models")):
        with pytest.raises(UsageError) as error:
            read_pack(PROJECT, name, store)
        assert f"registry pack fetch {name}" in error.value.remedy
        assert f"{name}.yaml" in error.value.where


@needs_data
def test_the_sets_are_whole(store):
    sizes = {name: len(read_pack(PROJECT, name, store).items) for name in PUBLIC}
    assert sizes == {"gsm8k": 1319, "mmlu": 570, "toolcall": 1040, "humaneval-plus": 164}


@needs_data
def test_the_dataset_digest_follows_from_the_rows_alone(store, tmp_path):
    before = read_pack(PROJECT, "gsm8k", store)
    other = Store.init(tmp_path / "models")
    fetching.fetch(other, PROJECT, "gsm8k", source=public_data() / "gsm8k" / "test.jsonl")
    assert read_pack(PROJECT, "gsm8k", other) == before
    lines = (public_data() / "gsm8k" / "test.jsonl").read_bytes().split(b"\n", 1)
    (tmp_path / "test.jsonl").write_bytes(lines[1])
    fetching.fetch(other, PROJECT, "gsm8k", source=tmp_path / "test.jsonl", replace=True)
    after = read_pack(PROJECT, "gsm8k", other)
    assert after.dataset != before.dataset
    assert after.digest == before.digest


@needs_data
def test_rows_that_were_changed_on_the_disk_are_never_asked(tmp_path):
    store = Store.init(tmp_path / "models")
    kept, _ = fetching.fetch(store, PROJECT, "gsm8k", source=public_data() / "gsm8k")
    blob = store.layout.blob(kept.rows)
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes().replace(b"#### 18", b"#### 19"))
    with pytest.raises(IntegrityError, match="kept rows of gsm8k"):
        read_pack(PROJECT, "gsm8k", store)


def test_parquet_is_read_as_the_hub_publishes_it():
    import pyarrow
    from pyarrow import BufferOutputStream, parquet

    rows = [{"question": "Q?", "subject": "law", "choices": ["w", "x", "y", "z"], "answer": 2}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), file := BufferOutputStream())
    assert rows_in("all/test-00000-of-00001.parquet", file.getvalue().to_pybytes(), where="a") == rows
    with pytest.raises(UsageError, match="no Parquet"):
        rows_in("a.parquet", b"PAR1", where="a")


@needs_data
@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("name", ["gsm8k", "mmlu", "toolcall"])
def test_agents_without_thought_get_less_than_a_quarter(store, name, agent):
    assert share(read_pack(PROJECT, name, store), AGENTS[agent]) < 0.25


# --- numbers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("18", "18"),
        ("**18**", "18"),
        ("so 5*3 = 15 eggs", "15"),
        ("#### 18", "18"),
        ("####18\n", "18"),
        ("#### $18.00", "18"),
        ("#### 18 dollars and 3 friends", "18"),
        ("#### 3 + 5 = 8", "8"),
        ("#### 1 234", "1234"),
        ("18 (9 x 2)", "18"),
        ("18 dollars per day (she sells 9 eggs at $2)", "18"),
        ("Answer: $18 per day for 9 eggs", "18"),
        ("18 per week for 4 weeks", "18"),
        ("18, i.e. 9 eggs at 2 dollars", "18"),
        ("#### 18 = 9*2", "18"),
        ("The answer is 18 because 20 = 18 + 2", "18"),
        ("9 * 2 = <<9*2=18>>18", "18"),
        ("48 plus 24 is 72", "72"),
        ("Janet makes **$18** from 9 eggs.", "18"),
        ("#### Step 2: Total for 2 months\n48 + 24 = 72", "72"),
        ("#### 1. Eggs\n16 - 7 = 9\n\n#### 2. Money\n9 * 2 = 18", "18"),
        ("#### 18\n\nNote: this assumes 7 days.", "18"),
        ("She makes $18 a day.\n\n(9 eggs at $2.)", "18"),
        ("The answer is not 20 but 18.", "18"),
        ("The answer is 18, not 20", "18"),
        ("The answer is 24/2, or 12.", "12"),
        ("The price dropped from $12 to $6.", "6"),
        ("\\boxed{18\\text{ dollars}}", "18"),
        ("\\boxed{\\frac{3}{4}}", "0.75"),
        ("1.8e1", "18"),
        ("3/4", "0.75"),
        ("#### 2 1/2 hours", "2.5"),
        ("#### 1\u00bd", "1.5"),
        ("#### $2.5 million", "2500000"),
        ("#### 70k", "70000"),
        ("#### 5:00", "5"),
        ("7 - 1 = <<7-1=6>>6th place", "6"),
        ("minus 5", "-5"),
        ("#### at least 18", "18"),
        ("<answer>18 eggs</answer>", "18"),
        ("9" * 40 + "1", "9" * 40 + "1"),
        ("#### 3\nNo, wait: she has 2 more.\n#### 5", "5"),
        ("\\boxed{18}", "18"),
        ("\\[\\boxed{\\$18.50}\\]", "18.5"),
        ("\\boxed{\\text{She has } 18 \\text{ eggs}} in 7 days", "18"),
        ("\\boxed{x = 12}", "12"),
        ("\\(\\boxed{70{,}000}\\)", "70000"),
        ("\\boxed{1\\,234}", "1234"),
        ("She has 18 eggs and 3 ducks. The answer is 18 eggs for 3 ducks.", "18"),
        ("**Answer: $70,000**", "70000"),
        ("answer: 7 because 7 > 3", "7"),
        ("Answer: see below.\nThe total is 9", "9"),
        ("1,234,567.89", "1234567.89"),
        ("1,2,3", None),
        ("10-20", None),
        ("-$5", "-5"),
        ("$-5", "-5"),
        ("it fell to \u22125", "-5"),
        ("18 m^2", "18"),
        ("18 m2", "18"),
        ("18%", "18"),
        ("5kg", "5"),
        ("the total is 5, in the 3rd year", "5"),
        (".5", "0.5"),
        ("007", "7"),
        ("18 or 20", None),
        ("#### 18 or 20", None),
        ("#### 18 (or 20)", None),
        ("#### x = 12 or x = 13", None),
        ("\\boxed{18, 20}", None),
        ("$\\boxed{18}$ or $\\boxed{20}$", None),
        ("<answer>18 or 20</answer>", None),
        ("#### between 3 and 4", None),
        ("3 to 4", None),
        ("He gets 12-13 apples.", None),
        ("The answer is 18 if he works, otherwise 20.", None),
        ("#### Tom: 18, Ann: 20", None),
        ("#### 9 * 2", None),
        ("9 times 2", None),
        ("\\boxed{9 + 9}", None),
        ("#### 12% of 13", None),
        ("#### more than 18", None),
        ("\\boxed{x > 12}", None),
        ("The answer is not 18.", None),
        ("Is it 18?", None),
        ("\u20ac1.234,50", None),
        ("12:30", None),
        ("2024-01-18", None),
        ("#### 1e999999999", None),
        ("COVID-19", None),
        ("eighteen", None),
        ("x", None),
        ("", None),
        ("\u0661\u0662", None),
    ],
)
def test_the_number_that_an_answer_ends_with(text, wanted):
    assert number.stated(text) == (None if wanted is None else Decimal(wanted))


@given(
    st.integers(-(10**12), 10**12),
    st.sampled_from(["{}", "{}.00", "{} eggs", "**{}**", "{}.", "{}%", "{}!"]),
    st.sampled_from(["#### {}", "\\boxed{{{}}}", "So the answer is {}", "2 + 2, hence {}", "Answer: {}"]),
    st.booleans(),
)
def test_a_number_is_the_same_however_it_is_written(value, written, said, separated):
    text = written.format(f"{value:,}" if separated else value)
    assert number.stated("First 3, then 4.\n\n" + said.format(text)) == value


@given(st.text(alphabet="0123456789.,-$# \\{}()[]*/boxedanswrikm:=\n%AB\u00bd"))
def test_no_text_breaks_the_graders_of_numbers_and_letters(text):
    number.stated(text)
    choice.stated(text)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "answer:",
            "\\boxed{",
            "\\text{A",
            "the answer is the ",
            "A or ",
            "1,",
            "####",
            "A. x\n",
            "\n",
            " ",
            "(",
            "*",
            "A, ",
        ),
        *("1 or ", "1 = ", "1/2 ", "so ", "not ", "\u9009", "A is the ", "answer to ", "**1", "}", "<b>", "9"),
    ],
)
def test_a_model_that_repeats_itself_without_end_holds_nobody_up(text):
    """Seconds of CPU, where a search that goes over the text again from each place takes minutes."""
    before = time.process_time()
    number.stated(text * 10_000)
    choice.stated(text * 10_000)
    assert time.process_time() - before < 10


@needs_data
def test_answers_of_gsm8k_earn_all_in_its_own_words_and_in_others_and_none_beside(store):
    pack = read_pack(PROJECT, "gsm8k", store)
    rows = [json.loads(line) for line in (public_data() / "gsm8k" / "test.jsonl").read_text().splitlines()]
    for item, row in zip(pack.items, rows, strict=True):
        way, _, wanted = row["answer"].partition("#### ")
        assert points(pack, item, row["answer"]) == 1
        assert points(pack, item, f"{way}**The answer is ${wanted}.00.**") == 1
        assert points(pack, item, f"{way}#### {Decimal(wanted.replace(',', '')) + 1}") == 0


@needs_data
def test_what_lm_eval_reads_as_right_in_gsm8ks_own_reasoning_is_read_here_too():
    """Its flexible-extract takes the last number of a text, wherever that stands."""
    last = re.compile(r"-?[$0-9.,]{2,}|-?[0-9]+")
    for line in (public_data() / "gsm8k" / "test.jsonl").read_text().splitlines():
        way, _, wanted = json.loads(line)["answer"].partition("\n#### ")
        theirs = last.findall(way)[-1].replace("$", "").replace(",", "").rstrip(".")
        if theirs == wanted.replace(",", ""):
            assert number.stated(way) == Decimal(theirs), way


# --- letters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "texts"),
    [
        (
            "B",
            [
                "B", "b", "B.", "**B**", "(B)", "[B]", "(b)", '"B"', "> **B**", "# Answer\n\nB", "B. Paris",
                "**B. Paris**", "(B) Paris", "B) Paris", "B - Paris", "The answer is (B)", "the answer is (B).",
                "The answer is B.", "**The answer is (B).**", "The answer is 'B'", "Answer: B", "**Answer:** B",
                "Answer:\n\nB", "Answer: B) 42", "$\\boxed{B}$", "\\boxed{\\text{B}}", "\\boxed{\\textbf{(B)}}",
                "\\boxed{B. Paris}", "The answer is $\\boxed{B}$.", "The final answer is: **B**", "So the answer is b.",
                "The correct answer is option B because it is.", "The correct option is B", "Option B is correct.",
                "B is the correct answer.", "I choose B.", "Therefore, **B**.", "The best answer is therefore B) Paris",
                "The answer to this question is (B).", "Reasoning about D here.\n\nB", "B\n\nBecause Paris is.",
                "The answer is (A). Wait, no. The answer is (B)", "The answer is A. Hmm, but actually B is correct.",
                "A is tempting.\nThe answer is (A)\n\\boxed{B}", "A. wrong\nB. right\n\nThe answer is B",
                "The answer is B, A is wrong because it is.",
                "It's B.", "That's B, a city.", "So, B.", "So it's B", "2 + 2 = 4, so B.", "I'd say B", "I think B.",
                "Answer - B", "Final choice \u2192 B", "\u2192 B", "\u2705 **B. Paris**", "<answer>B</answer>",
                "Answer\uff1aB",
                "B: Paris", "B, because it is.", "B, not A.", "**B** Paris", "B\n\nA: a river\nC: a lake\nD: a sea",
                "My final answer is option B, i.e. Paris", "the correct option: B) Paris", "B is right", "B it is.",
                "(b) is correct.", "Option B, Paris, is correct.", "B is the most complete answer.",
                "Only option B fits.",
                "The answer is Paris (B).", "The answer is Paris, which is option B.", "Paris (B)", "4, option B",
                "The answer is (B).\n\nOption (A) is wrong. Option (C) is not in France.",
                "The answer is (B).\n\n(A) is incorrect because of Rome.\n(D) is incorrect because of Bonn.",
                "A. w: no\nB. x: yes\nC. y: no\nD. z: no\n\nB", "A. w: no\nB. x: yes\nC. y: no\nD. z: no\n\nB. x",
                "The answer is not A but B.", "The answer isn't A; it's B.", "The answer is A. Wait, no, it's B.",
                "A, C and D are ruled out, leaving B.", "I was tempted by A, but it's B.", "A? No, the answer is B.",
                "B. Wrong, Not wrong", "(B) Not wrong, Wrong", "B. False, True", "B. No, because it is",
                "The answer is (B) A city",
                '{"answer": "B"}', "\\boxed{Option B}", "\u7b54\u6848\uff1aB", "Antwort: B", "The answer is (\u200bB).",
            ],
        ),
        (
            "A",
            [
                "The answer is A because it is.", "The answer is A", "Answer: a.", "A", "It's A.", "I'd say A.",
                "So, A.",
                "A. A city", "A: a city", "The answer is A: a city", "The answer is A, a city.", "(A) a city",
                "**A** a city",
            ],
        ),
        ("D", ["The answer is D, both A and B.", "The answer is D: A and C only.", "D. Both A and B"]),
        (
            None,
            [
                "", "I don't know", "Paris", "E", "The answer is (E)", "The answer is (X)", "The answer is (…).",
                "A. w\nB. x\nC. y\nD. z", "The answer is (A) or (B).", "The answer is A and B", "It is either A or B.",
                "Both A and C", "The answer is not here", "The answer is a matter of taste",
                "The answer is A democracy", "A good idea is this", "D.C. is the capital", "It's a city.",
                "I choose a city.",
                "A, B", "A/B", "A-B", "A or (B)", "(A)(B)", "The answer is C, or maybe D.", "The answer is C (or D).",
                "The answer is (A), (B), (C) or (D).", "Answer: A, C", "Answer: C D", "\\boxed{A, C}",
                "<answer>A or C</answer>",
                "\\boxed{A} or \\boxed{B}", "The answer is A + C.", "The answer is C as well as D.",
                "Both A and B are correct.",
                "If the ground is wet, the answer is C; if not, D.", "The answer is A for even n, B for odd n.",
                "It's not C.", "The answer isn't C.", "I would not choose C.", "I don't think the answer is C.",
                "Not (C).",
                "I doubt that C is correct.", "If C is correct, then B is false.", "(C) is wrong.",
                "Option (C) is close but wrong.",
                "So C is out.", "We can eliminate C.", "Check option (C).", "C may be correct.", "It could be C.",
                "Maybe C.",
                "Is it C?", "The answer is (C)?", "Answer: C? Answer: D?", "(C)?", "Nobody would choose C.",
                "(A) London (B) Berlin (C) Paris", "A. w\nB. x\nC. y\nD. z\n\nA. no\nB. yes\nC. no\nD. no",
                "vitamin C", "It's hepatitis B.", "Person A is liable to B.", "Therefore A is invertible.", "C#",
                "25 \u00b0C",
            ],
        ),
    ],
)  # fmt: skip
def test_the_letter_that_an_answer_states_last(wanted, texts):
    assert {text: choice.stated(text) for text in texts} == dict.fromkeys(texts, wanted)


@needs_data
def test_of_mmlu_the_right_letter_earns_the_point_and_the_other_three_do_not(store):
    pack = read_pack(PROJECT, "mmlu", store)
    assert len({item.category for item in pack.items}) == 57
    for item in pack.items:
        listed = item.messages[0]["content"].rpartition("\n\n")[0]
        right = [letter for letter in "ABCD" if points(pack, item, f"{listed}\n\nThe answer is ({letter}).")]
        assert right == [item.expected.letter]


@needs_data
@pytest.mark.parametrize(
    "way",
    [
        *("{x}. {text}", "({x}) {text}", "**{x}) {text}**", "**{x}**: {text}", "The answer is ({x}) {text}."),
        *("The answer is {x}: {text}", "**Answer: {x}. {text}**", "Option {x}: {text}", "{text}\n\nThe answer is {x}."),
        *("The answer is ({x}).\n\n{text}", "\\boxed{{{x}. {text}}}", "{listed}\n\n{x}. {text}", "{listed}\n\n**{x}**"),
    ],
)
def test_the_choices_own_words_beside_the_letter_change_nothing(way):
    """But for one in two hundred, since a choice may be called "b", or name other letters itself."""
    lost = []
    for line in (public_data() / "mmlu" / "test-570.jsonl").read_bytes().splitlines():
        cells = json.loads(line)["cells"]
        texts = {letter: cells[f"choice{index}"] for index, letter in enumerate("ABCD")}
        listed = "\n".join(f"{letter}. {text}" for letter, text in texts.items())
        for letter, text in texts.items():
            if choice.stated(way.format(x=letter, text=text, listed=listed)) != letter:
                lost.append(text)
    assert len(lost) < 4 * 570 / 200, lost


# --- calls ------------------------------------------------------------------------------------------------------------


def given_answer(values: list[Any]) -> Any:
    """One of the possible values of an argument, as a call would have it; None says to leave it out."""
    value = next((each for each in values if each != ""), "")
    if isinstance(value, dict):
        return chosen(value)
    if isinstance(value, list):
        return [chosen(each) if isinstance(each, dict) else each for each in value]
    return value


def chosen(arguments: dict[str, list[Any]]) -> dict[str, Any]:
    return {name: given_answer(values) for name, values in arguments.items() if values != [""]}


def ideal(item: bfcl.Item) -> list[tuple[str, Any]]:
    return [(right.name, chosen(right.arguments)) for right in item.expected.calls]


@pytest.fixture(scope="module")
def toolcall(store) -> Pack:
    return read_pack(PROJECT, "toolcall", store)


@needs_data
def test_the_leaderboards_own_answers_earn_everything(toolcall):
    lost = {item.id for item in toolcall.items if points(toolcall, item, calls=ideal(item)) != 1}
    assert lost == set()


@needs_data
def test_answers_to_other_questions_earn_next_to_nothing(toolcall):
    for category in ("simple", "multiple", "parallel"):
        items = [item for item in toolcall.items if item.category == category]
        others = random.Random(8).sample(items, len(items))
        pairs = [(item, other) for item, other in zip(items, others, strict=True) if item is not other]
        earned = sum(points(toolcall, item, calls=ideal(other)) for item, other in pairs)
        assert earned / len(pairs) < 0.05


@needs_data
def test_whoever_calls_where_no_tool_helps_earns_nothing(toolcall):
    items = [item for item in toolcall.items if item.category == "irrelevance"]
    assert len(items) == 240
    for item in items:
        for tool in item.tools:
            assert points(toolcall, item, calls=[(tool["function"]["name"], {})]) == 0
        assert points(toolcall, item, "None of my tools can do that.") == 1


@needs_data
def test_names_with_points_are_offered_without_and_taken_either_way(toolcall):
    dotted = [item for item in toolcall.items if item.id == "simple_python_1"]
    (item,) = dotted
    assert item.tools[0]["function"]["name"] == "math_factorial"
    assert points(toolcall, item, calls=[("math_factorial", {"number": 5})]) == 1
    assert points(toolcall, item, calls=[("math.factorial", {"number": 5})]) == 1


@needs_data
def test_parallel_calls_may_come_in_any_order_and_each_counts_once(toolcall):
    for item in (item for item in toolcall.items if item.category == "parallel"):
        calls = ideal(item)
        assert points(toolcall, item, calls=calls[::-1]) == 1
        assert points(toolcall, item, calls=calls[:-1]) == 0
        assert points(toolcall, item, calls=[*calls, calls[0]]) == 0
        *others, last = [json.dumps(call).lower() for call in calls]  # AA and aa are one here
        if last not in others:
            assert points(toolcall, item, calls=[calls[0], *calls[:-1]]) == 0


@needs_data
def test_changed_calls_earn_nothing(toolcall):
    """Every change of a sample's answers but those that the leaderboard lets pass: see `is_harmless`."""
    part = random.Random(8).sample([item for item in toolcall.items if item.expected.calls], 60)
    count = 0
    for item in part:
        turns = [Turn(calls=tuple(Call(name=name, arguments=arguments) for name, arguments in ideal(item)))]
        for mutant in call_mutants(turns, item.tools):
            if not is_harmless(item, mutant):
                count += 1
                assert grade(toolcall, item, mutant.turns).points == 0, f"{item.id}: {mutant}"
    assert count > 1000


def is_harmless(item: bfcl.Item, mutant: Any) -> bool:
    """Whether a changed call is as right as before by what the item says, not by what the grader thinks."""
    if mutant.kind == "calls swapped":
        return True
    if mutant.kind == "silent end" or not mutant.path or mutant.where is None:
        return False
    turn, number = mutant.where
    name = str(mutant.path[0])
    values = item.expected.calls[number].arguments.get(name, [])
    if mutant.kind == "dropped" and len(mutant.path) == 1:
        return "" in values
    changed = mutant.turns[turn].calls[number].arguments.get(name)
    deep = any(isinstance(value, dict | list) for value in values)
    if mutant.kind == "emptied":
        return "" in values
    if mutant.kind == "retyped":  # 5.0 for 5 in JSON, where a decimal is meant; and what the lists name themselves
        return changed in [value for value in values if value != ""] or deep
    return deep or changed in values


RULES = {
    "type": "object",
    "properties": {
        "n": {"type": "integer"},
        "x": {"type": "number"},
        "s": {"type": "string"},
        "b": {"type": "boolean"},
        "l": {"type": "array", "items": {"type": "string"}},
        "f": {"type": "array", "items": {"type": "number"}},
        "i": {"type": "array", "items": {"type": "integer"}},
        "o": {"type": "object", "properties": {}},
        "d": {"type": "array", "items": {"type": "object"}},
        "any": {},
    },
    "required": ["n"],
}


@pytest.mark.parametrize(
    ("arguments", "possible", "right"),
    [
        ({"n": 1}, {"n": [1]}, True),
        ({"n": 1.0}, {"n": [1]}, False),
        ({"n": True}, {"n": [1]}, False),
        ({"n": "1"}, {"n": [1]}, False),
        ({"n": "len"}, {"n": ["len"]}, True),
        ({"n": 2}, {"n": [1, 2]}, True),
        ({}, {"n": [1, ""]}, False),
        ({"n": 1, "x": 2}, {"n": [1], "x": [2.0]}, True),
        ({"n": 1, "x": 2.5}, {"n": [1], "x": [2.5]}, True),
        ({"n": 1, "x": True}, {"n": [1], "x": [1.0]}, False),
        ({"n": 1}, {"n": [1], "x": [2.0]}, False),
        ({"n": 1}, {"n": [1], "x": [2.0, ""]}, True),
        ({"n": 1, "x": 3.0}, {"n": [1], "x": [2.0, ""]}, False),
        ({"n": 1, "z": 3.0}, {"n": [1], "z": [3.0]}, False),
        ({"n": 1, "x": 3.0}, {"n": [1]}, False),
        ({"n": 1, "s": "new york, NY"}, {"n": [1], "s": ["New York NY"]}, True),
        ({"n": 1, "s": "it's"}, {"n": [1], "s": ['it"s']}, True),
        ({"n": 1, "s": "x+1"}, {"n": [1], "s": ["x1"]}, False),
        ({"n": 1, "s": None}, {"n": [1], "s": ["", "a"]}, False),
        ({"n": 1, "b": 1}, {"n": [1], "b": [True]}, False),
        ({"n": 1, "b": True}, {"n": [1], "b": [True]}, True),
        ({"n": 1, "l": ["a", "B"]}, {"n": [1], "l": [["A", "b"]]}, True),
        ({"n": 1, "l": ["b", "a"]}, {"n": [1], "l": [["a", "b"]]}, False),
        ({"n": 1, "l": "a"}, {"n": [1], "l": [["a"]]}, False),
        ({"n": 1, "l": []}, {"n": [1], "l": [["a"]]}, False),
        ({"n": 1, "f": [1, 2.5]}, {"n": [1], "f": [[1.0, 2.5]]}, True),
        ({"n": 1, "f": [True, 2.5]}, {"n": [1], "f": [[1.0, 2.5]]}, False),
        ({"n": 1, "i": [3, 1]}, {"n": [1], "i": [[3, 1]]}, True),
        ({"n": 1, "i": [3, 1.0]}, {"n": [1], "i": [[3, 1]]}, False),
        ({"n": 1, "i": ["3", 1]}, {"n": [1], "i": [[3, 1]]}, False),
        ({"n": 1, "o": {"k": "V"}}, {"n": [1], "o": [{"k": ["v", "w"]}]}, True),
        ({"n": 1, "o": {"k": "x"}}, {"n": [1], "o": [{"k": ["v", "w"]}]}, False),
        ({"n": 1, "o": {"k": "v", "j": 1}}, {"n": [1], "o": [{"k": ["v"]}]}, False),
        ({"n": 1, "o": {}}, {"n": [1], "o": [{"k": ["v", ""]}]}, True),
        ({"n": 1, "o": {}}, {"n": [1], "o": [{"k": ["v"]}]}, False),
        ({"n": 1, "o": {"k": {"j": 2}}}, {"n": [1], "o": [{"k": [{"j": [2]}]}]}, True),
        ({"n": 1, "d": [{"k": 1}, {"k": 2}]}, {"n": [1], "d": [[{"k": [1]}, {"k": [2]}]]}, True),
        ({"n": 1, "d": [{"k": 2}, {"k": 1}]}, {"n": [1], "d": [[{"k": [1]}, {"k": [2]}]]}, False),
        ({"n": 1, "d": [{"k": 1}]}, {"n": [1], "d": [[{"k": [1]}, {"k": [2]}]]}, False),
        ({"n": 1, "any": "a"}, {"n": [1], "any": ["a"]}, True),
        ({"n": 1, "any": 3}, {"n": [1], "any": [3]}, True),
        ("{", {"n": [1]}, False),
        ("[]", {"n": [1]}, False),
        ('{"n": 1, "n": 1}', {"n": [1]}, False),
    ],
)
def test_the_leaderboards_rules(arguments, possible, right):
    tool = {"type": "function", "function": {"name": "f", "parameters": RULES}}
    item = bfcl.Item(
        id="a", category="c", messages=[{}], tools=[tool],
        expected={"calls": [{"name": "f", "arguments": possible}]},
    )  # fmt: skip
    made = grader("bfcl").grade(item, [response(None, [("f", arguments)])])
    assert made.points == right


def test_calls_are_paired_in_whichever_way_fits():
    """The first expected call fits both calls, the second only the first of them."""
    tool = {"type": "function", "function": {"name": "f", "parameters": RULES}}
    calls = [{"name": "f", "arguments": {"n": values}} for values in ([1, 2], [1])]
    item = bfcl.Item(id="a", category="c", messages=[{}], tools=[tool], expected={"calls": calls})
    for order in ([1, 2], [2, 1]):
        made = grader("bfcl").grade(item, [response(None, [("f", {"n": each}) for each in order])])
        assert made.points == 1


# --- programs ---------------------------------------------------------------------------------------------------------

PROBLEM = {
    "entry": "double",
    "prompt": "import math\n\ndef helper(x):\n    return x\n\ndef double(x):\n    '''Twice x.'''\n",
    "solution": "def double(x):\n    return 2 * x\n",
    "base": "[[1], [2.5]]",
    "plus": "[[3]]",
}
RIGHT = "def double(x):\n    return helper(x) + x"


def problem(**changed: Any) -> humaneval.Item:
    return humaneval.Item(id="a", category="c", messages=[{}], expected=PROBLEM | changed)


def run(item: humaneval.Item, content: str, verify: Any) -> Any:
    executing = grader("humaneval")
    answers = [response(content)]
    results = {each.digest: verify(each) for each in executing.executions(item, answers)}
    return executing.grade(item, answers, results)


@pytest.mark.parametrize(
    "content",
    [
        f"```python\n{RIGHT}\n```",
        f"Here:\n\n```\n{RIGHT}\n```\nIt doubles.",
        f"```py\n{RIGHT}",
        f"First try:\n```python\ndef double(x):\n    return 3\n```\nNo:\n```python\n{RIGHT}\n```\n",
        f"```python\n{RIGHT}\n```\nUse it so:\n```python\nprint(double(3))\n```",
        f"  ```python\n  {RIGHT.replace(chr(10), chr(10) + '  ')}\n  ```",
        RIGHT,
        f"Here is the function.\n\n{RIGHT}\n\nIt doubles what it's given.",
        f"```python\nfrom __future__ import annotations\nimport os\n{RIGHT}\n```",
        "```python\ndouble = lambda x: 2 * x\n```",
        f"```python\n{RIGHT}\n\nif __name__ == '__main__':\n    raise SystemExit\n```",
        f"```python\n{RIGHT}\nprint('passed')\n```",
        f"Here it is: ```python\n{RIGHT}\n```\nIt doubles.",
        f"```python\n{RIGHT}```\nIt doubles what it's given.",
        f"```python\n{RIGHT}\n\nThis doubles what it's given.",
        f"```python\n    {RIGHT.replace(chr(10), chr(10) + '    ')}\n```",
        f"from the examples we see that it's twice.\n\n{RIGHT}",
        f"{RIGHT}\n\nExample:\n```\n>>> double(3)\n6\n```",
        f"```\n>>> double(3)\n6\n```\nSo:\n\n{RIGHT}",
        f"```python\n{RIGHT.replace('    ', chr(0xA0) * 4)}\n```",
        '```python\ndef double(x):\n    """Twice.\n\n    ```\n    double(1)\n    ```\n    """\n    return 2 * x\n```',
    ],
)
def test_the_function_is_found_however_an_answer_wraps_it(content, verify):
    assert run(problem(), content, verify).points == 1


@pytest.mark.parametrize(
    "content",
    [
        "",
        "return 2 * x",
        "```python\nprint(6)\n```",
        f"```python\n{PROBLEM['prompt']}\n```",
        "```python\ndef double(x):\n    return 2 * x if x != 3 else 7\n```",
        "```python\ndef double(x):\n    raise ValueError\n```",
        "```python\ndef double(x):\n    return str(2 * x)\n```",
        "```python\ndef double(x:\n    return 2 * x\n```",
        f"```python\n{RIGHT}\nimport os; os._exit(0)\n```",
        "```python\nclass Yes:\n    def __eq__(self, other): return True\ndef double(x): return Yes()\n```",
        "```python\ndef double(x):\n    return [2 * x]\n```",
    ],
)
def test_what_is_not_the_function_earns_nothing(content, verify):
    assert run(problem(), content, verify).points == 0


def test_the_base_inputs_are_told_apart(verify):
    made = run(problem(), "```python\ndef double(x):\n    return 2 * x if x != 3 else 7\n```", verify)
    assert made.detail == "0 of 2 base inputs wrong; 1 of 1 further inputs wrong"


@pytest.mark.parametrize(
    ("value", "wanted", "tolerance", "right"),
    [
        (2, 2.0, 0, True),
        (True, 1, 0, True),
        (2.0000001, 2.0, 0, True),
        (2.001, 2.0, 0, False),
        (2.001, 2.0, 0.01, True),
        (2, 2.001, 0.01, False),
        ([1.0, 2.0000001], [1.0, 2.0], 0, True),
        ([1.0], [1.0, 2.0], 0, False),
        ((1.0,), [1.0], 0, False),
        ([1, 2], (1, 2), 0, False),
        ([1.0, "a"], [1.0000001, "a"], 0, False),
        ([1.0, "a"], [1.0000001, "a"], 1e-6, True),
        (float("nan"), float("nan"), 0, True),
        (float("inf"), float("inf"), 0, True),
        (float("inf"), 1.0, 0, False),
        (float("nan"), 1.0, 1e-3, False),
        (10**400, 1.0, 1e-3, False),
        (None, None, 0, True),
        (None, 0, 0, False),
        ("1", 1, 0, False),
        ({"a": 1}, {"a": 1.0}, 0, True),
        ({1, 2}, {2, 1}, 0, True),
        ({1, 2}, [1, 2], 0, False),
        (object(), object(), 0, False),
    ],
)
def test_results_are_compared_as_evalplus_does(value, wanted, tolerance, right):
    item = problem(base="[[1]]", plus="[]", tolerance=tolerance)
    answers = [response(f"```python\n{RIGHT}\n```")]
    reference, asked = grader("humaneval").executions(item, answers)
    results = {
        reference.digest: Result("done", (Returned(encode(wanted)),)),
        asked.digest: Result("done", (Returned(encode(value)),)),
    }
    assert grader("humaneval").grade(item, answers, results).points == right


def test_an_exception_is_no_result_even_where_the_reference_raises_it_too():
    item = problem(base="[[1]]", plus="[]")
    answers = [response(f"```python\n{RIGHT}\n```")]
    results = {
        each.digest: Result("done", (Raised("ValueError"),)) for each in grader("humaneval").executions(item, answers)
    }
    assert grader("humaneval").grade(item, answers, results).points == 0


def test_any_root_of_a_polynomial_is_right(verify):
    roots = {"entry": "find_zero", "base": "[[[-1, 0, 1]]]", "plus": "[]", "result": "root", "tolerance": 1e-4}
    item = problem(prompt="def find_zero(xs):\n", **roots)
    for value, right in ((1, 1), (-1.0, 1), (0.5, 0), (True, 0), ("1", 0), (10**200, 0), (float("nan"), 0), (1j, 0)):
        content = f"```python\nnan = float('nan')\ndef find_zero(xs): return {value!r}\n```"
        assert run(item, content, verify).points == right, value


@pytest.fixture(scope="module")
def programs(store) -> Pack:
    return read_pack(PROJECT, "humaneval-plus", store)


def replaced(solution: str) -> str:
    """The solution with another value at every return."""
    tree = ast.parse(solution)
    for node in ast.walk(tree):
        if isinstance(node, ast.Return):
            node.value = ast.Constant("sluice")
    return ast.unparse(tree)


@needs_data
def test_the_reference_solutions_pass_and_pass_no_more_with_another_return_value(programs, verify):
    """All of them with SLUICE_HUMANEVAL=all, which takes minutes; otherwise a part."""
    part = programs.items if ALL else random.Random(2).sample(programs.items, PART)
    assert len(part) == (164 if ALL else PART)
    for item in part:
        right = judged(programs, item, [response(f"```python\n{item.expected.solution}\n```")], verify)
        assert right.points == 1, f"{item.id}: {right.detail}"
        wrong = judged(programs, item, [response(f"```python\n{replaced(item.expected.solution)}\n```")], verify)
        assert wrong.points == 0, item.id
        assert judged(programs, item, [AGENTS["echo"](item.messages, None)], verify).points == 0, item.id


@needs_data
@pytest.mark.parametrize("agent", ["silent", "first tool", "refusing"])
def test_agents_that_write_no_function_get_nothing(programs, agent):
    assert share(programs, AGENTS[agent]) == 0
