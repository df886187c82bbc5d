"""The answer's text, white space at its ends aside, is the expected text, and nothing was called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator

from gates.strict_yaml import Strict
from stages.common.grading import items
from stages.common.grading.answers import Answer
from stages.common.grading.items import Grade, Text

VERSION = 1


def can_be_given(answer: str) -> str:
    """
    Raises:
        ValueError: no answer is ever equal to this text.
    """
    if answer != answer.strip():
        raise ValueError("an answer has no white space at its ends: it could never be given")
    return answer


class Expected(Strict):
    answer: Annotated[Text, AfterValidator(can_be_given)]


class Item(items.Item):
    expected: Expected


def grade(item: Item, answers: Sequence[Answer], results: Mapping[str, Any]) -> Grade:  # noqa: ARG001
    return Grade(float(says(answers[-1], item.expected.answer)))


def says(answer: Answer, text: str) -> bool:
    return not answer.calls and answer.content.strip() == text
