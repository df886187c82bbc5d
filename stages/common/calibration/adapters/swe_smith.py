"""SWE-bench/SWE-smith-trajectories, split `tool`: an agent at work in a repository, its tool calls and their results.

{messages, instance_id, resolved, model, traj_id, patch}; messages are JSON text: [{role, content, tool_calls?, …}],
content text or parts of text, tool calls as OpenAI's API writes them, with arguments as JSON text.
"""

from __future__ import annotations

from typing import Any

from stages.common.calibration.adapters.fields import Drift, Row, call, listed, present, text


def to_chat(row: Row) -> Row:
    messages = enumerate(listed(row, "messages"))
    return {"messages": [_message(message, f"messages[{number}].") for number, message in messages]}


def _message(message: Any, path: str) -> Row:
    made: Row = {"role": text(message, "role", path=path)}
    content = _content(message.get("content"), path)
    if content is not None:
        made["content"] = content
    calls = message.get("tool_calls") or []
    if not isinstance(calls, list):
        raise Drift(f"{path}tool_calls", "must be a list")
    if calls:
        made["tool_calls"] = [
            call(present(each, "function", path=f"{path}tool_calls[{number}]."), f"{path}tool_calls[{number}].function")
            for number, each in enumerate(calls)
        ]
    return made


def _content(content: Any, path: str) -> str | None:
    """Text as it is, parts of text one after the other."""
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise Drift(f"{path}content", "must be text or a list of texts")
    return "".join(text(part, "text", path=f"{path}content[{number}].") for number, part in enumerate(content))
