"""Executes a Python program and says what its calls returned, a line each. It is at the program's mercy: whatever the
program does to it can only make it say something else, and what it says is compared outside."""

from __future__ import annotations

import importlib.util
import json
import os
import random
import sys
import types
from typing import Any

_NAME = "answer"
_LONGEST_WORD = 100
_LONGEST_REASON = 300


def run(job: int, results: int, values_file: str, recursion: int) -> None:
    """Reads the job from the file `job`, writes to the file `results`, and ends the process."""
    spec = importlib.util.spec_from_file_location("values", values_file)
    values = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(values)
    with open(job, "rb") as file:
        told = json.loads(file.read())
    os.environ.clear()
    sys.argv = [_NAME]
    sys.path[:] = [place for place in sys.path if place != os.path.dirname(os.path.abspath(__file__))]
    random.seed(0)
    sys.setrecursionlimit(recursion)
    # bound now: the program may put others in their place, and would only spoil its own results
    write, leave, decode, encode, dumps = os.write, os._exit, values.decode, values.encode_result, values.dumps

    def say(line: Any) -> None:
        text = dumps(line).encode() + b"\n"
        while text:
            text = text[write(results, text) :]

    function, reason = _load(values.decode(told["code"]), told["entry"])
    if reason is not None:
        say({"failed": reason})
        leave(0)
    for call in told["calls"]:
        try:
            value = function(*[decode(argument) for argument in call])
        except BaseException as error:  # noqa: BLE001 - SystemExit too: the next call is made all the same
            say({"raised": _name(error)})
            continue
        try:
            encoded = encode(value)
        except BaseException as error:  # noqa: BLE001 - of values that fight being looked at, or when memory ran out
            encoded = {"strange": f"a value that could not be brought out: {_name(error)}"}
        say({"returned": encoded})
        del value, encoded
    leave(0)


def _load(code: str, entry: str) -> tuple[Any, str | None]:
    """The function, or why there is none."""
    module = types.ModuleType(_NAME)
    sys.modules[_NAME] = module
    try:
        exec(compile(code, "<answer>", "exec", dont_inherit=True), module.__dict__)  # noqa: S102 - this is what it is for
    except BaseException as error:  # noqa: BLE001
        return None, _reason(error)
    function = module.__dict__.get(entry)
    if not callable(function):
        return None, f"the program defines no function {entry}"
    return function, None


def _reason(error: BaseException) -> str:
    try:
        text = str(error)[:_LONGEST_REASON]
    except BaseException:  # noqa: BLE001 - an exception whose text is a program's too
        text = ""
    return f"{_name(error)}: {text}" if text else _name(error)


def _name(error: BaseException) -> str:
    name = str(type.__dict__["__name__"].__get__(type(error)))[:_LONGEST_WORD]
    return "".join(letter if letter.isprintable() else "?" for letter in name)
