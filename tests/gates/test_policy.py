from __future__ import annotations

import json
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gates.errors import UsageError
from gates.policy import explain, parse_policy, plain

ONE = """\
name: one
gates:
  - name: Toolcall
    rules:
      - drop: {pack: tools, at_most: 5}
      - floor: {packs: [tools, facts], category: Parameter Precision, at_least: 66.7}
      - gain: {packs: [facts], at_least: 0.5}
"""


def test_a_policy_says_in_sentences_what_it_demands():
    assert explain(parse_policy(ONE, "one.yaml")) == [
        "Toolcall: tools may drop at most 5 points below the baseline",
        "Toolcall: tools and facts, category Parameter Precision, must each score at least 66.7",
        "Toolcall: facts must gain at least 0.5 points on the baseline",
    ]


@pytest.mark.parametrize("file", sorted(Path("policies").glob("*.yaml"), key=str))
def test_the_shipped_policies_are_named_like_their_files(project: Path, file: Path):
    policy = parse_policy((project / file).read_text(), str(file))
    assert policy.name == file.stem


def test_comments_order_and_ways_to_write_a_number_do_not_change_the_identity():
    other = """\
# another way to write it
gates:
  - rules:
      - drop: {at_most: 5.00, packs: [tools]}
      - floor: {at_least: 66.700, packs: [tools, facts], category: "Parameter Precision"}
      - gain: {pack: facts, at_least: 0.50}
    name: Toolcall
name: one
"""
    assert parse_policy(ONE, "a").identity() == parse_policy(other, "b").identity()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("at_most: 5", "at_most: 5.000001"),
        ("tools, facts", "facts, tools"),
        ("name: Toolcall", "name: Tools"),
        (", category: Parameter Precision", ""),
        ("      - gain: {packs: [facts], at_least: 0.5}\n", ""),
    ],
)
def test_what_changes_the_meaning_changes_the_identity(old: str, new: str):
    assert ONE.count(old) == 1
    assert parse_policy(ONE, "a").identity() != parse_policy(ONE.replace(old, new), "b").identity()


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("at_most: 5", "at_most: 5, margin: 3", ["line 5", "gates[0].rules[0].drop.margin", "unknown key"]),
        ("at_most: 5", "at_most: -1", ["line 5", "greater than or equal to 0"]),
        ("at_most: 5", "at_most: 100", ["line 5", "less than 100"]),
        ("at_most: 5", "at_most: true", ["line 5", "a number is needed"]),
        ("at_most: 5", "at_most: .nan", ["not a number"]),
        ("at_most: 5", "at_most: .inf", ["not a number"]),
        ("at_most: 5", 'at_most: "NaN"', ["line 5", "finite"]),
        ("at_most: 5", "at_most: 0.0000001", ["line 5", "decimal places"]),
        ("at_least: 66.7", "at_least: 0", ["line 6", "greater than 0"]),
        ("at_least: 66.7", "at_least: 100.1", ["line 6", "less than or equal to 100"]),
        ("pack: tools", "pack: tools, packs: [facts]", ["line 5", "either pack or packs"]),
        ("pack: tools, ", "", ["line 5", "either pack or packs"]),
        ("[tools, facts]", "[]", ["line 6", "at least 1 item"]),
        ("[tools, facts]", "[tools, tools]", ["line 6", "stands twice"]),
        ("[tools, facts]", "[tools, ../facts]", ["line 6", "packs[1]"]),
        ("name: Toolcall", "name: tool call", ["line 3", "gates[0].name"]),
        ("  - name: Toolcall\n", "  - name: Toolcall\n    rules: []\n  - name: Again\n", ["line 4", "at least 1 item"]),
        ("category: Parameter Precision", 'category: "a\\nb"', ["line 6", "one line of text"]),
        ("      - drop: {pack: tools, at_most: 5}", "      - {}", ["line 5", "a rule is one of: floor, drop, gain"]),
        ("      - drop: {pack", "      - paired: {pack", ["line 5", "unknown key"]),
        ("name: one", "name: One", ["line 1", "name"]),
    ],
)
def test_a_policy_that_is_wrong_is_refused_with_line_and_field(old: str, new: str, words: list[str]):
    assert ONE.count(old) == 1
    with pytest.raises(UsageError) as error:
        parse_policy(ONE.replace(old, new), "policies/one.yaml")
    for word in ["policies/one.yaml", *words]:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "text", ["", "name: empty", "name: empty\ngates: []", "- 1", "name: [", "\x00", "name: a\nname: b"]
)
def test_a_policy_that_checks_nothing_is_refused(text: str):
    with pytest.raises(UsageError):
        parse_policy(text, "empty.yaml")


def test_a_gate_cannot_stand_twice():
    twice = ONE + ONE[ONE.index("  - name") :]
    with pytest.raises(UsageError, match="Toolcall stands twice"):
        parse_policy(twice, "twice.yaml")


_NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,20}", fullmatch=True)
_CATEGORIES = st.text(min_size=1, max_size=30).filter(lambda text: text.isprintable() and text == text.strip())


def _points(low: int, high: int) -> st.SearchStrategy[str]:
    return st.decimals(low, high, places=3).map(str)


@st.composite
def _rules(draw: st.DrawFn) -> dict[str, object]:
    packs = {"packs": draw(st.lists(_NAMES, min_size=1, max_size=3, unique=True))}
    category = draw(st.one_of(st.just({}), _CATEGORIES.map(lambda text: {"category": text})))
    return draw(
        st.one_of(
            _points(1, 100).map(lambda n: {"floor": packs | category | {"at_least": n}}),
            _points(0, 99).map(lambda n: {"drop": packs | category | {"at_most": n}}),
            _points(0, 100).map(lambda n: {"gain": packs | {"at_least": n}}),
        )
    )


@given(name=_NAMES, rules=st.lists(_rules(), min_size=1, max_size=4))
def test_a_policy_read_back_from_its_canonical_bytes_is_the_same(name: str, rules: list[dict[str, object]]):
    drawn = json.dumps({"name": name, "gates": [{"name": "G", "rules": rules}]}, ensure_ascii=False)
    policy = parse_policy(drawn, "drawn")
    again = parse_policy(policy.to_bytes().decode(), "again")
    assert again.to_bytes() == policy.to_bytes()
    assert explain(again) == explain(policy)


@given(st.decimals(0, 100, places=4))
def test_a_number_is_written_in_one_way_and_exactly(number: Decimal):
    assert Decimal(plain(number)) == number
    assert plain(number) == plain(number * Decimal("1.00"))
    assert "E" not in plain(number)


def test_the_policy_for_quality_needs_no_baseline(project: Path):
    policy = parse_policy((project / "policies" / "quality.yaml").read_text(), "quality.yaml")
    assert policy.compared() == ()
    assert explain(policy) == [
        "Code: humaneval-plus must score at least 75",
        "Knowledge: mmlu must score at least 40",
    ]


def test_the_policy_for_a_release_compares_the_items_of_every_public_set(project: Path):
    policy = parse_policy((project / "policies" / "release.yaml").read_text(), "release.yaml")
    rules = [rule for gate in policy.gates for rule in gate.rules]
    assert all(rule.paired is not None for rule in rules)
    assert set(policy.compared()) == {"humaneval-plus", "mmlu", "toolcall", "gsm8k"} == set(policy.rank_by or ())
    assert "What is not decided is asked again, up to 3 runs in all" in explain(policy)
