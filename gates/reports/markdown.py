"""One verdict, as Markdown for a CI job summary or a pull request."""

from __future__ import annotations

import re

from gates.records import Verdict
from gates.reports.building import deciding

_LONGEST = 600
_MARKS = {
    "passed": "✅ passed",
    "failed": "❌ failed",
    "not judged": "❔ not judged",
    "undecided": "❔ undecided",
    "waived": "☑️ waived",
}


def markdown(verdict: Verdict, *, candidate: str | None = None, baseline: str | None = None) -> str:
    """The verdict, what decided it, and every rule.

    Text that comes from outside (names, categories, conditions) is shown as it is and does nothing: no markup, no
    mention, no link.

    Args:
        candidate: what people call it; the beginning of its digest, if nothing is said. `baseline` likewise.
    """
    title = f"## {_inert(candidate or verdict.candidate[:12])}: {_inert(verdict.verdict)}"
    against = "none" if verdict.baseline is None else _inert(baseline or verdict.baseline[:12])
    lines = [title, "", *_deciding(verdict), *_table(verdict), *_reasons(verdict)]
    lines.append(
        f"Policy {_inert(verdict.policy_name)} (`{verdict.policy[:12]}`), baseline: {against}. "
        f"Judged from {len(verdict.evidence)} evidence records of the candidate and "
        f"{len(verdict.baseline_evidence)} of the baseline."
    )
    return "\n".join(lines) + "\n"


def _deciding(verdict: Verdict) -> list[str]:
    rule = deciding(verdict)
    return [] if rule is None else [f"**Decided by:** {_inert(rule.detail)}", ""]


def _table(verdict: Verdict) -> list[str]:
    if not verdict.gates:
        return []
    rows = [
        f"| {_inert(gate.gate)} | {_inert(rule.rule)} | {_MARKS[rule.status]} | {_inert(rule.detail)} |"
        for gate in verdict.gates
        for rule in gate.rules
    ]
    return ["| Gate | Rule | Result | Found |", "|---|---|---|---|", *rows, ""]


def _reasons(verdict: Verdict) -> list[str]:
    if not verdict.reasons:
        return []
    title = "**Why it is invalid:**" if verdict.verdict == "Invalid" else "**To know:**"
    return [title, "", *(f"- {_inert(reason)}" for reason in verdict.reasons), ""]


_MARKUP = re.compile(r"[\\`*_{}\[\]<>#!|~$^@&\"=]|:(?! |$)|(?<=www)\.", re.IGNORECASE)


def _inert(text: str) -> str:
    """`text` on one line, with every character that Markdown, HTML or a forge could act on made a mere character.

    Entities are decoded after the structure is read, so they cannot make any. A word joiner after @ and # keeps forges,
    which look for mentions in the finished page, from finding one.
    """
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    text = text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
    inert = _MARKUP.sub(lambda found: f"&#{ord(found[0])};" + ("\u2060" if found[0] in "@#" else ""), text)
    # A dash or a number at the beginning would open a list.
    return f"&#{ord(inert[0])};{inert[1:]}" if inert[:1] in set("-+0123456789") else inert
