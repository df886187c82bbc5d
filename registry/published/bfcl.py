"""Berkeley Function Calling Leaderboard: simple (Python), multiple, parallel, and irrelevance.

Questions and possible answers are JSON lines in files of their own: BFCL_v4_simple_python.json and
possible_answer/BFCL_v4_simple_python.json as published, or simple_python.json and simple_python.answers.json.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from registry.published import Json, text

CATEGORIES = ("simple", "multiple", "parallel", "irrelevance")
_FILE = re.compile(
    r"(?P<folder>(?:.*/)?possible_answer/|(?:.*/)?)(?:BFCL_v(?P<version>\d+)_)?"
    r"(?P<category>simple|multiple|parallel|irrelevance)(?:_python)?(?P<answers>\.answers)?\.jsonl?"
)
_ID = re.compile(r"(simple|multiple|parallel|irrelevance)(?:_python)?_\d+")
_TYPES = {"dict": "object", "float": "number", "tuple": "array", "any": None}
_NOT_IN_A_NAME = re.compile(r"[^A-Za-z0-9_-]")
_LONGEST_NAME = 64


def chosen(names: Iterable[str], config: str | None, split: str) -> list[str]:  # noqa: ARG001 - the set has neither
    """Of each category the newest version's questions, and their answers where they have some."""
    newest: dict[tuple[str, bool], tuple[int, str]] = {}
    for name in names:
        if match := _FILE.fullmatch(name):
            answers = bool(match["answers"]) or match["folder"].endswith("possible_answer/")
            key = (match["category"], answers)
            newest[key] = max(newest.get(key, (-1, "")), (int(match["version"] or 0), name))
    return [newest[key][1] for key in sorted(newest)]


def joined(files: Mapping[str, list[Json]]) -> list[Json]:
    """Each question with its answers."""
    answers: dict[str, Any] = {}
    questions: list[Json] = []
    for rows in files.values():
        for row in rows:
            if "question" in row:
                questions.append(row)
            else:
                answers[text(row, "id")] = row["ground_truth"]
    found = [
        {**row, "ground_truth": answers.get(row["id"], row.get("ground_truth", []))}
        for row in sorted(questions, key=lambda row: CATEGORIES.index(_category(row)))
    ]
    if missing := [name for name in CATEGORIES if name not in set(map(_category, found))]:
        raise ValueError(f"there are no questions of the category {', '.join(missing)}")
    if lost := answers.keys() - {row["id"] for row in found}:
        raise ValueError(f"there are answers without a question, such as {min(lost)}")
    return found


def item(row: Json, number: int) -> Json:  # noqa: ARG001 - questions have names of their own
    category, functions = _category(row), row["function"]
    (messages,) = row["question"]  # more than one are the turns of other categories
    tools = [_tool(function) for function in functions]
    offered = [tool["function"]["name"] for tool in tools]
    if len(set(offered)) != len(offered):
        raise ValueError("two functions have the same name")
    calls = [_answer(answer, offered) for answer in row["ground_truth"]]
    if (category == "irrelevance") is bool(calls):
        raise ValueError(f"{len(calls)} calls are expected in the category {category}")
    return {
        "id": row["id"],
        "category": category,
        "messages": [{"role": text(each, "role"), "content": text(each, "content")} for each in messages],
        "tools": tools,
        "expected": {"calls": calls},
    }


def offered_name(name: str) -> str:
    """What a function is called among the tools of a chat, where a name may hold no point."""
    return _NOT_IN_A_NAME.sub("_", name)


def schema(given: Json) -> Json:
    """A parameter in JSON Schema: BFCL names some types as Python does. A type that may be any is left out."""
    made = dict(given)
    if (kind := given.get("type")) in _TYPES:
        made.pop("type")
        if _TYPES[kind]:
            made["type"] = _TYPES[kind]
    if "properties" in given:
        made["properties"] = {name: schema(each) for name, each in given["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(given.get(key), dict):
            made[key] = schema(given[key])
    return made


def _category(row: Json) -> str:
    match = _ID.fullmatch(text(row, "id"))
    if match is None:
        raise ValueError(f"the id {row['id']!r} is of none of the categories {', '.join(CATEGORIES)}")
    return match[1]


def _tool(function: Json) -> Json:
    name = offered_name(text(function, "name"))
    if len(name) > _LONGEST_NAME:
        raise ValueError(f"the name {name} is too long for a tool")
    described = {"name": name, "description": function["description"], "parameters": schema(function["parameters"])}
    return {"type": "function", "function": described}


def _answer(answer: Json, offered: list[str]) -> Json:
    """Of each argument the values that are right; "" among them says that it may be left out."""
    ((name, arguments),) = answer.items()
    if offered_name(name) not in offered:
        raise ValueError(f"the function {name} is expected and not offered")
    if not isinstance(arguments, dict) or not all(isinstance(each, list) for each in arguments.values()):
        raise ValueError(f"the arguments of {name} are no lists of possible values")
    return {"name": offered_name(name), "arguments": arguments}
