from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from gates.records import GateResult, RuleResult, Verdict
from gates.reports.markdown import deciding, markdown

HOSTILE = [
    "a | b |",
    "`rm -rf` ``x``",
    "@everyone and a@b.example",
    "<script>alert(1)</script>",
    "<!-- hidden",
    "line\n\n# a heading\n| a | table |",
    "[text](http://evil.example) ![i](x)",
    "http://evil.example www.evil.example",
    "**bold** _it_ ~~gone~~",
    "\x1b[31mred\x1b[0m\x00\u202e",
    "&lt;script&gt; &#64;all",
    "\\| \\` trailing \\",
    "#1 !2 $x$ :tada:",
    "- item\n1. one\n> quote\n---",
    "\u2028x\u2029y\x0bz\x0c",
    "x" * 100_000,
]


def verdict(text: str, *, name: str = "FailToolcall", status: str = "failed") -> Verdict:
    rule = RuleResult(rule=text, status=status, detail=text, value=1, limit=2)
    return Verdict(
        format=1,
        verdict=name,
        candidate="c" * 64,
        baseline="b" * 64,
        policy="0" * 64,
        policy_name="toy",
        evidence=("1" * 64,),
        baseline_evidence=("2" * 64,),
        gates=(GateResult(gate=text, status=status, rules=(rule,)),),
        reasons=(text,),
    )


def _flat(tokens: list[Token]) -> list[Token]:
    return [each for token in tokens for each in (token, *_flat(token.children or []))]


def rendered(text: str) -> list[Token]:
    """As a forge would read it: tables, raw HTML and bare links on."""
    return _flat(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text))


def structure(text: str) -> list[str]:
    return [token.type for token in rendered(text) if token.type != "text"]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_text_from_outside_is_shown_and_does_nothing(hostile: str):
    calm = markdown(verdict("calm"), candidate="v7b", baseline="toy")
    report = markdown(verdict(hostile), candidate=hostile, baseline=hostile)
    assert structure(report) == structure(calm)
    shown = "".join(token.content for token in rendered(report) if token.type == "text")
    assert all(character.isprintable() for character in shown.replace("\u2060", ""))
    assert "@everyone" not in shown
    assert "www." not in report
    assert "://" not in report
    assert len(report) < 20_000


@given(st.text(alphabet=st.sampled_from("|`<>@#*_[](){}!\\~&;:$\"'=-+.\n\r\t ax1\x1b\u2028"), max_size=40))
def test_no_text_changes_the_structure_of_a_report(text: str):
    if text.strip():
        assert structure(markdown(verdict(text + "x"))) == structure(markdown(verdict("calm")))


@given(st.text(alphabet=st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=40))
def test_what_was_said_can_be_read(text: str):
    shown = [token.content for token in rendered(markdown(verdict(text))) if token.type == "text"]
    assert text in [each.replace("\u2060", "") for each in shown]


def test_a_report_says_verdict_deciding_rule_and_what_it_rests_on():
    report = markdown(verdict("tools may drop"), candidate="v7a", baseline="toy")
    for words in ("## v7a: FailToolcall", "**Decided by:** tools may drop", "❌ failed", "baseline: toy", "Policy toy"):
        assert words in report


def test_the_first_failure_decides_and_else_what_could_not_be_judged():
    def rule(name: str, status: str) -> RuleResult:
        return RuleResult(rule=name, status=status, detail="")

    def decided(*rules: RuleResult) -> str | None:
        made = verdict("x").model_copy(update={"gates": (GateResult(gate="G", status="passed", rules=rules),)})
        found = deciding(made)
        return found.rule if found else None

    assert decided(rule("a", "not judged"), rule("b", "failed"), rule("c", "failed")) == "b"
    assert decided(rule("a", "passed"), rule("b", "not judged")) == "b"
    assert decided(rule("a", "passed")) is None


def test_an_invalid_verdict_says_why():
    made = verdict("the rows differ", name="Invalid").model_copy(update={"gates": ()})
    report = markdown(made)
    assert "**Why it is invalid:**" in report
    assert "- the rows differ" in report
    assert "| Gate |" not in report
