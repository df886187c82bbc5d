"""What makes a chat, as templates read it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

ROLES = ("system", "developer", "user", "assistant", "tool")


def faults(row: Any) -> Iterator[tuple[str, str]]:
    """What keeps a row from being a chat, as (field, what is wrong).

    An unknown key is a fault: tools under another name would be left out without a word, and the experts that serve
    them would be removed.
    """
    if not isinstance(row, dict):
        yield "the row", "not an object"
        return
    for key in sorted(row.keys() - {"messages", "tools"}):
        yield key, "unknown key"
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        yield "messages", "must be a list of at least one message"
        return
    for number, message in enumerate(messages):
        yield from _message(message, f"messages[{number}]")
    tools = row.get("tools")
    if tools is not None and not isinstance(tools, list):
        yield "tools", "must be a list"
        return
    for number, tool in enumerate(tools or []):
        if not isinstance(tool, dict):
            yield f"tools[{number}]", "not an object"


def _message(message: Any, field: str) -> Iterator[tuple[str, str]]:
    if not isinstance(message, dict):
        yield field, "not an object"
        return
    role, content, calls = message.get("role"), message.get("content"), message.get("tool_calls")
    if role not in ROLES:
        yield f"{field}.role", f"must be one of {', '.join(ROLES)}"
    for key in ("content", "reasoning_content"):
        if not isinstance(message.get(key), str | None):
            yield f"{field}.{key}", "must be text"
    if calls is not None and (not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls)):
        yield f"{field}.tool_calls", "must be a list of objects"
    if content is None and not calls:
        yield f"{field}.content", "missing, and there is no tool call in its place"
    # a tool may well have nothing to say
    if role != "tool" and not calls and not message.get("reasoning_content") and not str(content).strip():
        yield f"{field}.content", "empty"
