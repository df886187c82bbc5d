"""Instructions about form: the share of an item's constraints (checks.py) that an answer meets.

An item says what an answer has to be `about`. One that is not (an empty one, a refusal, another task's) meets nothing,
and neither does one that calls a tool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import Field

from gates.strict_yaml import Strict
from stages.common.grading import items
from stages.common.grading.answers import Answer
from stages.common.grading.checks import Check, met
from stages.common.grading.items import Grade
from stages.common.grading.wording import Pattern, says

VERSION = 2


class Expected(Strict):
    about: Annotated[list[Pattern], Field(min_length=1)]
    """What is found in every answer to the task, read loosely (wording.py)."""
    constraints: Annotated[list[Check], Field(min_length=1)]


class Item(items.Item):
    expected: Expected


def grade(item: Item, answers: Sequence[Answer], results: Mapping[str, Any]) -> Grade:  # noqa: ARG001 - nothing is run
    answer = answers[-1]
    expected = item.expected
    if answer.calls or not all(says(pattern, answer.content) for pattern in expected.about):
        return Grade(0, detail="the answer is not about what was asked for")
    missed = [each for each in expected.constraints if not met(each, answer.content)]
    count = len(expected.constraints)
    return Grade((count - len(missed)) / count, detail=", ".join(_named(each) for each in missed))


def _named(constraint: Check) -> str:
    return constraint.check + (f" (line {constraint.line})" if constraint.line is not None else "")
