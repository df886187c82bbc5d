"""From generated text to the parts of a chat message, as vLLM 0.32 does it: the parsers `qwen3` and `hermes`.

transformers has a parser too (`tokenizer.parse_response`), which raises on malformed JSON in a call and takes text
without `</think>` for content. Evidence must not depend on the engine in such cases, so vLLM's rules are followed here:

    reasoning   what stands before the first `</think>` or `<tool_call>`; if neither comes, everything is reasoning;
                tags in the wrong place are dropped; with thinking off, everything is content
    tool calls  the JSON in each `<tool_call>`, the last one closed or not; if any of them is malformed, none is a call
                and the text stays in content
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any

_END_OF_REASONING = re.compile(r"</think>|(?=<tool_call>)")
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>|<tool_call>(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Parsers:
    """Which parsers are on. None leaves the tags in the text, as a server does whose flag was forgotten."""

    reasoning: str | None = "qwen3"
    tools: str | None = "hermes"


@dataclass(frozen=True, slots=True)
class Parsed:
    """The parts of an answer. `calls` are (name, arguments as JSON text)."""

    reasoning: str | None
    content: str | None
    calls: tuple[tuple[str, str], ...]


def parse(text: str, parsers: Parsers, *, thinking: bool, tools: bool) -> Parsed:
    """
    Args:
        text: what the model wrote, without its end-of-turn token.
        thinking: whether the request left thinking on.
        tools: whether the request offered tools; without them nothing is taken for a call.
    """
    reasoning, content = _split(text, thinking) if parsers.reasoning else (None, text)
    calls: tuple[tuple[str, str], ...] = ()
    if parsers.tools and tools:
        content, calls = _extract(content)
    if (reasoning or calls) and not content.strip():
        return Parsed(reasoning or None, None, calls)
    return Parsed(reasoning or None, content, calls)


def _split(text: str, thinking: bool) -> tuple[str | None, str]:
    """(reasoning, content). The opening tag may be missing: some templates write it into the prompt."""
    if not thinking:
        return None, text
    end = _END_OF_REASONING.search(text)
    reasoning, content = (text[: end.start()], text[end.end() :]) if end else (text, "")
    return reasoning.replace("<think>", ""), content.replace("</think>", "")


def _extract(content: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """(the text before the first call, the calls)."""
    found = [closed or unclosed for closed, unclosed in _CALL.findall(content)]
    try:
        calls = tuple(_call(json.loads(text)) for text in found)
    except (ValueError, KeyError, TypeError, RecursionError):
        return content, ()
    return content.partition("<tool_call>")[0] if calls else content, calls


def _call(value: dict[str, Any]) -> tuple[str, str]:
    name, arguments = value["name"], json.dumps(value["arguments"], ensure_ascii=False)
    if not isinstance(name, str):
        raise TypeError(f"a tool's name is text, not {name!r}")
    (name + arguments).encode()  # half of a surrogate pair cannot be sent: malformed, a ValueError
    return name, arguments
