"""A short program has one bug or none: .35 for naming it, .40 for mending it, .25 for leaving the rest alone.

The answer is asked for in a form (the system message of packs/bugfind-15/items.yaml says it to the model):

    VERDICT: BUG | NO BUG
    LINE: the faulty line, copied
    WHY: an explanation
    ```the whole corrected program```

Naming: .20 for the line (one that the item accepts, and no innocent one beside it), .15 more for a cause that speaks of
what it must; a list of the usual bugs is no cause. Mending: the program (the last fenced block that defines the entry
function) gives every expected result in the verifier. Leaving alone counts for a mended program only: it differs from
the one shown in no more statements than the item allows, and every name outside the faulty lines is still there.
Comments, docstrings and layout are free.

Where the program is right, .40 are for saying so, .25 for showing no code but its own, .35 for the cause; but nothing
if one of its functions is written otherwise. A verdict that does not fit, or none, or two that differ, earns nothing.
Of a conversation with follow-ups the last answer counts.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from gates.strict_yaml import Strict
from stages.common.execution import Execution, Result, Returned, decode, same
from stages.common.execution.records import Language
from stages.common.grading import items
from stages.common.grading.answers import Answer, Message, with_user
from stages.common.grading.fences import Block, blocks, parts
from stages.common.grading.items import Grade, Text
from stages.common.grading.programs import changed_statements, lost_names, squeezed
from stages.common.grading.wording import Pattern, loosely, says

VERSION = 2

LINE, CAUSE, MENDED, RESTRAINT = 20, 15, 40, 25
"""Hundredths of a point."""
LONGEST = 1 << 16
"""Characters; a longer program is not executed."""
EXPLAINED = 2000
"""Characters of an explanation that are read: one or two sentences are asked for."""


class Called(Strict):
    """A call of the entry function, and what a right program gives."""

    given: list[Any]
    gives: Any


class Expected(Strict):
    """What is known of the program shown; without `lines` it is right as it stands."""

    language: Language
    entry: Text
    calls: Annotated[list[Called], Field(min_length=2)]
    """Of a right program, too: the pack's test holds it against them."""
    cause: Pattern
    """What an explanation speaks of, read loosely (wording.py)."""
    lines: tuple[Text, ...] = ()
    """Lines of the program; naming any of them, or several, names the bug."""
    statements: Annotated[int, Field(ge=0)] = 0
    """The most statements that may differ."""


class Item(items.Item):
    expected: Expected
    follow_ups: tuple[Text, ...] = ()
    """What the user says after each answer but the last, whatever it was."""

    @property
    def program(self) -> str:
        """The program as it is shown: the first fenced block of the first question."""
        return blocks(self.messages[-1]["content"])[0].code

    @model_validator(mode="after")
    def _can_be_graded(self) -> Self:
        content = self.messages[-1].get("content")
        if not isinstance(content, str) or len(blocks(content)) != 1:
            raise ValueError("messages: the last shows the program in one fenced block")
        known = [squeezed(line) for line in self.program.split("\n")]
        for line in self.expected.lines:
            if known.count(squeezed(line)) != 1:
                raise ValueError(f"expected.lines: the program holds {line!r} {known.count(squeezed(line))} times")
        if bool(self.expected.lines) != bool(self.expected.statements):
            raise ValueError("expected: lines and statements belong together")
        return self


def reply(item: Item, answers: Sequence[Answer]) -> list[Message] | None:
    told = len(answers) - 1
    return with_user(answers, item.follow_ups[told]) if told < len(item.follow_ups) else None


def executions(item: Item, answers: Sequence[Answer]) -> tuple[Execution, ...]:
    mended = _mended(item.expected, _read(answers[-1].content))
    return () if mended is None else (_execution(item.expected, mended),)


def grade(item: Item, answers: Sequence[Answer], results: Mapping[str, Result]) -> Grade:
    claim = _read(answers[-1].content)
    if claim.bug is None:
        return Grade(0, detail="no verdict")
    if claim.bug != bool(item.expected.lines):
        return Grade(0, detail="there is a bug" if item.expected.lines else "there is no bug")
    return _named_and_mended(item, claim, results) if claim.bug else _left_alone(item, claim)


@dataclass(frozen=True, slots=True)
class _Claim:
    """An answer by its sections; `bug` is None where there is no clear verdict."""

    bug: bool | None
    lines: tuple[str, ...] = ()
    """What is said to be faulty, and what is shown in a fence there."""
    why: str = ""
    codes: tuple[str, ...] = ()


def _read(content: str) -> _Claim:
    """The sections of an answer, however decorated; what stands in fences may be the faulty line, too."""
    texts: dict[str, list[str]] = {"VERDICT": [], "LINE": [], "WHY": []}
    codes: list[tuple[str, str]] = []
    label = ""
    for part in _parts(content):
        if isinstance(part, Block):
            if part.code.strip():
                codes.append((label, part.code))
            continue
        for line in part.split("\n"):
            if found := _LABEL.match(line):
                label, line = found["label"].upper(), line[found.end() :]
                texts[label].append("")
            if label:
                texts[label][-1] += f"{line}\n"
    verdicts = {_verdict(text) for text in texts["VERDICT"]}
    lines = ("\n".join(texts["LINE"]), "\n".join(code for label, code in codes[:-1] if label == "LINE"))
    verdict = verdicts.pop() if len(verdicts) == 1 else None
    return _Claim(verdict, lines, "\n".join(texts["WHY"])[:EXPLAINED], tuple(code for _, code in codes))


def _parts(content: str) -> Iterator[str | Block]:
    """As `parts`; the form itself, or the whole answer, may stand in a fence."""
    for part in parts(content):
        if isinstance(part, Block) and _FORM.match(part.code):
            yield from parts(part.code)
        else:
            yield part


_FORM = re.compile(r"[\s*_]*VERDICT[\s*_]*[:\uff1a]", re.IGNORECASE)
_LABEL = re.compile(r"[\s>#*_`\-\d.)]*(?P<label>VERDICT|LINE|WHY)(?:\s*\d+)?[\s*_`]*[:\uff1a]", re.IGNORECASE)
_VERDICT = re.compile(r"[\W_]*(?:(?P<none>NO[\s_-]*BUGS?|BUG[\s_-]*FREE)|BUG)(?![A-Z])", re.IGNORECASE)


def _verdict(text: str) -> bool | None:
    found = _VERDICT.match(text)
    return None if found is None else found["none"] is None


def _mended(expected: Expected, claim: _Claim) -> str | None:
    """The corrected program, if there is one; a block behind it may show how it is called."""
    if not claim.bug or not expected.lines:
        return None
    whole = [code for code in claim.codes if expected.entry in _DEFINED.findall(code)]
    (code,) = (whole or claim.codes or ("",))[-1:]
    return code if 0 < len(code) <= LONGEST else None


_DEFINED = re.compile(r"^(?:export\s+)?(?:async\s+)?(?:def|function|const|let|var)\s+([\w$]+)", re.MULTILINE)


def _named_and_mended(item: Item, claim: _Claim, results: Mapping[str, Result]) -> Grade:
    expected, lost, points = item.expected, [], 0
    if _names_the_line(expected.lines, item.program, claim.lines):
        points += LINE
        if _explains(expected.cause, claim.why):
            points += CAUSE
        else:
            lost.append("the cause is not named")
    else:
        lost.append("the line is not named")
    fault = _fault(expected, claim, results)
    if fault:
        return Grade(points / 100, detail="; ".join([*lost, fault]))
    points += MENDED
    waste = _waste(item, _mended(expected, claim) or "")
    points += 0 if waste else RESTRAINT
    return Grade(points / 100, detail="; ".join([*lost, *waste]))


def _left_alone(item: Item, claim: _Claim) -> Grade:
    own, known = set(_DEFINED.findall(item.program)), {"", *map(squeezed, item.program.split("\n"))}
    others = [code for code in claim.codes if any(squeezed(line) not in known for line in code.split("\n"))]
    if any(own & set(_DEFINED.findall(code)) for code in others):
        return Grade(0, detail="another program is shown, though there is no bug")
    lost, points = [], MENDED
    if others:
        lost.append("code is shown")
    else:
        points += RESTRAINT
    if _explains(item.expected.cause, claim.why):
        points += LINE + CAUSE
    else:
        lost.append("why it is right is not said")
    return Grade(points / 100, detail="; ".join(lost))


def _explains(cause: str, why: str) -> bool:
    """Whether the cause is spoken of, and not among so many others that it is a guess."""
    return says(cause, why) and len(set(_USUAL.findall(loosely(why).lower()))) <= _GUESSES


_GUESSES = 3
_USUAL = re.compile(
    "off[- ]by[- ]one|mutable default|late binding|missing await|missing return|operator precedence|integer division"
    "|rounding|shared reference|alias|lexicographic|string comparison|indentation|race condition|coercion|infinite loop"
    "|overflow|out of bounds|division by zero|uninitiali[sz]ed|syntax error|memory leak|null|type error|edge case"
)
"""What bugs are usually put down to."""


def _names_the_line(accepted: Sequence[str], program: str, named: Sequence[str]) -> bool:
    """Whether all that the first text with a quotation quotes of the program is of the accepted lines."""
    found = next((found for text in named if (found := _quoted(program, text))), set())
    return bool(found) and found <= {squeezed(line) for line in accepted}


def _quoted(program: str, named: str) -> set[str]:
    """The program's lines that are quoted: whole lines if there are any, else parts."""
    known = [text for line in program.split("\n") if (text := squeezed(line))]
    quoted = [text for quote in _quotes(named) if (text := squeezed(quote))]
    whole = {text for text in quoted if text in known}
    part = {line for line in known for text in quoted if len(text) >= _LEAST and text in line}
    around = {line for line in known for text in quoted if len(line) >= _LEAST and line in text}
    return whole or part or around


_LEAST = 8
"""Letters of a quotation that is not a whole line; fewer could be anywhere."""
_NUMBER = re.compile(r"[\s>*-]*(?:(?:line|l)?\s*\d+\s*[:|.)-]+)?", re.IGNORECASE)


def _quotes(named: str) -> list[str]:
    """What may be meant in each line: itself, itself without a number before it, and what is in backticks."""
    found = []
    for line in named.split("\n"):
        bare = line[_NUMBER.match(line).end() :]  # type: ignore[union-attr]  # it matches nothing, too
        found += [line, line.strip().strip("`*"), bare, bare.strip().strip("`*"), *_TICKED.findall(line)]
    return found


_TICKED = re.compile(r"(?<!`)`++([^`]++)`+")  # begun at a run's first alone: a model may repeat them without end


def _execution(expected: Expected, program: str) -> Execution:
    return Execution(expected.language, program, expected.entry, tuple(tuple(call.given) for call in expected.calls))


def _fault(expected: Expected, claim: _Claim, results: Mapping[str, Result]) -> str:
    """What is wrong with the corrected program; "" where every call gave what it should."""
    mended = _mended(expected, claim)
    if mended is None:
        return "no corrected program"
    result = results[_execution(expected, mended).digest]
    if result.outcome != "done":
        return f"the corrected program did not run: {result.detail}"
    right = sum(
        isinstance(value, Returned) and same(decode(value.value), call.gives)
        for call, value in zip(expected.calls, result.values, strict=True)
    )
    total = len(expected.calls)
    return "" if right == total else f"the corrected program is right for {right} of {total} inputs"


def _waste(item: Item, mended: str) -> list[str]:
    """What was changed without need, in a program that does what it should."""
    expected, found = item.expected, []
    changed = changed_statements(expected.language, item.program, mended)
    if changed > expected.statements:
        found.append(f"{changed} statements changed, {expected.statements} at most were needed")
    if lost := lost_names(expected.language, item.program, mended, besides=expected.lines):
        found.append(f"names are gone: {', '.join(lost[:3])}")
    return found
