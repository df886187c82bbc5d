"""Conversations as ShareGPT writes them, with tools as Hermes does: what traces of Hermes agents are published in.

{conversations: [{from: system | human | gpt | tool, value}], tools?, …}. A call stands in the text of its turn, as
<tool_call>{"name": …, "arguments": {…}}</tool_call>, and its result in <tool_response>; `tools` is a list or JSON text.
"""

from __future__ import annotations

import re
from typing import Any

from stages.common.calibration.adapters.fields import Drift, Row, call, listed, parsed, spoken, text

_ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "tool": "tool",
}
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)
_RESPONSE = re.compile(r"</?tool_response>")


def to_chat(row: Row) -> Row:
    messages = [_message(turn, f"conversations[{number}].") for number, turn in enumerate(listed(row, "conversations"))]
    return {"messages": messages} | ({"tools": listed(row, "tools")} if row.get("tools") else {})


def _message(turn: Any, path: str) -> Row:
    speaker, value = text(turn, "from", path=path), text(turn, "value", path=path)
    if speaker not in _ROLES:
        raise Drift(f"{path}from", f"must be one of {', '.join(_ROLES)}, and is {speaker!r}")
    role = _ROLES[speaker]
    if role == "tool":
        return {"role": role, "content": _RESPONSE.sub("", value).strip()}
    if role != "assistant":
        return {"role": role, "content": value}
    calls = [call(parsed(each, f"{path}value"), f"{path}value") for each in _CALL.findall(value)]
    made = spoken(_CALL.sub("", value).strip() if calls else value)
    if not calls:
        return made
    return {key: value for key, value in made.items() if value} | {"tool_calls": calls}
