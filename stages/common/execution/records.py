"""What is asked of the verifier, and what it answers. Expected answers are in neither."""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from gates import canonical
from gates.errors import UsageError
from stages.common.execution import values
from stages.common.execution.limits import REVISION

Language = Literal["python", "javascript"]
Outcome = Literal["done", "timeout", "failed"]

LARGEST_REQUEST = 1 << 25
"""Bytes of JSON that one execution may take."""
_DETAIL = 400
_IDENTIFIER = re.compile(r"[A-Za-z_$][A-Za-z0-9_$]*")


@dataclass(frozen=True, slots=True)
class Execution:
    """A program, and the calls of one of its functions.

    Attributes:
        code: the whole text of a module: what it does when it is loaded it does once, before the first call.
        entry: the function's name, at the module's top.
        calls: positional arguments of each call, plain values (`values.encode`). Each call gets fresh ones.

    Raises:
        UsageError: an argument is no plain value, or JavaScript has no form for it; or the whole is too large.
    """

    language: Language
    code: str
    entry: str
    calls: tuple[tuple[Any, ...], ...]
    _request: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.language not in get_args(Language):
            raise UsageError(f"no program can be written in {self.language!r}", where="an execution's language")
        if not _IDENTIFIER.fullmatch(self.entry) or (self.language == "python" and keyword.iskeyword(self.entry)):
            raise UsageError(f"{self.entry[:80]!r} is no name of a function", where="an execution's entry")
        calls = [[values.encode(value) for value in call] for call in self.calls]
        for number, call in enumerate(calls, 1):
            if not all(map(_FITS[self.language], call)):
                raise UsageError(
                    f"an argument of call {number} of {self.entry} has no plain value's form in {self.language}",
                    where="an execution's calls",
                )
        request = {
            "language": self.language,
            "code": values.encode(self.code) if len(self.code) <= values.LARGEST // 2 else None,
            "entry": self.entry,
            "calls": calls,
        }
        text = values.dumps(request).encode()
        if request["code"] is None or len(text) > LARGEST_REQUEST:
            raise UsageError("the program and its arguments are too large to be executed", where=self.entry)
        object.__setattr__(self, "_request", text)

    @property
    def request(self) -> bytes:
        """The execution as canonical JSON, in one line."""
        return self._request

    @property
    def digest(self) -> str:
        """What results are kept under: of the program and of what decides about it here, so that none which another
        version of the verifier came to is taken for a result of this one."""
        return canonical.digest(REVISION.encode() + self._request)

    @classmethod
    def from_request(cls, request: bytes) -> Execution:
        """
        Raises:
            ValueError: `request` is not what `request` gives, for any execution.
        """
        raw = values.loads(request.decode())
        if not isinstance(raw, dict) or raw.keys() != {"language", "code", "entry", "calls"}:
            raise ValueError("not an execution")
        calls, code, entry = values.decode(raw["calls"]), values.decode(raw["code"]), raw["entry"]
        listed = isinstance(calls, list) and all(isinstance(call, list) for call in calls)
        if not (listed and isinstance(code, str) and isinstance(entry, str)):
            raise ValueError("not an execution")
        try:
            return cls(raw["language"], code, entry, tuple(map(tuple, calls)))
        except UsageError as error:
            raise ValueError(str(error)) from None


@dataclass(frozen=True, slots=True)
class Returned:
    """A call that gave something back: `value` is what `values.encode_result` made of it; `values.decode` reads it."""

    value: Any


@dataclass(frozen=True, slots=True)
class Raised:
    """A call that raised; `type` is the exception's name, as the program would have it."""

    type: str


Value = Returned | Raised


@dataclass(frozen=True, slots=True)
class Result:
    """How an execution ended. What the program returned is its own word: only comparing it says whether it is right.

    Attributes:
        outcome: `done`: every call returned or raised. `timeout`: the time was used up. `failed`: anything else.
        values: one for each call if `done`; otherwise none.
        detail: what went wrong.
    """

    outcome: Outcome
    values: tuple[Value, ...] = ()
    detail: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "outcome": self.outcome,
            "values": [
                {"returned": each.value} if isinstance(each, Returned) else {"raised": each.type}
                for each in self.values
            ],
            "detail": self.detail,
        }

    @classmethod
    def from_json(cls, raw: Any) -> Result:
        """
        Raises:
            ValueError: `raw` is not what `to_json` gives, for any result.
        """
        if not isinstance(raw, Mapping) or raw.keys() != {"outcome", "values", "detail"}:
            raise ValueError("not a result")
        outcome, told, detail = raw["outcome"], raw["values"], raw["detail"]
        if outcome not in get_args(Outcome) or not isinstance(told, list) or not is_detail(detail):
            raise ValueError("not a result")
        if told and outcome != "done":
            raise ValueError("a result that is not done has no values")
        return cls(outcome, tuple(map(value_from_json, told)), detail)


def value_from_json(raw: Any) -> Value:
    """
    Raises:
        ValueError: `raw` is no call's value.
    """
    if isinstance(raw, dict) and raw.keys() == {"returned"}:
        values.decode(raw["returned"])
        return Returned(raw["returned"])
    if isinstance(raw, dict) and raw.keys() == {"raised"} and is_detail(raw["raised"]):
        return Raised(raw["raised"])
    raise ValueError("not a call's value")


def is_detail(text: Any) -> bool:
    """Whether `text` is one short line that can be shown as it is."""
    return isinstance(text, str) and len(text) <= _DETAIL and text.isprintable()


def detail(text: str) -> str:
    """`text` as one short line that can be shown as it is."""
    line = " ".join(text.split())
    line = "".join(letter if letter.isprintable() else "?" for letter in line)
    return line if len(line) <= _DETAIL else line[: _DETAIL - 1] + "…"


def _has_python_form(encoded: Any) -> bool:
    return not values.has_strange(encoded)


def _has_javascript_form(encoded: Any) -> bool:
    if isinstance(encoded, list):
        return all(map(_has_javascript_form, encoded))
    if not isinstance(encoded, dict):
        return True
    ((tag, content),) = encoded.items()
    if tag in ("tuple", "set"):
        return all(map(_has_javascript_form, content))
    if tag == "dict":
        return all(isinstance(key, str) and _has_javascript_form(value) for key, value in content)
    return tag in ("int", "float", "text")


_FITS = {"python": _has_python_form, "javascript": _has_javascript_form}
