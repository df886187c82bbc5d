"""A report as Markdown, for a CI job's summary or a pull request: short enough for either, and inert."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from gates import units
from gates.records import Status, Verdict
from gates.reports import words
from gates.reports.model import Flip, PackResult, Part, Report, Subject
from gates.wording import count

_LONGEST = 600
_MOST_ITEMS = 20
"""Names of items of one kind; a forge refuses a comment of more than 65,536 characters, and the pages have them all."""
_MOST_LINES = 100
_MARKS: dict[Status, str] = {
    "passed": "✅ passed",
    "failed": "❌ failed",
    "not judged": "❔ not judged",
    "undecided": "❔ undecided",
    "waived": "☑️ let pass",
}


def markdown(report: Report) -> bytes:
    """The verdict, what decided it, every rule; packs, items that changed, conditions that differ; origin and size.

    Text that comes from outside (names, categories, conditions) is shown as it is and does nothing: no markup, no
    mention, no link. Answers of models stand in the pages alone.
    """
    verdict, subject = report.verdict, report.subject
    lines = [
        f"## {inert(subject.candidate or verdict.candidate[:12])}: {inert(verdict.verdict)}",
        "",
        *_deciding(report),
        *_rules(verdict),
        *_reasons(verdict),
        *_packs(report.packs),
        *_flips(report),
        *_conditions(report),
        *_origin(subject),
        _rests_on(report),
    ]
    return ("\n".join(lines) + "\n").encode()


def _deciding(report: Report) -> Iterator[str]:
    if report.subject.stale:
        yield from ("**Stale:** the evidence has changed since. Judge again.", "")
    if report.decided_by is not None:
        yield from (f"**Decided by:** {inert(report.decided_by.detail)}", "")
    elif (nearest := words.closest(report.verdict)) is not None:
        yield from (f"**The closest call:** {inert(nearest.detail)}", "")


def _rules(verdict: Verdict) -> Iterator[str]:
    rows = [
        f"| {inert(gate.gate)} | {inert(rule.rule)} | {_MARKS[_status(gate.status, rule.status)]} "
        f"| {inert(rule.detail)} |"
        for gate in verdict.gates
        for rule in gate.rules
    ]
    yield from _table(("Gate", "Rule", "Result", "Found"), rows)


def _status(gate: Status, rule: Status) -> Status:
    """What is undecided in a gate that a person let pass was let pass."""
    return "waived" if gate == "waived" and rule == "undecided" else rule


def _reasons(verdict: Verdict) -> Iterator[str]:
    if verdict.reasons:
        yield from ("**Why it is invalid:**" if verdict.verdict == "Invalid" else "**To know:**", "")
        yield from _few([f"- {inert(reason)}" for reason in verdict.reasons])
        yield ""


def _packs(packs: Sequence[PackResult]) -> Iterator[str]:
    head = ("Pack", "Score", "Baseline", "Difference", "90 % interval", f"Items {words.TIMES} runs", "Detectable")
    rows = []
    for pack in packs:
        rows.append(_pack_row(inert(pack.pack), pack.whole))
        if len(pack.categories) > 1:
            rows += [_pack_row(f"{words.NOTHING} {inert(part.category or '')}", part) for part in pack.categories]
    yield from _table(head, rows)
    notes = [f"- {inert(pack.pack)} is not compared: {inert(pack.not_compared)}" for pack in packs if pack.not_compared]
    if notes:
        yield from (*notes, "")


def _pack_row(name: str, part: Part) -> str:
    compared = part.difference_interval is not None
    cells = (
        name,
        words.number(part.score),
        words.number(part.baseline),
        words.signed(part.difference),
        words.between(part.difference_interval if compared else part.interval, sign=compared),
        f"{part.items} {words.TIMES} {part.runs}",
        words.number(part.detectable),
    )
    return f"| {' | '.join(cells)} |"


def _flips(report: Report) -> Iterator[str]:
    lost = [flip for flip in report.flips if flip.lost]
    won = [flip for flip in report.flips if not flip.lost]
    for word, flips in (("worse", lost), ("better", won)):
        if flips:
            names = ", ".join(_flip(flip) for flip in flips[:_MOST_ITEMS])
            yield from (f"**{count(len(flips), 'item')} {word}:** {names}{_and_more(flips)}", "")
    if report.flips_left_out:
        yield from (f"{report.flips_left_out} more items changed.", "")
    flaky = [(pack.pack, item) for pack in report.packs for item in pack.flaky]
    if flaky:
        names = ", ".join(f"{inert(pack)} / {inert(item)}" for pack, item in flaky[:_MOST_ITEMS])
        yield from (f"**{len(flaky)} flaky:** {names}{_and_more(flaky)}", "")
    failures = [
        f"{inert(pack.pack)} {kind.replace('_', ' ')} {times}"
        for pack in report.packs
        for kind, times in pack.outcomes.items()
        if kind != "scored"
    ]
    if failures:
        yield from (f"**Answers that failed:** {', '.join(failures)}", "")


def _and_more(items: Sequence[object]) -> str:
    left = len(items) - _MOST_ITEMS
    return f" and {left} more" if left > 0 else ""


def _flip(flip: Flip) -> str:
    return f"{inert(flip.pack)} / {inert(flip.item)} ({words.share(flip.baseline)} → {words.share(flip.candidate)})"


def _conditions(report: Report) -> Iterator[str]:
    rows = [
        f"| {inert(each.pack)} | {inert(each.field)} | {inert(each.candidate)} | {inert(each.baseline)} |"
        for each in report.conditions
        if each.baseline is not None and not each.agrees
    ]
    if rows:
        yield from ("**Conditions that differ:**", "")
        yield from _table(("Pack", "Condition", "Candidate", "Baseline"), rows)


def _origin(subject: Subject) -> Iterator[str]:
    if subject.conclusion:
        yield from (f"**Against its baseline:** {inert(subject.conclusion)}", "")
    if subject.differences:
        yield from _few([f"- {inert(each)}" for each in subject.differences])
        yield ""
    for each in subject.training:
        yield from (f"**Training of {inert(each.of)}:** {inert(each.sentence)}", "")
    facts = []
    if subject.size is not None:
        against = "" if subject.baseline_size is None else f" (baseline {units.size(subject.baseline_size)})"
        facts.append(f"{units.size(subject.size)}{against}")
    facts += [inert(each) for each in (subject.fit, *subject.cost) if each]
    if facts:
        yield from (f"**Size and cost:** {'; '.join(facts)}", "")
    if subject.attachments:
        names = ", ".join(inert(each) for each in subject.attachments[:_MOST_ITEMS])
        yield from (f"**Kept beside the model:** {names}{_and_more(subject.attachments)}", "")


def _rests_on(report: Report) -> str:
    verdict = report.verdict
    against = "none" if verdict.baseline is None else inert(report.subject.baseline or verdict.baseline[:12])
    return (
        f"Policy {inert(verdict.policy_name)} (`{verdict.policy[:12]}`), baseline: {against}. "
        f"Judged from {len(verdict.evidence)} evidence records of the candidate and "
        f"{len(verdict.baseline_evidence)} of the baseline."
    )


def _table(head: Sequence[str], rows: Sequence[str]) -> Iterator[str]:
    if not rows:
        return
    yield f"| {' | '.join(head)} |"
    yield "|---" * len(head) + "|"
    yield from rows[:_MOST_LINES]
    yield ""
    if len(rows) > _MOST_LINES:
        yield from (f"… and {len(rows) - _MOST_LINES} more", "")


def _few(lines: Sequence[str]) -> list[str]:
    left = len(lines) - _MOST_LINES
    return [*lines[:_MOST_LINES], *([f"- … and {left} more"] if left > 0 else [])]


_MARKUP = re.compile(r"[\\`*_{}\[\]<>#!|~$^@&\"=]|:(?! |$)|(?<=www)\.", re.IGNORECASE)


def inert(text: str) -> str:
    """`text` on one line, with every character that Markdown, HTML or a forge could act on made a mere character.

    Entities are decoded after the structure is read, so they cannot make any. A word joiner after @ and # keeps forges,
    which look for mentions in the finished page, from finding one.
    """
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    text = text if len(text) <= _LONGEST else text[:_LONGEST] + "…"
    inert = _MARKUP.sub(lambda found: f"&#{ord(found[0])};" + ("\u2060" if found[0] in "@#" else ""), text)
    # A dash or a number at the beginning would open a list.
    return f"&#{ord(inert[0])};{inert[1:]}" if inert[:1] in set("-+0123456789") else inert
