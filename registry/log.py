"""Who did what and when: a chain of small files, one for each change, never rewritten.

Entry n+1 holds the digest of entry n, so that a changed or missing entry breaks the chain. An entry is created
exclusively and complete; of two writers at once one takes the number and the other the next. (That the newest entries
were removed cannot be seen from the chain alone.)
"""

from __future__ import annotations

import getpass
import os
import platform
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from gates import canonical
from gates.errors import IntegrityError
from gates.records import Digest, Record
from registry import fs
from registry.layout import numbered

_NUMBERED = re.compile(r"(\d{8})\.json")


class Entry(Record):
    """One change. What it was about stands in further fields, which differ from event to event."""

    seq: int = Field(ge=1)
    previous: Digest | None
    time: str
    user: str
    host: str
    event: str

    @property
    def about(self) -> dict[str, Any]:
        """The further fields."""
        return dict(self.model_extra or {})


@dataclass(frozen=True, slots=True)
class Log:
    folder: Path

    def append(self, event: str, **about: Any) -> int:
        """Writes an entry, durably, and gives its number."""
        while True:
            number = self._append_after(self._last(), event, about)
            if number:
                return number

    def follow(
        self, event: str, key: dict[str, Any], following: Callable[[dict[str, Any] | None], dict[str, Any] | None]
    ) -> None:
        """Appends what is missing after the newest entry of `event` about `key`, exactly once whoever else tries.

        Args:
            key: fields that the entries have, such as {"channel": "best"}; they are part of what is appended.
            following: given the newest such entry's fields (None: there is none), the fields of the entry that must
                follow, or None if nothing is missing. It is asked again until it says so.
        """
        while True:
            last = self._last()
            about = following(self._newest(last, event, key))
            if about is None:
                return
            self._append_after(last, event, key | about)

    def newest(self, event: str, **key: Any) -> dict[str, Any] | None:
        """The further fields of the newest entry of `event` about `key`."""
        return self._newest(self._last(), event, key)

    def entries(self) -> Iterator[Entry]:
        """All entries, the oldest first."""
        for number in numbers(self.folder):
            yield self._read(number)[0]

    def verify(self) -> int:
        """Reads the whole chain and gives the number of entries.

        Raises:
            IntegrityError: the first entry that is missing, changed or out of place.
        """
        previous, expected = None, 1
        for number in numbers(self.folder):
            if number != expected:
                raise self._broken(expected, "it is missing")
            entry, data = self._read(number)
            if entry.seq != number:
                raise self._broken(number, f"it says that it is number {entry.seq}")
            if entry.previous != previous:
                raise self._broken(number, "it does not follow from the entry before, or that one was changed")
            previous, expected = canonical.digest(data), number + 1
        return expected - 1

    def _append_after(self, last: int, event: str, about: dict[str, Any]) -> int | None:
        """The number of the new entry, or None if somebody else took it."""
        previous = canonical.digest(self._bytes(last)) if last else None
        entry = Entry.model_validate(about | signature() | {"seq": last + 1, "previous": previous, "event": event})
        try:
            fs.write_new(self._path(entry.seq), entry.to_bytes())
        except FileExistsError:
            return None
        return entry.seq

    def _newest(self, last: int, event: str, key: dict[str, Any]) -> dict[str, Any] | None:
        """The newest entry of `event` with the fields of `key`, not after `last`."""
        sign = b'"event":' + canonical.dumps(event)  # reading a record takes longer than looking for its event
        for number in range(last, 0, -1):
            data = self._bytes(number)
            if sign not in data:
                continue
            entry = Entry.from_bytes(data, where=str(self._path(number)))
            if entry.event == event and key.items() <= entry.about.items():
                return entry.about
        return None

    def _last(self) -> int:
        return max(numbers(self.folder), default=0)

    def _read(self, number: int) -> tuple[Entry, bytes]:
        data = self._bytes(number)
        return Entry.from_bytes(data, where=str(self._path(number))), data

    def _bytes(self, number: int) -> bytes:
        try:
            return self._path(number).read_bytes()
        except (FileNotFoundError, IsADirectoryError):
            raise self._broken(number, "it is missing") from None

    def _path(self, number: int) -> Path:
        return self.folder / numbered(number)

    def _broken(self, number: int, reason: str) -> IntegrityError:
        return IntegrityError(
            f"the log is broken at entry {number}: {reason}",
            where=str(self._path(number)),
            remedy="restore this file from a backup; entries are never rewritten",
        )


def signature() -> dict[str, str]:
    """Who writes, where, and when (UTC, to the second)."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user often has no name
        user = str(os.getuid())
    time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"time": time, "user": user, "host": platform.node()}


def numbers(folder: Path) -> list[int]:
    """The numbers of the numbered records in `folder`, ascending; other names are passed over."""
    found = (_NUMBERED.fullmatch(name) for name in fs.entries(folder))
    return [int(match[1]) for match in found if match]
