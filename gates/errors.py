"""Every error that Sluice raises on purpose, and the exit code each one ends with.

    SluiceError                 what is wrong, where, what to do
    ├── UsageError        2     bad input: a file, a field, an option, a name
    ├── InvalidEvidence   4     evidence or a server that cannot be trusted
    ├── IntegrityError    5     a digest that differs, a tensor that is missing
    └── BusyError         6     somebody else is at work there

A verdict is not an error: a failed gate ends with 1, an inconclusive one with 3 (`gates.records.exit_code`).
"""

from __future__ import annotations

from typing import ClassVar


class SluiceError(Exception):
    """Something a person can mend.

    Args:
        what: what is wrong, in one sentence.
        where: the file, and the field or line in it, if there is one.
        remedy: what to do about it.
    """

    exit_code: ClassVar[int] = 2

    def __init__(self, what: str, *, where: str | None = None, remedy: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __str__(self) -> str:
        lines = [self.what]
        if self.where:
            lines.append(f"  where: {self.where}")
        if self.remedy:
            lines.append(f"  to do: {self.remedy}")
        return "\n".join(lines)


class UsageError(SluiceError):
    exit_code: ClassVar[int] = 2


class InvalidEvidence(SluiceError):
    exit_code: ClassVar[int] = 4


class IntegrityError(SluiceError):
    exit_code: ClassVar[int] = 5


class BusyError(SluiceError):
    exit_code: ClassVar[int] = 6
