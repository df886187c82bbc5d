"""Bytes from a stage, as whole lines."""

from __future__ import annotations

from collections.abc import Callable

_LONGEST = 1 << 20
"""Bytes. What is longer is handed on in parts: a stage that never ends its line must not fill the memory."""


class Lines:
    """Hands on each line as it is complete; of a line that was written over and over (`\\r`), what stood there last."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self.fed = 0
        """Bytes."""
        self._rest = b""

    def feed(self, data: bytes) -> None:
        self.fed += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        for line in whole:
            self._hand_on(line)
        if len(self._rest) > _LONGEST:
            self.end()

    def end(self) -> None:
        """There is no more: what is left is a line too."""
        if self._rest:
            self._hand_on(self._rest)
        self._rest = b""

    def _hand_on(self, line: bytes) -> None:
        self._say(line.rstrip(b"\r").rpartition(b"\r")[2].decode(errors="replace"))
