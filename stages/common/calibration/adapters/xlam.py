"""Salesforce/xlam-function-calling-60k: a request, the tools on offer, and the calls that serve it.

{id, query, tools, answers}, the last two as JSON text: tools [{name, description, parameters: {name: {type,
description, default?}}}], answers [{name, arguments}]. Types are Python's words, such as "List[int], optional".
"""

from __future__ import annotations

from typing import Any

from stages.common.calibration.adapters.fields import Drift, Row, call, listed, present, text

_TYPES = {
    "str": "string",
    "string": "string",
    "int": "integer",
    "integer": "integer",
    "float": "number",
    "number": "number",
    "bool": "boolean",
    "boolean": "boolean",
    "list": "array",
    "array": "array",
    "tuple": "array",
    "set": "array",
    "dict": "object",
    "object": "object",
}


def to_chat(row: Row) -> Row:
    tools = [_tool(tool, f"tools[{number}]") for number, tool in enumerate(listed(row, "tools"))]
    calls = [call(answer, f"answers[{number}]") for number, answer in enumerate(listed(row, "answers"))]
    return {
        "messages": [{"role": "user", "content": text(row, "query")}, {"role": "assistant", "tool_calls": calls}],
        "tools": tools,
    }


def _tool(tool: Any, field: str) -> Row:
    parameters = present(tool, "parameters", path=f"{field}.")
    if not isinstance(parameters, dict):
        raise Drift(f"{field}.parameters", "must be an object")
    properties, required = {}, []
    for name, stated in parameters.items():
        if not isinstance(stated, dict):
            raise Drift(f"{field}.parameters.{name}", "must be an object")
        kind = text(stated, "type", path=f"{field}.parameters.{name}.")
        properties[name] = _typed(kind) | {key: stated[key] for key in ("description", "default") if key in stated}
        if "optional" not in kind.lower() and "default" not in stated:
            required.append(name)
    function = {
        "name": text(tool, "name", path=f"{field}."),
        "description": tool.get("description") or "",
        "parameters": {"type": "object", "properties": properties, "required": required},
    }
    return {"type": "function", "function": function}


def _typed(kind: str) -> Row:
    """A Python type in JSON Schema's words; one that has none there is left open."""
    plain = kind.partition(",")[0].strip().lower()
    plain = plain.removeprefix("optional[").rstrip("]") if plain.startswith("optional[") else plain
    found = _TYPES.get(plain.partition("[")[0])
    return {"type": found} if found else {}
