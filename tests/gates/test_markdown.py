from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from gates.records import GateResult, RuleResult, Verdict
from gates.reports import Ancestor, Condition, Flip, PackResult, Part, Report, Subject, deciding, render
from tests.support import reports

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


def report(text: str, **about: str) -> Report:
    """A report in which everything that comes from outside says `text`."""
    part = Part(category=text, score=50, interval=(40, 60), items=10, runs=1)
    compared = part.model_copy(update={"baseline": 60, "difference": -10, "difference_interval": (-20, 0)})
    pack = PackResult(
        pack="tools",
        conditions="",
        whole=compared,
        categories=(compared, part),
        outcomes={"truncated": 2},
        flaky=(text,),
        not_compared=text,
    )
    return Report(
        format=1,
        verdict=verdict(text),
        verdict_digest="7" * 64,
        subject=Subject(
            lineage=(Ancestor(name=text, digest="c" * 64, op=text, settings={text: text}),),
            differences=(text,),
            conclusion=text,
            fit=text,
            cost=(text,),
            size=1,
            **about,
        ),
        decided_by=deciding(verdict(text)),
        packs=(pack,),
        flips=tuple(
            Flip(pack="tools", item=text, category=text, candidate=got, baseline=1 - got, candidate_says=text)
            for got in (0.0, 1.0)
        ),
        flips_left_out=3,
        conditions=(Condition(pack="tools", field=text, candidate=text, baseline=text, agrees=False),),
    )


def markdown(said: Report) -> str:
    return render(said, "md").decode()


def _flat(tokens: list[Token]) -> list[Token]:
    return [each for token in tokens for each in (token, *_flat(token.children or []))]


def rendered(text: str) -> list[Token]:
    """As a forge would read it: tables, raw HTML and bare links on."""
    return _flat(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).parse(text))


def structure(text: str) -> list[str]:
    return [token.type for token in rendered(text) if token.type != "text"]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_text_from_outside_is_shown_and_does_nothing(hostile: str):
    calm = markdown(report("calm", candidate="v7b", baseline="toy"))
    found = markdown(report(hostile, candidate=hostile, baseline=hostile))
    assert structure(found) == structure(calm)
    shown = "".join(token.content for token in rendered(found) if token.type == "text")
    assert all(character.isprintable() for character in shown.replace("\u2060", ""))
    assert "@everyone" not in shown
    assert "www." not in found
    assert "://" not in found
    assert len(found) < 60_000  # a forge takes 65,536 characters


@given(st.text(alphabet=st.sampled_from("|`<>@#*_[](){}!\\~&;:$\"'=-+.\n\r\t ax1\x1b\u2028"), max_size=40))
def test_no_text_changes_the_structure_of_a_report(text: str):
    if text.strip():
        assert structure(markdown(report(text + "x"))) == structure(markdown(report("calm")))


@given(st.text(alphabet=st.characters(exclude_categories=["C", "Z"]), min_size=1, max_size=40))
def test_what_was_said_can_be_read(text: str):
    shown = [token.content for token in rendered(markdown(report(text))) if token.type == "text"]
    assert text in [each.replace("\u2060", "") for each in shown]


def test_a_report_says_verdict_deciding_rule_what_changed_and_what_it_rests_on():
    found = markdown(reports.report())
    for words in (
        "## v7a: FailToolcall",
        "**Decided by:** toolcall: 75.0 against 91.7, down 16.7",
        "❌ failed",
        "❔ undecided",
        "28 items worse",
        "bugfind / item-007",
        "15 flaky",
        "instructfollow truncated 1",
        "the control that is missing",
        "21.0 GiB (baseline 25.0 GiB)",
        "baseline: v3",
        "Policy agentic",
    ):
        assert words in found


def test_a_pass_says_what_came_closest():
    said = reports.story(
        "name: p\ngates:\n  - name: G\n    rules:\n      - drop: {packs: [near, far], at_most: 5}\n",
        {"near": 56, "far": 90},
        {"near": 60, "far": 60},
    )
    assert said.verdict.verdict == "Pass"
    assert "**The closest call:** near: 56.0 against 60.0" in markdown(said)


def test_conditions_that_differ_are_named():
    found = markdown(reports.report(chat_template="9" * 64))
    assert "**Conditions that differ:**" in found
    assert "chat&#95;template" in found
    assert "Conditions that differ" not in markdown(reports.report())


def test_a_report_of_very_many_items_and_reasons_is_still_a_comment():
    said = reports.report()
    verdict = said.verdict.model_copy(update={"reasons": tuple(f"reason {number}" for number in range(5000))})
    many = said.model_copy(update={"verdict": verdict, "packs": said.packs * 100, "flips": said.flips * 100})
    assert len(markdown(many)) < 65_536


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
    found = markdown(report("x").model_copy(update={"verdict": made, "decided_by": None}))
    assert "**Why it is invalid:**" in found
    assert "- the rows differ" in found
    assert "| Gate |" not in found
