"""What has been answered so far, a JSON line per item, so that a run that was killed asks only what is missing."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from stages.common.execution import Result

Key = tuple[str, int]
"""An item's id and the number of the repeat."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A conversation about one item that is over, and what came of the code in it.

    `responses` are what is kept of the server's responses, in order; None stands for one that cannot be kept as JSON.
    `executions` are results of the verifier as plain JSON, by the digest of what was executed.
    """

    item: str
    repeat: int
    responses: tuple[Any, ...]
    seconds: float
    executions: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> Key:
        return self.item, self.repeat

    @property
    def tokens(self) -> int | None:
        """How many the model wrote, where the server says so."""
        counts = [_tokens(response) for response in self.responses]
        return sum(known) if (known := [count for count in counts if count is not None]) else None


class Journal:
    """The answers in one file; of two about the same, the later counts. What follows a torn line is dropped, and asked
    again.

    A context manager: it closes the file.
    """

    def __init__(self, path: Path) -> None:
        self.answers: dict[Key, Answer] = {}
        path.touch()
        whole = 0
        for line in path.read_bytes().splitlines(keepends=True):
            answer = _read(line)
            if answer is None:
                break
            self.answers[answer.key] = answer
            whole += len(line)
        self._file = path.open("r+b")
        self._file.truncate(whole)
        self._file.seek(whole)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, answer: Answer) -> None:
        line = {each.name: getattr(answer, each.name) for each in fields(answer)}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        self.answers[answer.key] = answer


def _read(line: bytes) -> Answer | None:
    try:
        value = json.loads(line) if line.endswith(b"\n") else None
        answer = Answer(**value | {"responses": tuple(value["responses"])})
        for result in answer.executions.values():
            Result.from_json(result)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    sound = type(answer.item) is str and type(answer.repeat) is int and type(answer.seconds) in (int, float)
    return answer if sound and answer.responses else None


def _tokens(response: Any) -> int | None:
    usage = response.get("usage") if isinstance(response, dict) else None
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) and not isinstance(count, bool) else None
