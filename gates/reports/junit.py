"""A verdict as JUnit's XML, which every CI shows: a test suite for the candidate, a test case for each rule.

A failed rule is a failure. What could not be judged is an error, and so is what the evidence does not decide: a failure
says that the candidate is worse, and neither says that. What a person let pass is skipped, with the reason. Invalid
evidence is one error.
"""

from __future__ import annotations

from collections.abc import Iterator
from xml.etree import ElementTree as Xml

from gates.records import GateResult, RuleResult, Verdict
from gates.reports.model import Report
from gates.reports.words import visible


def junit(report: Report) -> bytes:
    """One `<testsuites>` document, UTF-8."""
    verdict = report.verdict
    cases = list(_cases(verdict))
    counts = {
        "tests": str(len(cases)),
        "failures": str(sum(case.find("failure") is not None for case in cases)),
        "errors": str(sum(case.find("error") is not None for case in cases)),
        "skipped": str(sum(case.find("skipped") is not None for case in cases)),
    }
    name = f"{report.subject.candidate or verdict.candidate[:12]}: {verdict.verdict}"
    suite = Xml.Element("testsuite", {"name": _legal(name), **counts})
    _properties(suite, report)
    suite.extend(cases)
    output = Xml.SubElement(suite, "system-out")
    output.text = _legal("\n".join(verdict.reasons))
    suites = Xml.Element("testsuites", counts)
    suites.append(suite)
    Xml.indent(suites)
    return bytes(Xml.tostring(suites, encoding="utf-8", xml_declaration=True)) + b"\n"


def _properties(suite: Xml.Element, report: Report) -> None:
    verdict = report.verdict
    known = {
        "verdict": report.verdict_digest,
        "candidate": verdict.candidate,
        "baseline": verdict.baseline or "none",
        "policy": verdict.policy,
    }
    properties = Xml.SubElement(suite, "properties")
    for name, value in known.items():
        Xml.SubElement(properties, "property", {"name": name, "value": value})


def _cases(verdict: Verdict) -> Iterator[Xml.Element]:
    if verdict.verdict == "Invalid" or not verdict.gates:
        case = Xml.Element("testcase", {"classname": _legal(verdict.policy_name), "name": "evidence"})
        _say(case, "error", verdict.verdict, "; ".join(verdict.reasons) or "nothing was judged")
        yield case
    for gate in verdict.gates:
        for rule in gate.rules:
            yield _case(verdict, gate, rule)


def _case(verdict: Verdict, gate: GateResult, rule: RuleResult) -> Xml.Element:
    known = {"classname": _legal(f"{verdict.policy_name}.{gate.gate}"), "name": _legal(rule.rule)}
    case = Xml.Element("testcase", known)
    if rule.status == "passed":
        Xml.SubElement(case, "system-out").text = _legal(rule.detail)
    elif rule.status == "failed":
        _say(case, "failure", f"Fail{gate.gate}", rule.detail)
    elif gate.status == "waived":
        why = [reason for reason in verdict.reasons if reason.startswith(f"{gate.gate}: let pass")]
        _say(case, "skipped", None, "; ".join([*why, rule.detail]))
    else:
        _say(case, "error", rule.status, rule.detail)
    return case


def _say(case: Xml.Element, tag: str, kind: str | None, text: str) -> None:
    known = {"message": _legal(text)} | ({"type": _legal(kind)} if kind is not None else {})
    found = Xml.SubElement(case, tag, known)
    if tag != "skipped":
        found.text = _legal(text)


def _legal(text: str) -> str:
    """XML 1.0 has no form for most control characters; of what can be printed it lacks nothing."""
    return visible(text)
