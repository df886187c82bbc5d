"""One tool was called, by the right name and, where arguments are expected, with exactly those.

They are JSON values of JSON types: 1, 1.0, "1" and true are four things. An item may expect a plain answer instead,
which is then graded as exact-text is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import AfterValidator, model_validator

from gates.strict_yaml import Strict
from stages.common.grading import exact_text, items
from stages.common.grading.answers import Answer, same
from stages.common.grading.items import Grade, Json, Text

VERSION = 1


class Expected(Strict):
    """Either a text, or a tool's name and perhaps its arguments."""

    answer: Annotated[Text, AfterValidator(exact_text.can_be_given)] | None = None
    name: Text | None = None
    arguments: Json | None = None

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.answer is None) == (self.name is None):
            raise ValueError("give an answer, or the name of a tool")
        if self.name is None and self.arguments is not None:
            raise ValueError("arguments belong to the name of a tool")
        return self


class Item(items.Item):
    expected: Expected

    @model_validator(mode="after")
    def _can_be_answered(self) -> Self:
        if self.expected.name is not None and not self.tools:
            raise ValueError("tools: a call is expected, but no tool is offered")
        return self


def grade(item: Item, answers: Sequence[Answer], results: Mapping[str, Any]) -> Grade:  # noqa: ARG001
    return Grade(float(_right(item.expected, answers[-1])))


def _right(expected: Expected, answer: Answer) -> bool:
    if expected.answer is not None:
        return exact_text.says(answer, expected.answer)
    if len(answer.calls) != 1:
        return False
    (call,) = answer.calls
    if call.name != expected.name:
        return False
    return expected.arguments is None or same(call.value, expected.arguments)
