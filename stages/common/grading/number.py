"""The number that an answer ends with is the one that is wanted, exactly.

Of an answer counts the first of these that it has: what stands behind #### last; the last \\boxed{…}; what stands
behind "answer is" or "answer:" last; the last number. Thousands may be set apart (1,234 or 1{,}234), and signs of
money, per cent and units may stand beside a number: 18, 18.00, $18 and 18 eggs are the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator

from gates.strict_yaml import Strict
from stages.common.grading import items
from stages.common.grading.answers import Answer
from stages.common.grading.items import Grade, Text

VERSION = 1


def _is_number(text: str) -> str:
    if not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", text):
        raise ValueError("write a number in digits, such as 18 or -0.5")
    return text


class Expected(Strict):
    """A text, since a decimal is exact and a float is not."""

    number: Annotated[Text, AfterValidator(_is_number)]


class Item(items.Item):
    expected: Expected


def grade(item: Item, answers: Sequence[Answer], results: Mapping[str, Any]) -> Grade:  # noqa: ARG001
    found = stated(answers[-1].content)
    if found is None:
        return Grade(0, detail="no number")
    right = found == Decimal(item.expected.number)
    return Grade(float(right), detail="" if right else f"{found:f} is not {item.expected.number}"[:200])


def stated(text: str) -> Decimal | None:
    """The number that the answer `text` ends with; None if there is none."""
    text = _plain(text)
    for found in (_HASHES.findall(text), _boxed(text), _SAID.findall(text)):
        part = re.sub(r"(?<=\d) (?=\d{3}(?!\d))", "", found[-1]) if found else ""  # 1 234
        if numbers := _numbers(part.rpartition("=")[2]) or _numbers(part):
            return numbers[0]
    numbers = _numbers(text)
    return numbers[-1] if numbers else None


def _boxed(text: str) -> list[str]:
    """What stands in the last \\boxed{…} of `text`, up to the brace that closes it."""
    start = max((match.end() for match in _BOXED.finditer(text)), default=None)
    if start is None:
        return []
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if not depth:
            return [text[start:end]]
    return [text[start:]]


def _plain(text: str) -> str:
    """`text` without emphasis, and with LaTeX's spaces, minus signs and separators as plain ones."""
    text = text.replace("{,}", ",").replace("\u2212", "-").replace("\u2013", "-")
    text = re.sub(r"(?<=\d)(?:\\[,!;: ]|[\u00a0\u2009\u202f])(?=\d{3}(?!\d))", "", text)
    return re.sub(r"[*_`]", "", text)


def _numbers(text: str) -> list[Decimal]:
    return [Decimal(re.sub(r"[^0-9.-]", "", match.group())) for match in _NUMBER.finditer(text)]


_HASHES = re.compile(r"####[ \t]*(.*)")
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_SAID = re.compile(r"\banswer\b(?:\s+(?:is|was)\b|\s*[:=])[:\s]*([^\n]*)", re.IGNORECASE)
_NUMBER = re.compile(
    r"(?<![\w^./])"  # not the 2 of m2, m^2, 1.2 or 1/2
    r"(?:-\s?)?+(?:\\?\$\s?)?+(?:(?<=\$)-)?+"
    r"(?:[0-9]{1,3}(?:,[0-9]{3})++(?![0-9])|[0-9]++)(?:\.[0-9]++)?+"
    r"(?!(?:st|nd|rd|th)\b)"  # no ordinal
    r"|(?<![\w^./])-?\.[0-9]++"
)
