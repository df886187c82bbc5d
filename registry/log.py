"""Who did what and when: a chain of small files, one for each change, never rewritten.

Entry n+1 holds the digest of entry n, so that a changed or missing entry breaks the chain, and each holds a seal over
itself, so that damage to the newest shows too, before another entry follows from it. An entry is created exclusively
and complete; of two writers at once one takes the number and the other the next. (That the newest entries were removed
cannot be seen from the log alone; `registry.channels` sees it of promotions.)
"""

from __future__ import annotations

import getpass
import os
import platform
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from pydantic import Field

from gates import canonical
from gates.errors import IntegrityError
from gates.records import Digest, Record
from registry import fs
from registry.layout import numbered
from registry.plain import numbers

_RESTORE = "restore this file from a backup; entries are never rewritten"


class Entry(Record):
    """One change. What it was about stands in further fields, which differ from event to event."""

    seq: int = Field(ge=1)
    previous: Digest | None
    time: str
    user: str
    host: str
    event: str
    seal: Digest | None = None
    """The digest of the entry without this field. Entries of the first Sluices have none."""

    @classmethod
    def from_bytes(cls, data: bytes, *, where: str | None = None) -> Self:
        """
        Raises:
            IntegrityError: also if the entry is not what its seal says.
        """
        try:
            entry = super().from_bytes(data, where=where)
        except IntegrityError as error:
            error.remedy = _RESTORE
            raise
        if entry.seal is not None:
            whole = entry._digest_without("seal") == entry.seal
        else:  # one flipped bit in the seal's name must not make the entry one without a seal
            whole = all(value != entry._digest_without(name) for name, value in entry.about.items())
        if not whole:
            raise IntegrityError("this log entry was changed", where=where, remedy=_RESTORE)
        return entry

    def sealed(self) -> Entry:
        return self.model_copy(update={"seal": self._digest_without("seal")})

    def _digest_without(self, field: str) -> str:
        kept = self.model_dump(mode="json", exclude_unset=True, exclude={field})
        return canonical.digest(canonical.dumps(kept))

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

    def last_time(self) -> str | None:
        """When the newest entry was written (UTC); None of an empty log."""
        last = self._last()
        return self._read(last)[0].time if last else None

    def verify(self) -> int:
        """Reads the whole chain and gives the number of entries.

        Raises:
            IntegrityError: the first entry that is missing, changed or out of place.
        """
        previous, expected, sealed = None, 1, False
        for number in numbers(self.folder):
            if number != expected:
                raise self._broken(expected, "it is missing")
            entry, data = self._read(number)
            if entry.seq != number:
                raise self._broken(number, f"it says that it is number {entry.seq}")
            if entry.previous != previous:
                raise self._broken(number, "it does not follow from the entry before, or that one was changed")
            if sealed and entry.seal is None:
                raise self._broken(number, "it has no seal, though one before it has")
            previous, expected, sealed = canonical.digest(data), number + 1, entry.seal is not None
        return expected - 1

    def _append_after(self, last: int, event: str, about: dict[str, Any]) -> int | None:
        """The number of the new entry, or None if somebody else took it."""
        previous = canonical.digest(self._read(last)[1]) if last else None
        entry = Entry.model_validate(about | signature() | {"seq": last + 1, "previous": previous, "event": event})
        try:
            fs.write_new(self._path(entry.seq), entry.sealed().to_bytes())
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
            return fs.contents(self._path(number))
        except PermissionError:  # whose registry it is, not what is in it
            raise
        except OSError as error:
            reason = "it is missing" if isinstance(error, FileNotFoundError) else f"cannot read it: {error.strerror}"
            raise self._broken(number, reason) from None

    def _path(self, number: int) -> Path:
        return self.folder / numbered(number)

    def _broken(self, number: int, reason: str) -> IntegrityError:
        return IntegrityError(
            f"the log is broken at entry {number}: {reason}",
            where=str(self._path(number)),
            remedy=_RESTORE,
        )


def signature() -> dict[str, str]:
    """Who writes, where, and when (UTC, to the second)."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user often has no name
        user = str(os.getuid())
    time = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {"time": time, "user": user, "host": platform.node()}
