"""What has been answered so far, a JSON line per item, so that a run that was killed asks only what is missing."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

Key = tuple[str, int]
"""An item's id and the number of the repeat."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`response` is what is kept of the server's response; None if that cannot be kept as JSON."""

    item: str
    repeat: int
    response: dict[str, Any] | None
    seconds: float

    @property
    def key(self) -> Key:
        return self.item, self.repeat


class Journal:
    """The answers in one file. What follows a torn line is dropped, and asked again.

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
        line = {"item": answer.item, "repeat": answer.repeat, "response": answer.response, "seconds": answer.seconds}
        self._file.write(json.dumps(line).encode() + b"\n")
        self._file.flush()
        self.answers[answer.key] = answer


def _read(line: bytes) -> Answer | None:
    try:
        return Answer(**json.loads(line)) if line.endswith(b"\n") else None
    except (ValueError, TypeError):
        return None
