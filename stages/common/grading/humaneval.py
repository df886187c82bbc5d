"""The function that the answer writes gives what the reference solution gives, on every input. Both are executed.

Results are compared outside of the verifier, as evalplus compares them: equal as Python has it (2 and 2.0 are), or,
where the problem has a tolerance or a float is wanted (10⁻⁶), of the same type and as near as that. Where a problem has
more than one right result (find_zero), the result itself is looked at. What the prompt gives beside the function
(imports, helpers) need not be repeated.
"""

from __future__ import annotations

import ast
import json
import math
import re
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from gates.strict_yaml import Strict
from stages.common.execution import Execution, Result, Returned, decode, same
from stages.common.grading import items
from stages.common.grading.answers import Answer
from stages.common.grading.fences import blocks
from stages.common.grading.items import Grade, Text

VERSION = 2

_FLOAT_TOLERANCE = 1e-6
_RELATIVE = 1e-7


def _are_calls(text: str) -> str:
    calls = json.loads(text)
    if not isinstance(calls, list) or not all(isinstance(call, list) for call in calls):
        raise ValueError("write a list of lists of arguments, in JSON")
    return text


Calls = Annotated[Text, AfterValidator(_are_calls)]
"""Of each call its arguments, as JSON text: 1.0 and large numbers would not survive in a record."""


class Expected(Strict):
    entry: Text
    """The function's name."""
    prompt: Text
    """What the model was shown: imports, perhaps helpers, and the function's beginning."""
    solution: Text
    base: Calls
    plus: Calls
    tolerance: Annotated[float, Field(ge=0)] = 0.0
    result: Literal["same", "root"] = "same"
    """What is wanted of a result: that of the solution, or a root of the polynomial with these coefficients."""


class Item(items.Item):
    expected: Expected

    @property
    def calls(self) -> tuple[tuple[Any, ...], ...]:
        """The arguments of every call, base inputs first."""
        return tuple(tuple(call) for part in (self.expected.base, self.expected.plus) for call in json.loads(part))


def executions(item: Item, answers: Sequence[Answer]) -> tuple[Execution, ...]:
    program = written(answers[-1].content, item.expected)
    if program is None:
        return ()
    asked = _execution(item, program)
    return (asked,) if item.expected.result == "root" else (_execution(item, item.expected.solution), asked)


def grade(item: Item, answers: Sequence[Answer], results: Mapping[str, Result]) -> Grade:
    program = written(answers[-1].content, item.expected)
    if program is None:
        return Grade(0, detail=f"no function {item.expected.entry} in the answer")
    result = results[_execution(item, program).digest]
    if result.outcome != "done":
        return Grade(0, detail=result.detail)
    if item.expected.result == "root":
        wanted: Sequence[Any] = result.values
    else:
        reference = results[_execution(item, item.expected.solution).digest]
        if reference.outcome != "done":
            return Grade(0, detail=f"the reference solution: {reference.detail}")
        wanted = reference.values
    right = [_right(item, *each) for each in zip(item.calls, result.values, wanted, strict=True)]
    return Grade(float(all(right)), detail=_said(right, len(json.loads(item.expected.base))))


def written(text: str, expected: Expected) -> str | None:
    """The program of an answer: the last block that defines the function, or the text itself; None if neither does."""
    codes = (textwrap.dedent(block.code) for block in reversed(blocks(text)))
    code = next((code for code in codes if _defines(code, expected.entry)), None)
    if code is None or not _is_python(code):
        code = _bare(text, expected.entry) or code
    if code is None:
        return None
    future = _FUTURE.findall(code)  # which must stand first
    return "\n".join([*future, _given(expected), _FUTURE.sub("", code)])


_FUTURE = re.compile(r"^from __future__ import .*$", re.MULTILINE)
_CODE = re.compile(r"(?:from|import|def|class|async)\b|@")
_MARKS = re.compile(r"(?:`{3,}|~{3,})[ \t]*(?:python3?\b|py\b)?[ \t]*", re.IGNORECASE)
_ATTEMPTS = 20


def _execution(item: Item, code: str) -> Execution:
    return Execution("python", code, item.expected.entry, item.calls)


def _defines(code: str, entry: str) -> bool:
    return re.search(rf"^(?:async\s+)?def\s+{entry}\b|^{entry}\s*(?::[^=\n]*)?=", code, re.MULTILINE) is not None


def _bare(text: str, entry: str) -> str | None:
    """The code in a text whatever its fences: from a line that looks like code as far as Python can read it."""
    text = textwrap.dedent(_MARKS.sub("\n", text.replace("\u00a0", " ")))
    lines = text.split("\n")
    start, end = 0, len(lines)
    for _ in range(_ATTEMPTS):
        start = next((number for number in range(start, len(lines)) if _CODE.match(lines[number])), len(lines))
        code = "\n".join(lines[start:end])
        wrong = _unread(code)
        if wrong is None and _defines(code, entry):
            return code
        if wrong is None:
            start, end = max(start + 1, end), len(lines)
        elif wrong == 0:
            start, end = start + 1, len(lines)
        else:
            end = start + wrong
    return None


def _is_python(code: str) -> bool:
    return _unread(code) is None


def _unread(code: str) -> int | None:
    """The index of the line at which Python cannot read on; None if it reads all."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a model's code is warned of is nobody's business here
            ast.parse(code)
    except SyntaxError as error:
        return max((error.lineno or 1) - 1, 0)
    except (ValueError, RecursionError, MemoryError):
        return 0
    return None


def _given(expected: Expected) -> str:
    """The part of the prompt before the function: what it imports, and helpers."""
    lines = expected.prompt.split("\n")
    start = re.compile(rf"(?:async\s+)?def\s+{expected.entry}\b")
    end = next((number for number, line in enumerate(lines) if start.match(line)), 0)
    return "\n".join(lines[:end])


def _right(item: Item, call: tuple[Any, ...], got: Any, wanted: Any) -> bool:
    if not isinstance(got, Returned) or not isinstance(wanted, Returned):
        return False
    value = decode(got.value)
    if item.expected.result == "root":
        return _is_root(value, call[0], item.expected.tolerance)
    return _agree(value, decode(wanted.value), item.expected.tolerance)


def _is_root(value: Any, coefficients: list[float], tolerance: float) -> bool:
    if type(value) not in (int, float):
        return False
    try:
        return abs(sum(factor * math.pow(value, power) for power, factor in enumerate(coefficients))) <= tolerance
    except (OverflowError, ValueError):
        return False


def _agree(value: Any, wanted: Any, tolerance: float) -> bool:
    if value == wanted or same(value, wanted):
        return True
    floats = list(wanted) if isinstance(wanted, list | tuple) else [wanted]
    tolerance = tolerance or (_FLOAT_TOLERANCE if all(isinstance(each, float) for each in floats) else 0)
    return tolerance > 0 and type(value) is type(wanted) and _near(value, wanted, tolerance)


def _near(value: Any, wanted: Any, tolerance: float) -> bool:
    if isinstance(value, list | tuple) and isinstance(wanted, list | tuple):
        return len(value) == len(wanted) and all(
            _near(one, other, tolerance) for one, other in zip(value, wanted, strict=True)
        )
    if not all(isinstance(each, int | float) for each in (value, wanted)):
        return bool(value == wanted)
    try:
        return bool(value == wanted or abs(value - wanted) <= tolerance + _RELATIVE * abs(wanted))
    except OverflowError:
        return False


def _said(right: list[bool], base: int) -> str:
    """How many inputs went wrong, of the base ones and of the others."""
    parts = [("base", right[:base]), ("further", right[base:])]
    return "; ".join(f"{each.count(False)} of {len(each)} {name} inputs wrong" for name, each in parts if each)
