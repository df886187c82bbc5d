"""Points for an answer, from the raw response of an OpenAI-compatible server. Pure: no I/O, no model.

Two graders:
    exact-text  the answer's text, white space at its ends aside, is the expected text, and nothing was called.
    tool-call   one tool was called, by the right name and, where arguments are expected, with exactly those: JSON
                values and JSON types (1, 1.0, "1" and true are four things). An item may expect a plain answer
                instead, which is then graded as exact-text.

An item is worth one point. An answer cut off by the limit on tokens scores 0 as `truncated`; a response that has not
the shape of a chat completion scores 0 as `model_error`. Whether the server answered at all is not decided here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal, get_args

from gates import canonical
from gates.records import Outcome

Grader = Literal["tool-call", "exact-text"]

VERSION = 1
"""To be raised whenever any answer would get other points than before: scores of two versions are not compared."""


@dataclass(frozen=True, slots=True)
class Expected:
    """What the right answer is: a text, or a call of the tool `name` (with any arguments where `arguments` is None)."""

    answer: str | None = None
    name: str | None = None
    arguments: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Grade:
    """`points` out of 1."""

    points: float
    outcome: Outcome


def grader_digest(grader: Grader) -> str:
    """What evidence records of the grader: its name and version."""
    return canonical.digest(canonical.dumps({"grader": grader, "version": VERSION}))


def grade(grader: Grader, expected: Expected, response: Any) -> Grade:
    """
    Args:
        response: the body of the server's answer, any JSON value.
    """
    answer = _read(response)
    if answer is None:
        return Grade(0, "model_error")
    if answer.truncated:
        return Grade(0, "truncated")
    return Grade(float(_right(grader, expected, answer)), "scored")


@dataclass(frozen=True, slots=True)
class _Call:
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class _Answer:
    content: str
    calls: tuple[_Call, ...]
    truncated: bool


def _read(response: Any) -> _Answer | None:
    """The first choice of a chat completion, or None if `response` is not one."""
    try:
        choice = response["choices"][0]
        message = choice["message"]
        content = message["content"]
        calls = tuple(
            _Call(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or ()
        )
        truncated = choice["finish_reason"] == "length"
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    texts = [text for call in calls for text in (call.name, call.arguments)]
    if not isinstance(content, str | None) or not all(isinstance(text, str) for text in texts):
        return None
    return _Answer(content or "", calls, truncated)


def _right(grader: Grader, expected: Expected, answer: _Answer) -> bool:
    if grader not in get_args(Grader):
        raise ValueError(f"no grader is called {grader!r}")
    if expected.answer is not None:
        return not answer.calls and answer.content.strip() == expected.answer
    if grader == "exact-text" or len(answer.calls) != 1:
        return False
    call = answer.calls[0]
    if call.name != expected.name:
        return False
    return expected.arguments is None or _same(_arguments(call.arguments), expected.arguments)


def _arguments(text: str) -> Any:
    """The JSON value of a call's arguments; malformed text (NaN and a key given twice too) equals nothing expected."""
    try:
        return json.loads(text, parse_constant=_refuse, object_pairs_hook=_unique)
    except (ValueError, RecursionError):
        return None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is given twice")
    return value


def _same(one: Any, other: Any) -> bool:
    """Equality of JSON values that tells 1, 1.0 and true apart; the order of keys means nothing."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
