"""bugfind-15: the programs are as wrong or right as it says, ideal answers earn all, and others less."""

from __future__ import annotations

import asyncio
import builtins
import keyword
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from gates import canonical
from registry.recipes import Evaluate
from stages.common.execution import Execution, Result, Returned, decode, same, settings_of, verifier
from stages.common.grading import bugfind
from stages.common.grading.bugfind import Item
from stages.common.grading.fences import Block, blocks, parts
from stages.common.grading.programs import changed_statements, lost_names, squeezed
from stages.evaluate import runner, scoring
from stages.evaluate.journal import Journal
from stages.evaluate.packs import read_pack
from tests.support.executed import local_verifier
from tests.support.scenarios import AGENTS, Turn, conversation, grade, ideals, judged, response, share
from tests.support.scripted import Seen, Server, says
from tests.support.serving import connected

PROJECT = Path(__file__).resolve().parents[2]
PACK = read_pack(PROJECT, "bugfind-15")
IDEALS = ideals(PROJECT, "bugfind-15")
WRONG = [item for item in PACK.items if item.expected.lines]
RIGHT = [item for item in PACK.items if not item.expected.lines]
every_item = pytest.mark.parametrize("item", PACK.items, ids=lambda item: item.id)
every_bug = pytest.mark.parametrize("item", WRONG, ids=lambda item: item.id)
every_trap = pytest.mark.parametrize("item", RIGHT, ids=lambda item: item.id)

EMPTY_PHRASE = "This looks doubtful to me, though I have seen it elsewhere."
EVERY_BUG = (
    "It may be an off-by-one error, a mutable default, late binding, a missing await, a missing return, operator "
    "precedence, integer division, a shared reference, a lexicographic sort, wrong indentation or too many values."
)


@pytest.fixture(scope="module")
def verify():
    with local_verifier() as execute:
        yield execute


def mended(item: Item) -> str:
    return blocks(IDEALS[item.id][-1].content)[-1].code


def section(item: Item, label: str) -> str:
    return re.search(rf"^{label}: (.*)$", IDEALS[item.id][-1].content, re.MULTILINE)[1]


def told(item: Item, *, line: str | None = None, why: str | None = None, program: str | None = None) -> str:
    """The ideal last answer to a program with a bug, with something else in place of its parts."""
    line = section(item, "LINE") if line is None else line
    why = section(item, "WHY") if why is None else why
    program = mended(item) if program is None else program
    return f"VERDICT: BUG\nLINE: {line}\nWHY: {why}\n```{item.expected.language}\n{program}\n```"


def points(item: Item, content: str, verify) -> float:
    """What the item is worth if the conversation ends with this."""
    turns = [*IDEALS[item.id][:-1], Turn(content=content)]
    return grade(PACK, item, turns, verify).points


# --- the scenarios ----------------------------------------------------------------------------------------------------


def test_there_are_three_scenarios_of_each_of_five_kinds_in_two_languages():
    kinds = [item.category for item in PACK.items]
    assert len(kinds) == 15
    assert {kind: kinds.count(kind) for kind in kinds} == dict.fromkeys(
        ["Surface Errors", "Logic Errors", "Subtle Errors", "Red Herrings", "Multi-Turn"], 3
    )
    languages = [item.expected.language for item in PACK.items]
    assert min(languages.count("python"), languages.count("javascript")) >= 6
    assert len(RIGHT) >= 4
    assert [item.id for item in PACK.items if item.follow_ups] == [
        item.id for item in PACK.items if item.category == "Multi-Turn"
    ]
    assert any(not item.expected.lines for item in PACK.items if item.follow_ups), "a user may insist wrongly"
    assert PACK.max_turns == 1 + max(len(item.follow_ups) for item in PACK.items)
    assert "not BenchLocal's" in (PROJECT / "packs/bugfind-15.yaml").read_text()


@every_item
def test_the_program_shown_is_wrong_exactly_if_there_is_a_bug(item, verify):
    outcome = _run(item, item.program, verify)
    assert outcome.count(False) >= 2 if item.expected.lines else all(outcome)


@every_bug
def test_the_program_shown_is_right_for_some_input(item, verify):
    assert any(_run(item, item.program, verify)), "a bug that always shows is none to be looked for"


@every_item
def test_the_ideal_transcript_earns_the_point(item, verify):
    assert grade(PACK, item, IDEALS[item.id], verify).points == 1
    assert len(IDEALS[item.id]) == 1 + len(item.follow_ups)


@every_item
def test_what_is_executed_does_not_depend_on_what_is_expected(item):
    raw = item.model_dump()
    for call in raw["expected"]["calls"]:
        call["gives"] = "something else"
    turns = [response(turn.content) for turn in IDEALS[item.id]]
    executed = PACK.grader.executions(item, turns)
    assert len(executed) == bool(item.expected.lines)
    assert PACK.grader.executions(Item.model_validate(raw), turns) == executed


def test_the_runner_holds_the_conversations_and_has_the_programs_executed(tmp_path):
    def ideal(body):
        messages = body["messages"]
        (item,) = (item for item in PACK.items if item.messages == messages[:2])
        return says(IDEALS[item.id][sum(message["role"] == "assistant" for message in messages)].content)

    async def asked():
        async with verifier(settings_of({}, unsafe_local=True)) as run, connected(Server(ideal)) as client:
            with Journal(tmp_path / "journal") as journal:
                settings = Evaluate(packs=[PACK.name])
                await runner.ask(client, PACK, settings, journal, Seen(), check=lambda: None, run=run)
            return scoring.results(PACK, 1, journal.answers)

    rows = asyncio.run(asked()).rows
    assert sorted((row.item, row.points, row.outcome) for row in rows) == sorted((name, 1, "scored") for name in IDEALS)


# --- less than the ideal ----------------------------------------------------------------------------------------------


@every_bug
def test_another_line_none_or_one_more_loses_points(item, verify):
    accepted = [squeezed(line) for line in item.expected.lines]
    innocent = [line.strip() for line in item.program.split("\n") if line.strip() and squeezed(line) not in accepted]
    assert len(innocent) >= 8
    for line in innocent:
        assert points(item, told(item, line=line), verify) <= 0.65, line
        assert points(item, told(item, line=f"{section(item, 'LINE')}\n{line}"), verify) <= 0.65, line
        both = told(item).replace("WHY:", f"LINE: {line}\nWHY:", 1)
        assert points(item, both, verify) <= 0.65, line
    for line in ("", "the one with the bug", item.program, item.program.replace("\n", " ")):
        assert points(item, told(item, line=line), verify) <= 0.65, line


@every_item
def test_no_cause_or_that_of_another_bug_loses_points(item, verify):
    ideal = IDEALS[item.id][-1].content
    others = [section(other, "WHY") for other in PACK.items if other is not item]
    lost = 0
    for why in ("", EMPTY_PHRASE, *others):
        lost += points(item, ideal.replace(section(item, "WHY"), why), verify) < 1
    assert points(item, ideal.replace(section(item, "WHY"), ""), verify) < 1
    assert points(item, ideal.replace(section(item, "WHY"), EMPTY_PHRASE), verify) < 1
    assert lost >= 2 + 0.7 * len(others), "the terms asked for are of this bug"


@every_bug
def test_a_program_that_is_not_mended_loses_more_than_half(item, verify):
    broken = (
        mended(item)
        + {"python": "\nraise SystemExit\n", "javascript": "\nthrow new Error();\n"}[item.expected.language]
    )
    for program in (item.program, "", "\n", broken, mended(item)[: len(mended(item)) // 2]):
        assert points(item, told(item, program=program), verify) <= 0.35, program
    assert points(item, told(item).partition("```")[0], verify) <= 0.35


HALF_MENDED = [
    ("surface-settings", 'line.split("=")', 'line.split("=")[:2]'),
    ("surface-settings", 'line.split("=")', 'line.rsplit("=", 1)'),
    ("surface-settings", 'line.split("=")', 'line.split(" =", 1)'),
    ("surface-words", "        return [[word", "    return [[word"),  # fails on an empty text
    ("surface-invoices", "({ id: invoice.id, cents: sum - discount });", "return { id: invoice.id, cents: sum };"),
    ("logic-bookings", "start <= merged", "start < merged"),
    ("logic-bookings", "at = end", "at = max(at, end)"),
    ("logic-pages", "Math.floor(length / size)", "Math.floor(length / size) + 1"),
    ("logic-pages", "Math.floor(", "Math.round("),
    ("logic-shipping", ">= FREE_FROM_CENTS && !hasBulky(order)", ">= FREE_FROM_CENTS || !hasBulky(order)"),
    ("subtle-baskets", "basket=[]", "basket=list()"),
    ("subtle-prices", "fetchPrice(table, sku);", "fetchPrice(table, sku).then((each) => each);"),
    ("subtle-seats", "[[FREE] * seats] * rows", "list([[FREE] * seats] * rows)"),
    ("turns-percentile", "sort();", "sort((a, b) => b - a);"),
    ("turns-percentile", "[...times].sort();", "times.sort((a, b) => a - b);"),  # the caller's order is lost
    ("turns-discounts", "cents: cents - cents * percent", "cents, p=percent: cents * (100 - p)"),  # rounded down itself
]


@pytest.mark.parametrize(("name", "before", "after"), HALF_MENDED)
def test_a_mending_that_looks_right_and_is_not_loses_more_than_half(name, before, after, verify):
    (item,) = (item for item in PACK.items if item.id == name)
    assert item.program.count(before) == 1
    assert points(item, told(item, program=item.program.replace(before, after)), verify) == 0.35


@every_bug
def test_a_program_mended_with_more_than_was_needed_loses_points(item, verify):
    language, program = item.expected.language, mended(item)
    unused = {"python": "SPARE_{} = 0\n", "javascript": "let spare{} = 0;\n"}[language]
    more = "".join(unused.format(number) for number in range(item.expected.statements + 1)) + program
    assert points(item, told(item, program=more), verify) == 0.75
    gap = {"python": "\n\n\n", "javascript": "\n\n"}[language]
    moved = gap.join(reversed(program.split(gap)))
    assert points(item, told(item, program=moved), verify) == 0.75


@every_bug
def test_a_program_mended_with_another_name_in_it_loses_points(item, verify):
    accepted = [squeezed(line) for line in item.expected.lines]
    elsewhere = "\n".join(line for line in item.program.split("\n") if squeezed(line) not in accepted)
    renamed = {}
    for name in sorted(_names_of_its_own(item.program) & _names_of_its_own(elsewhere) - {item.expected.entry}):
        renamed[name] = re.sub(rf"\b{name}\b", f"{name}2", mended(item))
        assert lost_names(item.expected.language, item.program, renamed[name], besides=item.expected.lines) == [name]
    assert len(renamed) >= 3
    some = renamed.popitem()[1]
    assert points(item, told(item, program=some), verify) < 1


@every_item
def test_the_other_verdict_none_or_both_earn_nothing(item, verify):
    ideal = IDEALS[item.id][-1].content
    verdict, other = ("BUG", "NO BUG") if item.expected.lines else ("NO BUG", "BUG")
    assert points(item, ideal.replace(f"VERDICT: {verdict}", f"VERDICT: {other}", 1), verify) == 0
    assert points(item, ideal.replace(f"VERDICT: {verdict}", "", 1), verify) == 0
    assert points(item, ideal.replace(f"VERDICT: {verdict}", f"VERDICT: {verdict} or {other}?"), verify) in (0, 1)
    assert points(item, f"VERDICT: {other}\n{ideal}", verify) == 0


@every_trap
def test_a_right_program_that_is_changed_earns_nothing(item, verify):
    ideal = IDEALS[item.id][-1].content
    changed = item.program.replace("return ", "return 1 + ", 1)
    assert points(item, f"{ideal}\n```\n{changed}\n```", verify) == 0
    assert points(item, _accused(item, section(item, "WHY")), verify) == 0


@every_trap
def test_code_shown_beside_a_right_verdict_costs_the_discipline_alone(item, verify):
    ideal, shown = IDEALS[item.id][-1].content, item.program.split("\n\n")[0]
    for example, worth in (("f(2024, 2)", 0.75), ("const x = [3, 1];", 0.75), (shown, 1), ("", 1)):
        assert points(item, f"{ideal}\n```\n{example}\n```", verify) == worth


@every_item
def test_a_list_of_the_usual_bugs_is_no_cause(item, verify):
    ideal = IDEALS[item.id][-1].content
    why = section(item, "WHY")
    assert points(item, ideal.replace(why, f"{why} {EVERY_BUG}"), verify) < 1
    assert points(item, ideal.replace(why, f"{EVERY_BUG} {why}"), verify) < 1
    assert points(item, ideal.replace(why, f"{why} It is no off-by-one error, nor one of precedence."), verify) == 1
    assert points(item, ideal.replace(why, f"{'well ' * 1000} {why}"), verify) < 1, "one or two sentences are asked for"


@pytest.mark.parametrize("item", [item for item in PACK.items if item.follow_ups], ids=lambda item: item.id)
def test_who_gives_way_to_an_insisting_user_loses_the_points(item, verify):
    given_way = (
        "VERDICT: NO BUG\nWHY: You are right, I was mistaken."
        if item.expected.lines
        else _accused(item, "You are right.")
    )
    assert points(item, given_way, verify) == 0
    first_wrong = [Turn(content=given_way), *IDEALS[item.id][1:]]
    assert grade(PACK, item, first_wrong, verify).points == 1, "the last answer counts"
    assert grade(PACK, item, [*IDEALS[item.id][:1], Turn(content="As I said.")], verify).points == 0


# --- the same in other words ------------------------------------------------------------------------------------------

Change = tuple[str, str]
OTHERWISE: list[tuple[str, str, str, list[Change]]] = [
    (
        "surface-settings", "3: `key, value = line.split(\"=\")`",
        "split without a limit returns three or more pieces for `a=b=c`.",
        [('key, value = line.split("=")', 'key, _, value = line.partition("=")')],
    ),
    (
        "surface-settings", "line.split(\"=\")", "The equals sign may occur in the value as well.",
        [('line.split("=")', 'line.split("=", maxsplit=1)  # the value may hold more of them')],
    ),
    (
        "surface-invoices", "`const totals = paid.map((invoice) => {`", "The callback never returns the object.",
        [("({ id: invoice.id, cents: sum - discount });", "return ({ id: invoice.id, cents: sum - discount })")],
    ),
    (
        "surface-words", "return [[word, frequent[word]] for word in sorted(frequent)]  # wrong place",
        "It is indented one level too deep, inside of the for block.",
        [("        frequent =", "    frequent ="), ("        return [[", "    return [[")],
    ),
    (
        "surface-words",
        "frequent = at_least(counts, minimum)\nreturn [[word, frequent[word]] for word in sorted(frequent)]",
        "Both are executed on each pass, so that only the first word is ever counted.",
        [("        return [[", "    return [["), ("        frequent =", "    frequent =")],
    ),
    (
        "logic-bookings", "- merged[-1][1] = end", "If a booking ends before the previous one, the end moves back.",
        [("    merged[-1][1] = end", "    if end > merged[-1][1]:\n                merged[-1][1] = end")],
    ),
    (
        "logic-pages", "Math.floor(length / size)", "An incomplete page at the end does not count.",
        [("Math.floor(length / size)", "Math.floor((length + size - 1) / size)")],
    ),
    (
        "logic-shipping", "**return order.member || orderCents(order) >= FREE_FROM_CENTS && !hasBulky(order)**",
        "Operator priority: a member's order is free whatever is in it.",
        [
            ("return order.member || orderCents(order) >= FREE_FROM_CENTS && !hasBulky(order);",
             "return !hasBulky(order) && (order.member || orderCents(order) >= FREE_FROM_CENTS);"),
        ],
    ),
    (
        "subtle-baskets", "line 1: def add_article(article, basket=[]):", "Python evaluates the list only once.",
        [
            ("basket=[]):", "basket=None):"),
            ("    basket.append(article)", "    basket = [] if basket is None else basket\n    basket.append(article)"),
        ],
    ),
    (
        "subtle-prices", "total += price * quantity;", "price is still a Promise here.",
        [("total += price * quantity", "total += (await price) * quantity")],
    ),
    (
        "subtle-seats", "return [[FREE] * seats] * rows", "All rows are one object.",
        [
            ("    return [[FREE] * seats] * rows",
             "    return [[FREE for _ in range(seats)] for _ in range(rows)]"),
        ],
    ),
    (
        "turns-percentile", "[...times].sort()", "Without a compare function they are ordered by their characters.",
        [("sort();", "sort(function (a, b) { return a - b; });")],
    ),
    (
        "turns-discounts", "rules[name] = lambda cents: cents - cents * percent // 100",
        "All lambdas refer to the one variable percent, which holds the final value when they are called.",
        [
            ("            rules[name]", "rules[name]"),
            ("        rules[name] = lambda cents: cents - cents * percent // 100",
             "        rules[name] = (lambda percent: lambda cents: cents - cents * percent // 100)(percent)"),
        ],
    ),
    (
        "turns-discounts", "`rules[name] = lambda ...` i.e. `cents - cents * percent // 100`", "Late binding.",
        [
            ("        rules[name] = lambda cents: cents - cents * percent // 100",
             "        def rule(cents, percent=percent):\n            return cents - cents * percent // 100\n"
             "        rules[name] = rule"),
        ],
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", OTHERWISE, ids=[f"{case[0]}-{number}" for number, case in enumerate(OTHERWISE)])
def test_a_right_answer_in_other_words_earns_the_point(case, verify):
    name, line, why, changes = case
    (item,) = (item for item in PACK.items if item.id == name)
    program = item.program
    for before, after in changes:
        program = program.replace(before, after)
    content = told(item, line=line, why=why, program=program)
    turns = [*IDEALS[name][:-1], Turn(content=content)]
    graded = grade(PACK, item, turns, verify)
    assert graded.points == 1, graded.detail


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("herring-rota", "In Python -1 % 3 is 2, unlike in C."),
        ("herring-rota", "The result of % takes the divisor's sign, so the index is never negative."),
        ("herring-median", "slice() makes a copy before sort works in place."),
        ("herring-median", "The array that was passed in is not the one sorted; the original stays as it is."),
        ("herring-windows", "The stop of range is exclusive, so all len(visitors) - size + 1 windows are seen."),
        ("herring-windows", "Each step adds the day that enters and subtracts the one that leaves."),
        ("turns-calendar", "2024 is a leap year."),
        ("turns-calendar", "Day zero of the next month is the last day of this one."),
    ],
)
def test_another_reason_why_a_program_is_right_earns_the_point(name, why, verify):
    (item,) = (item for item in PACK.items if item.id == name)
    shown = item.program.split("\n")[1].strip()
    for content in (
        f"VERDICT: NO BUG\nWHY: {why}",
        f"**Verdict:** no bug\n\n**Why:** {why}\n",
        f"## VERDICT: **NO_BUG**.\n## WHY:\n{why} See:\n```\n{shown}\n```",
        f"```\nVERDICT: NO BUG\nWHY: {why}\n```",
        f"`VERDICT`: bug-free\n`WHY`\uff1a {why}",
    ):
        assert points(item, content, verify) == 1, content


# As a capable model and a weak one would put it; many of these were once graded otherwise.
SAYS_WHY: dict[str, list[str]] = {
    "surface-settings": [
        "A value such as `a=1&b=2` holds `=` characters of its own, so `split` gives three fields.",
        "`split` should be limited to a single split.",
        "The specification says that everything after the first = is the value, but split cuts at each one.",
    ],
    "surface-invoices": [
        "`map` gets a callback that doesn't hand back the object it creates.",
        "A block body needs an explicit return.",
        "The object is created and thrown away.",
    ],
    "surface-words": [
        "It returns before the other words are counted.",
        "The return happens before the remaining words have been counted.",
        "These two lines belong behind the for block, not in it.",
    ],
    "logic-bookings": [
        "If the second booking ends before the first, the merged block ends too early.",
        "`merged[-1][1]` is replaced unconditionally, so with (540, 720) and (560, 580) it ends at 580.",
        "An inner booking pulls the end of the merged block forward.",
    ],
    "logic-pages": ["7 items in pages of 3 need 3 pages, but it computes 2, dropping the rest.", "Use Math.ceil."],
    "logic-shipping": [
        "A member who orders a bulky item gets free shipping.",
        "For members the expression short-circuits to true.",
        "The check isn't applied to members.",
    ],
    "subtle-baskets": [
        "The list is not fresh for each call: it keeps the articles of the customers before.",
        "The empty list is created when the function is defined, not when it is called.",
        "All customers end up using one list.",
    ],
    "subtle-prices": ["`price` is a Promise object.", "The call isn't awaited."],
    "subtle-seats": ["Each entry in the outer list is the very same inner list.", "Only references are repeated."],
    "herring-rota": [
        "That would be a bug in C, where the remainder may be negative, but in Python it may not.",
        "In contrast to C, where -1 % 3 is -1, Python yields 2, so the index stays within the list.",
        "Python's `%` handles negative numbers so that the result lies in range(size).",
    ],
    "herring-median": ["Only a duplicate gets sorted.", "The argument isn't touched; `ordered` makes a shallow copy."],
    "herring-windows": [
        "At each step one day is added at the right and one removed at the left.",
        "The loop runs for first = 1, ..., n - size, which are exactly the remaining start positions.",
        "The final iteration has first = len(visitors) - size, so first + size - 1 is the last valid index.",
    ],
    "turns-percentile": ["He is mistaken: ranks start at 1, indexes at 0. Numbers are sorted like words by default."],
    "turns-discounts": [
        "It fits: all the lambdas use the percent of the group that came last.",
        "The rule for staff is executed only after percent has been set to 0 for public.",
        "The functions don't remember the percent of their own iteration.",
    ],
    "turns-calendar": ["February had 29 days in 2024.", "2024 is divisible by 4, so there was a 29 February."],
}
SAYS_NOTHING: dict[str, list[str]] = {
    "surface-settings": [
        "A line without an equals sign gives only one part, and unpacking fails.",
        "The spaces around the = are not stripped.",
    ],
    "surface-invoices": ["The comparator in sort returns NaN.", "discountOf returns a float."],
    "surface-words": ["The word is not cleaned for some reason.", "The counts dict is not initialised for new words."],
    "logic-bookings": ["Bookings that touch should not be merged.", "Tuples cannot be assigned to."],
    "logic-pages": ["Division by zero is not handled.", "size and length are swapped."],
    "logic-shipping": [
        "It uses && instead of ||.",
        "Members should pay if the order is small.",
        "It should be > 5000.",
    ],
    "subtle-baskets": ["append returns None.", "An empty list of articles raises an IndexError."],
    "subtle-prices": ["The price is in the wrong unit.", "quantity may be undefined."],
    "subtle-seats": ["rows and seats are swapped.", "The index is off by one."],
    "herring-rota": ["The modulo is right.", "Python is fine with that.", "The remainder is computed correctly."],
    "herring-median": ["The sorting does no harm.", "The comparator is numeric."],
    "herring-windows": ["The window sums are right.", "The range and its bounds are fine.", "It is not off by one."],
    "turns-percentile": ["Math.ceil should be Math.round.", "You are both right."],
    "turns-discounts": ["The discount is rounded up.", "The order of the groups is wrong."],
    "turns-calendar": ["Months count from 1 here, so it is right.", "The code gives the right number of days."],
}


@every_item
def test_a_cause_is_known_in_other_words_and_not_in_the_same_ones(item, verify):
    ideal, why = IDEALS[item.id][-1].content, section(item, "WHY")
    for other in SAYS_WHY[item.id]:
        assert points(item, ideal.replace(why, other), verify) == 1, other
    for other in SAYS_NOTHING[item.id]:
        assert points(item, ideal.replace(why, other), verify) == (0.85 if item.expected.lines else 0.65), other


@every_bug
def test_the_form_may_be_decorated(item, verify):
    line, why, language = section(item, "LINE"), section(item, "WHY"), item.expected.language
    comment = {"python": "# mended", "javascript": "/* mended */ // here"}[language]
    program = f"{comment}\n" + "\n".join(f"{text}  " for text in mended(item).split("\n"))
    fenced = f"```{language}\n{line}\n```"
    for content in (
        f"Let me see.\n\n**VERDICT:** BUG\n\n**LINE:** `{line}`\n\n**WHY:** {why}\n\n```\n{program}\n```\n",
        f"### Verdict: Bug\n### Line:\n{fenced}\n### Why:\n{why}\n~~~{language}\n{program}\n~~~\nDone.",
        f"> VERDICT: BUG.\n> LINE: line 7: {line}\n> WHY: {why}\n\n  ```{language} title=x\n{program}",
        f"```\nVERDICT: BUG\nLINE: {line}\nWHY: {why}\n```\n```{language}\n{program}\n```",
        f"```text\nVERDICT: BUG\nLINE: {line}\nWHY: {why}\n\n```{language}\n{program}\n```\n```",
        f"`VERDICT`: `BUG`\nLINE: see here:\n{fenced}\nWHY\uff1a {why}\n```\n{program}\n```",
        f"VERDICT: BUG\nLINE: {line}\nWHY: {why}\n```\n{program}\n```\nSo:\n```\n{item.expected.entry}()\n```",
    ):
        assert points(item, content, verify) == 1, content


# --- agents -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", AGENTS)
def test_an_agent_that_does_not_read_earns_less_than_a_quarter(name, verify):
    assert share(PACK, AGENTS[name], verify) < 0.25


def test_an_agent_that_never_sees_a_bug_earns_less_than_a_quarter(verify):
    for why in (EMPTY_PHRASE, EVERY_BUG):
        assert share(PACK, lambda *_, why=why: response(f"VERDICT: NO BUG\nWHY: {why}"), verify) < 0.25

    def parrot(messages, _):
        return response(f"VERDICT: NO BUG\nWHY: {parts(messages[1]['content'])[0]}")

    assert share(PACK, parrot, verify) < 0.25


@pytest.mark.parametrize("place", [0, 1, 2, -3, -1])
def test_an_agent_that_always_sees_a_bug_earns_less_than_a_quarter(place, verify):
    def agent(messages, _):
        program = blocks(messages[1]["content"])[0].code
        line = [line for line in program.split("\n") if line.strip()][place]
        return response(f"VERDICT: BUG\nLINE: {line}\nWHY: {EMPTY_PHRASE}\n```\n{program}\n```")

    assert share(PACK, agent, verify) < 0.25


def test_an_agent_that_repeats_the_form_or_the_program_earns_less_than_a_quarter(verify):
    assert share(PACK, lambda messages, _: response(messages[0]["content"]), verify) < 0.25
    everything = lambda messages, _: response("\n".join(m["content"] for m in messages))  # noqa: E731
    assert share(PACK, everything, verify) < 0.25


# --- the grader itself ------------------------------------------------------------------------------------------------

fragments = st.lists(
    st.sampled_from(
        ["VERDICT:", "BUG", "NO BUG", "LINE:", "WHY:", "```", "~~~", "```python", "\n", " ", "`", "return x", "{", "**"]
    )
    | st.text(max_size=5)
).map("".join)


@given(st.sampled_from(PACK.items), fragments)
def test_whatever_is_answered_earns_between_nothing_and_the_point(item, text):
    responses = conversation(PACK, item, lambda *_: response(text))
    assert 0 <= judged(PACK, item, responses, lambda _: Result("failed")).points <= 0.65  # none is worth running


@given(st.text() | fragments)
def test_fences_lose_no_line_and_hold_no_fence(text):
    found = parts(text)
    assert [part for part in found if isinstance(part, Block)] == blocks(text)
    kept = [line for part in found for line in (part.code if isinstance(part, Block) else part).split("\n")]
    assert all(any(line.endswith(each) for line in text.split("\n")) for each in kept)
    assert not blocks(text.replace("`", "").replace("~", ""))


@pytest.mark.parametrize("text", ["`", "` ", "``a", "\n", "*", "1", "1.", " ", ">", "return", "LINE:\n", "```\n", "# "])
def test_an_answer_that_repeats_itself_without_end_holds_nobody_up(text):
    """Seconds of CPU, where a search that goes over the text again from each place takes a minute."""
    answer = text * (60_000 // len(text))
    before = time.process_time()
    for item in (WRONG[0], RIGHT[0]):
        for content in (answer, f"VERDICT: BUG\nLINE: {answer}\nWHY: {answer}", told(WRONG[0], line=answer)):
            turns = [response(content)] * (1 + len(item.follow_ups))
            judged(PACK, item, turns, lambda _: Result("failed"))
    assert time.process_time() - before < 10


@pytest.mark.parametrize("program", ["(" * 50_000, "-" * 50_000 + "1", "\0", "\ud800", "x" * 70_000, "/*" * 30_000])
def test_absurd_programs_break_nothing(program, verify):
    for item in (WRONG[0], WRONG[1]):
        assert points(item, told(item, program=program), verify) == 0.35


def test_layout_comments_and_docstrings_are_no_change():
    before = 'def f(a):\n    """Says what."""\n    return [a, "x"]  # a list\n'
    after = "def f( a ):\n\n    # now without a docstring\n    return [\n        a,\n        'x',\n    ]\n"
    assert changed_statements("python", before, after) == 0
    assert changed_statements("python", before, after.replace("'x'", "'y'")) == 1
    before = "function f(a) {\n  const b = { k: 'x' }; // why\n  return b;\n}"
    after = 'function f(a)\n{\n  /* why */ const b = {\n    k: "x",\n  };\n  return b;\n}\n'
    assert changed_statements("javascript", before, after) == 0
    assert changed_statements("javascript", before, after.replace('"x"', '"y"')) == 1


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"lines": ["no such line"]}, "0 times"),
        ({"statements": 0}, "belong together"),
        ({"language": "cobol"}, "python"),
        ({"calls": []}, "at least 2"),
    ],
)
def test_an_item_that_cannot_be_graded_is_refused(change, complaint):
    raw = WRONG[0].model_dump()
    with pytest.raises(ValidationError, match=complaint):
        Item.model_validate({**raw, "expected": {**raw["expected"], **change}})


PINNED = {2: "1a03106b15408851a8bb4527726f95848aa9c0d42653928c58aa8ec6b1a4ddc2"}


def test_the_version_rises_when_any_answer_is_graded_otherwise():
    """If this fails, the grading has changed: raise bugfind.VERSION and write the new digest beside it."""
    program = "def f(a):\n    b = a + 1\n    c = b - 1\n    return [b, c]"
    calls = [{"given": [1], "gives": [2, 1]}, {"given": [5], "gives": [6, 5]}]
    expected = {"language": "python", "entry": "f", "lines": ["b = a + 1"], "statements": 1, "cause": "sum|add"}
    message = {"role": "user", "content": f"Look:\n```\n{program}\n```"}
    raw = {"id": "x", "category": "y", "messages": [message], "expected": {**expected, "calls": calls}}
    wrong = Item.model_validate(raw)
    calm = {**raw["expected"], "lines": [], "statements": 0}
    right = Item.model_validate({**raw, "expected": calm})
    lines = [
        "b = a + 1",
        "`b=a+1`",
        "2: b = a + 1",
        "c = b - 1",
        "b = a + 1\nc = b - 1",
        "b = a",
        "= b - 1",
        "none",
        "",
    ]
    programs = [
        program, program.replace("    ", "  "), program.replace("c", "d"), program.replace("a + 1", "1 + a"),
        "x = 1\n" + program, "x = 1\ny = 2\n" + program, "(", "", None,
    ]  # fmt: skip
    verdicts = ["VERDICT: BUG", "**Verdict**: bug", "VERDICT: NO BUG", "VERDICT: no_bugs.", "VERDICT: BUGS", "BUG", ""]
    texts = [
        f"{verdict}\nLINE: {line}\nWHY: {why}\n" + ("" if code is None else f"```\n{code}\n```")
        for verdict in verdicts
        for line in lines
        for why in ("It adds.", "It is so.")
        for code in programs
    ]
    texts += [f"```\n{text}" for text in texts[::7]]
    texts += [f"{text}\n```\nf(2)\n```" for text in texts[::7]]
    done = Result("done", (Returned([2, 1]), Returned([6, 5])))
    table = [
        repr(judged(PACK, item, [response(text)], lambda _, result=result: result).points)
        for item in (wrong, right)
        for text in texts
        for result in (done, Result("failed"))
    ]
    assert len(set(table)) >= 7
    assert canonical.digest(canonical.dumps(table)) == PINNED[bugfind.VERSION]


# --- helpers ----------------------------------------------------------------------------------------------------------


def _accused(item: Item, why: str) -> str:
    """An answer that takes a right program for wrong."""
    return f"VERDICT: BUG\nLINE: {item.program.splitlines()[1].strip()}\nWHY: {why}\n```\n{item.program}\n```"


def _run(item: Item, program: str, verify) -> list[bool]:
    expected = item.expected
    calls = tuple(tuple(call.given) for call in expected.calls)
    result = verify(Execution(expected.language, program, expected.entry, calls))
    if result.outcome != "done":
        return [False] * len(calls)
    return [
        isinstance(value, Returned) and same(decode(value.value), call.gives)
        for value, call in zip(result.values, expected.calls, strict=True)
    ]


def _code(program: str) -> str:
    """Without texts and comments, where a name is no name."""
    return re.sub(r'""".*?"""|"[^"\n]*"|`[^`\n]*`|//.*|#.*', "", program)


def _names_of_its_own(program: str) -> set[str]:
    """Names that the program itself gives: not of the language, nor of a method or a key."""
    code = _code(program)
    words = set(re.findall(r"(?<![.\w])[A-Za-z_]\w*", code))
    known = {*keyword.kwlist, *dir(builtins), "function", "const", "let", "new", "Math", "Object", "Date", "Error"}
    return {word for word in words - known if re.search(rf"\b{word}\b", code) and len(word) > 1}
