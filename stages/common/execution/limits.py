"""What an execution may use. All of it is pinned, because what a program is worth must not depend on where it runs."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from gates import canonical

VERSION = 3
"""To be raised whenever any program could come to another result within the same limits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """
    Attributes:
        cpu: seconds of processor time, which other load on the machine does not shorten; decides what is a timeout.
        wall: seconds that may pass at most, for what sleeps or waits.
        memory: bytes of address space (of written memory for JavaScript, whose engine reserves much and uses little).
        printed: bytes of output. It is counted and thrown away.
        returned: bytes of results, as JSON.
        file: bytes of one file.
        disk: bytes of all files together, about.
        entries: files and folders.
        files: open files.
        recursion: Python's limit on nested calls, unless the program sets another.
    """

    cpu: int = 10
    wall: float = 40.0
    memory: int = 1 << 30
    printed: int = 1 << 24
    returned: int = 1 << 22
    file: int = 1 << 24
    disk: int = 1 << 27
    entries: int = 8000
    files: int = 128
    recursion: int = 1000


LIMITS = Limits()


REVISION = canonical.digest(canonical.dumps({"version": VERSION, **asdict(LIMITS)}))
"""What decides about a program besides its text; a part of the digest of every grader that executes."""
