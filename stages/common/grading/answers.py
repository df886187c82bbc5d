"""What a raw response of an OpenAI-compatible server says, and how a conversation goes on after it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a tool; `text` is its arguments as they were written."""

    name: str
    text: str

    @property
    def value(self) -> Any:
        """The JSON value of the arguments; None where the text is malformed (NaN, and a key given twice, too)."""
        try:
            return JSON.decode(self.text)
        except (ValueError, RecursionError):
            return None

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments as a tool would get them: {} where they are malformed or no object."""
        value = self.value
        return value if isinstance(value, dict) else {}


@dataclass(frozen=True, slots=True)
class Answer:
    """One turn of the model's. `content` is without its reasoning, and "" where there is none."""

    content: str
    calls: tuple[Call, ...] = ()
    reasoning: str = ""
    truncated: bool = False


def read(response: Any) -> Answer | None:
    """The first choice of a chat completion, or None if `response` (any JSON value) is not one."""
    try:
        choice = response["choices"][0]
        message = choice["message"]
        content = message["content"]
        calls = tuple(
            Call(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or ()
        )
        truncated = choice["finish_reason"] == "length"
        # vLLM before 0.32 calls the field reasoning_content
        reasoning = message.get("reasoning") or message.get("reasoning_content") or ""
    except (KeyError, IndexError, TypeError, AttributeError):
        return None
    texts = [reasoning, *(text for call in calls for text in (call.name, call.text))]
    if not isinstance(content, str | None) or not all(isinstance(text, str) for text in texts):
        return None
    return Answer(content or "", calls, reasoning, truncated)


def with_results(answers: Sequence[Answer], results: Sequence[str]) -> list[Message]:
    """The assistant's last turn as the server should see it again, and the tools' answers to its calls.

    Args:
        answers: all turns so far.
        results: a text for each call of the last turn, in order. Without calls: none.
    """
    last, names = answers[-1], _call_ids(answers)
    told = [{"role": "tool", "tool_call_id": name, "content": text} for name, text in zip(names, results, strict=True)]
    return [_turn(last, names), *told]


def with_user(answers: Sequence[Answer], text: str) -> list[Message]:
    """The assistant's last turn as the server should see it again, and what the user says to it.

    Calls that it made are left out: nobody answered them, and a server refuses a call without an answer.
    """
    return [_turn(answers[-1], []), {"role": "user", "content": text}]


def same(one: Any, other: Any) -> bool:
    """Equality of JSON values that tells 1, 1.0, "1" and true apart; the order of keys means nothing."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def _turn(answer: Answer, names: list[str]) -> Message:
    """The reasoning is sent too: a template that leaves earlier reasoning out does so itself."""
    message: Message = {"role": "assistant", "content": answer.content}
    if answer.reasoning:
        message["reasoning"] = answer.reasoning
    if names:
        message["tool_calls"] = [
            {"id": name, "type": "function", "function": {"name": call.name, "arguments": _sent(call)}}
            for name, call in zip(names, answer.calls, strict=True)
        ]
    return message


def _sent(call: Call) -> str:
    """Malformed arguments go as {}, as the tool took them: a server refuses a chat with others. So do those that can be
    read and not be written again: 1e999, which no JSON can say, and what is nested to the end of what can be read."""
    try:
        return json.dumps(call.arguments, allow_nan=False)
    except (ValueError, RecursionError):
        return "{}"


def _call_ids(answers: Sequence[Answer]) -> list[str]:
    """Names of the last turn's calls: the server's own differ from run to run. Nine letters, as Mistral wants them."""
    return [f"call{len(answers):02d}{number:03d}" for number in range(len(answers[-1].calls))]


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key is given twice")
    return value


JSON = json.JSONDecoder(parse_constant=_refuse, object_pairs_hook=_unique)
"""Reads JSON as strictly as it is meant: NaN, and a key given twice, raise ValueError."""
