"""What people and programs see: data on stdout, everything else on stderr, one exit code for each kind of end."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from gates.errors import SluiceError, UsageError
from gates.units import size as size
from registry.layout import IN_CONTAINER, called_outside

INTERRUPTED = 130

_PROJECT = "/work"
"""Where compose.yaml mounts the project's folder, in which every container works."""
_FOLDER = re.compile(r"(?<![\w./:~-])/(?:models|work)(?![\w-]|\.\w)")
"""At the beginning of a path."""
_USER = re.compile(r"(:/{1,2})[^/\s]*@")
"""Before an address's host. (A path that an address was taken for has one slash.)"""


def end_with(work: Callable[[], int | None]) -> int:
    """Runs `work` and gives the exit code; errors of ours are printed, without a traceback.

    That nobody listens (`registry ls | head`, `>&-`) changes neither what is done nor the exit code: a failed gate
    stays one. Nor is a terminal that lacks a letter an error.
    """
    _open_streams()
    try:
        return work() or 0
    except SluiceError as error:
        hint(f"error: {error}{_unseen(error.where or '')}")
        return error.exit_code
    except KeyboardInterrupt:
        hint("interrupted: what was finished is kept; run the same command again to go on")
        return INTERRUPTED
    except OSError as error:  # a full disk, a missing right: nobody's bug
        hint(f"error: {_refused(error)}")
        return UsageError.exit_code


def _open_streams() -> None:
    """After this, writing to stdout and stderr raises for want of neither a stream (`>&-`), nor of somebody who reads
    it (`| head`), nor of a letter (Latin-1)."""
    sys.stdout = _heard(sys.stdout) if sys.stdout else Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    sys.stderr = _heard(sys.stderr) if sys.stderr else Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


class _Leaving(io.FileIO):
    """A stream whose reader may leave, or whose terminal may be closed; what is written after that is lost."""

    def __init__(self, descriptor: int) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._lost = {errno.EPIPE, errno.EIO} if self.isatty() else {errno.EPIPE}

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError as error:
            if error.errno not in self._lost:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return super().write(data)


def _heard(stream: TextIO) -> TextIO:
    """The process's own stream, made such that its reader may leave; another (a test's) as it is."""
    if not (isinstance(stream, io.TextIOWrapper) and stream in (sys.__stdout__, sys.__stderr__)):
        return stream
    stream.flush()
    raw = _Leaving(stream.fileno())
    return io.TextIOWrapper(
        raw if stream.write_through else io.BufferedWriter(raw),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=stream.line_buffering,
        write_through=stream.write_through,
    )


def _unseen(where: str) -> str:
    """What to know of a file that was named, where the person who named it may see it and a container does not."""
    path = os.path.normpath(os.path.join(_PROJECT, where.partition(",")[0]))  # noqa: PTH118 - no Path takes any text
    if called_outside() is None or path.startswith((IN_CONTAINER, _PROJECT, "/run")) or os.path.exists(path):  # noqa: PTH110
        return ""
    return "\n  note: of this machine, a container sees only the project's folder and the registry"


def _refused(error: OSError) -> UsageError:
    if isinstance(error, PermissionError) and error.filename:
        from registry.ownership import refusal

        found = refusal(Path(os.fsdecode(error.filename)).absolute())
        if found is not None:
            return found
    where = str(error.filename) if error.filename else None
    return UsageError(f"the system refuses: {error.strerror or error}", where=where, remedy=remedy(error))


def remedy(error: OSError) -> str | None:
    """What to do about what the system refused, where one can tell."""
    readonly = "this is mounted read-only: mount it so that it can be written, or name another folder"
    if called_outside() is not None:
        readonly = "a container can write to the registry alone: do this outside of containers"
    full = "free room on that disk (registry gc, registry df; df -i counts files), then run this again"
    return {
        errno.ENOSPC: full,
        errno.EDQUOT: full,
        errno.EROFS: readonly,
        errno.EACCES: "look at whose it is and what its owner allows (ls -ld), or run this as its owner",
        errno.EPERM: "look at whose it is and what its owner allows (ls -ld), or run this as its owner",
        errno.EIO: "the disk fails, or the network to it: look at the system's log; then registry verify --all",
        errno.ENOTDIR: "a file lies where a folder belongs, or a folder where a file does: registry doctor",
        errno.EISDIR: "a file lies where a folder belongs, or a folder where a file does: registry doctor",
    }.get(error.errno or 0)


def hint(text: str) -> None:
    """A line for people, on stderr. What people write before an address's host may be a password, and is not shown.

    From a container it names folders as they are called outside, where it is read.
    """
    outside = called_outside()
    if outside is not None:
        text = _FOLDER.sub(lambda found: outside if found[0] == IN_CONTAINER else ".", text)
    sys.stderr.write(printable(_USER.sub(r"\1…@", text)) + "\n")
    sys.stderr.flush()


def data(value: Any) -> None:
    """A JSON value, on stdout."""
    readable = (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"  # elsewhere every letter can be escaped
    sys.stdout.write(json.dumps(value, indent=2, ensure_ascii=not readable, allow_nan=False) + "\n")


def text(line: str) -> None:
    """A line of a command's result, on stdout."""
    sys.stdout.write(printable(line) + "\n")


def printable(text: str) -> str:
    """What somebody called a file, or gave as a reason, must not steer the terminal: such letters are written out."""
    if text.replace("\n", "").isprintable():
        return text
    return "".join(letter if letter in "\n\t" or letter.isprintable() else ascii(letter)[1:-1] for letter in text)
