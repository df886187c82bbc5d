"""HumanEval+: the beginning of a Python function, a solution, and inputs to compare it on.

As evalplus releases it in HumanEvalPlus.jsonl(.gz), with base_input, plus_input and atol; or as evalplus/humanevalplus
has it on the Hub, where the inputs stand in the text of `test` and the base inputs are not told apart.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any

from registry.published import Json, of_split, text

ROOT = "find_zero"
"""The one problem whose results differ among right solutions: evalplus looks whether the polynomial is 0 there."""
_ROOT_TOLERANCE = 1e-4
_TOLERANCE = re.compile(r"\bassertion\(.*,\s*([\d.e-]+)\)\s*$", re.MULTILINE)

ASKED = (
    "Complete this function. Answer with the whole function, and the imports that it needs, in one fenced block of "
    "Python code. It will be executed."
)


def chosen(names: Iterable[str], config: str | None, split: str) -> list[str]:
    names = list(names)
    released = [name for name in names if name.rpartition("/")[2].partition(".")[0] == "HumanEvalPlus"]
    return released[:1] or [name for name in names if of_split(name, config, split)]


def joined(files: Mapping[str, list[Json]]) -> list[Json]:
    return [row for rows in files.values() for row in rows]


def item(row: Json, number: int) -> Json:  # noqa: ARG001 - problems have names of their own
    prompt, entry = text(row, "prompt"), text(row, "entry_point")
    if not entry.isidentifier():
        raise ValueError("entry_point is no name")
    base, plus, tolerance = _inputs(row)
    if entry == ROOT:
        tolerance = tolerance or _ROOT_TOLERANCE
    return {
        "id": text(row, "task_id"),
        "category": "HumanEval+",
        "messages": [{"role": "user", "content": f"{ASKED}\n\n```python\n{prompt.strip()}\n```"}],
        "expected": {
            "entry": entry,
            "prompt": prompt,
            "solution": prompt + text(row, "canonical_solution"),
            "base": _written(base),
            "plus": _written(plus),
            "tolerance": tolerance,
            "result": "root" if entry == ROOT else "same",
        },
    }


def _inputs(row: Json) -> tuple[Any, Any, float]:
    """Base inputs, further ones, and how far floats may be apart."""
    if "base_input" in row:
        tolerance = row["atol"]
        if type(tolerance) not in (int, float) or not 0 <= tolerance < 1:
            raise ValueError("atol is no small number")
        return row["base_input"], row["plus_input"], float(tolerance)
    test = text(row, "test")
    stated = _TOLERANCE.findall(test)
    for node in ast.walk(ast.parse(test)):
        if isinstance(node, ast.Assign) and [ast.unparse(each) for each in node.targets] == ["inputs"]:
            return [], ast.literal_eval(node.value), float(stated[-1]) if stated else 0.0
    raise ValueError("there are no inputs in test")


def _written(calls: Any) -> str:
    """The arguments of calls as JSON text: a record would make 1 of 1.0, and refuse large numbers."""
    if not isinstance(calls, list) or not all(isinstance(call, list) for call in calls):
        raise ValueError("inputs are no lists of arguments")
    return json.dumps(calls, ensure_ascii=True, allow_nan=False)
