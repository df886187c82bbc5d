"""JUnit's XML, as a CI reads it: a failure says that the candidate is worse, an error that nobody knows."""

from __future__ import annotations

from xml.etree import ElementTree as Xml

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gates.records import GateResult, RuleResult, Verdict
from gates.reports import Report, Subject, render
from tests.support import reports


def _report(
    *statuses: str, gate: str = "failed", name: str = "FailG", text: str = "x", reasons: tuple[str, ...] = ()
) -> Report:
    rules = tuple(RuleResult(rule=text, status=status, detail=text) for status in statuses)
    verdict = Verdict(
        format=1,
        verdict=name,
        candidate="c" * 64,
        baseline=None,
        policy="0" * 64,
        policy_name="toy",
        evidence=(),
        baseline_evidence=(),
        gates=(GateResult(gate="G", status=gate, rules=rules),) if statuses else (),
        reasons=reasons,
    )
    return Report(
        format=1,
        verdict=verdict,
        verdict_digest="7" * 64,
        subject=Subject(candidate=text),
        decided_by=None,
        packs=(),
        flips=(),
        flips_left_out=0,
        conditions=(),
    )


def _parsed(report: Report) -> Xml.Element:
    return Xml.fromstring(render(report, "junit"))  # noqa: S314 - our own bytes


def _found(report: Report) -> list[str]:
    """What each test case is."""
    tags = [[child.tag for child in case if child.tag != "system-out"] for case in _parsed(report).iter("testcase")]
    return [tag[0] if tag else "passed" for tag in tags]


def test_a_failed_rule_is_a_failure_and_what_nobody_knows_an_error():
    found = _report("passed", "failed", "not judged", "undecided")
    assert _found(found) == ["passed", "failure", "error", "error"]
    suite = _parsed(found).find("testsuite")
    assert suite is not None
    assert [suite.get(key) for key in ("tests", "failures", "errors", "skipped")] == ["4", "1", "2", "0"]


def test_what_a_person_let_pass_is_skipped_with_the_reason():
    found = _report(
        "passed", "undecided", gate="waived", name="Pass", reasons=("G: let pass by kim until 2026-12-31: seen",)
    )
    assert _found(found) == ["passed", "skipped"]
    assert "let pass by kim" in render(found, "junit").decode()


@pytest.mark.parametrize("name", ["Invalid", "Inconclusive"])
def test_where_nothing_was_judged_there_is_an_error_and_never_a_green_suite(name: str):
    assert _found(_report(name=name, reasons=("the rows differ",))) == ["error"]


def test_a_case_is_named_after_its_gate_and_rule_and_says_what_was_found():
    (_, failed, *_) = _parsed(reports.report()).iter("testcase")
    assert failed.get("classname") == "agentic.Toolcall"
    failure = failed.find("failure")
    assert failure is not None
    assert (failure.get("type"), failure.text) == (
        "FailToolcall",
        "toolcall, Parameter Precision: 75.0 (at least 90); decided by 3 of 20 items, 1 run",
    )


@given(st.text(max_size=30))
def test_any_text_is_well_formed_xml(text: str):
    parsed = _parsed(_report("failed", text=text, reasons=(text,)))
    assert len(list(parsed.iter("testcase"))) == 1


def test_markup_and_escapes_are_text():
    (case,) = _parsed(_report("failed", text='<x a="]]>">\x1b[31m&')).iter("testcase")
    assert case.get("name") == '<x a="]]>">\\x1b[31m&'
