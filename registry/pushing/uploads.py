"""Files given to the Hub's client such that it tells how far it has read them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from gates.errors import IntegrityError
from registry.bulk import Advance

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd


def addition(name: str, content: bytes | Path) -> CommitOperationAdd:
    """The operation that adds a file to a commit.

    Raises:
        IntegrityError: the file is gone.
    """
    from huggingface_hub import CommitOperationAdd

    class Told(CommitOperationAdd):
        advance: Advance | None = None

        @contextmanager
        def as_file(self, with_tqdm: bool = False) -> Iterator[BinaryIO]:
            if self.advance is None or not isinstance(self.path_or_fileobj, str):
                with super().as_file(with_tqdm) as file:
                    yield file
            else:
                with _Counted(self.path_or_fileobj, self.advance) as counted:
                    yield counted

    if isinstance(content, Path) and not content.is_file():
        raise IntegrityError(
            f"{name} is gone from the registry", where=str(content), remedy="registry verify says what is missing"
        )
    return Told(name, str(content) if isinstance(content, Path) else content)


@contextmanager
def counting(added: CommitOperationAdd, size: int, advance: Advance) -> Iterator[None]:
    """While the block runs `advance` is told what is read of the file; at its end, all `size` bytes are done.

    What the Hub has already is not read, nor does Xet's library say what it reads: then all is told at the end.
    """
    done = 0

    def told(count: int) -> None:
        nonlocal done
        done += count
        advance(count)

    added.advance = told  # type: ignore[attr-defined]
    try:
        yield
    finally:
        added.advance = None  # type: ignore[attr-defined]
    advance(size - done)


class _Counted(io.FileIO):
    """A file that tells how far it was read; what is read again, after a failure, is told once."""

    def __init__(self, path: str, advance: Advance) -> None:
        super().__init__(path)
        self._advance = advance
        self._most = 0

    def read(self, size: int | None = -1) -> Any:
        data = super().read(-1 if size is None else size)
        at = self.tell()
        if at > self._most:
            self._advance(at - self._most)
            self._most = at
        return data
