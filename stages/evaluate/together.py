"""What packs share that are asked at the same time: places with the server, and the moment when nothing is at work.

One pack after the other would leave the server nearly empty at the end of each, and all along with packs of few items.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

CONCURRENCY = 32
"""Conversations that are with the server at a time."""


class Share:
    """One pack's part in them."""

    def __init__(self, together: _Together) -> None:
        self._together = together

    @property
    def place(self) -> asyncio.Semaphore:
        """A place with the server."""
        return self._together.places

    def leave(self) -> None:
        """Nothing of this pack is with the server or the verifier any more."""
        self._together.working.discard(self)
        if not self._together.working:
            self._together.quiet.set()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        """While it lasts nothing else is at work, of this pack or another."""
        self.leave()
        await self._together.quiet.wait()
        async with self._together.turn:
            yield

    def speed(self, more: int) -> str:
        """How fast tokens come from all packs, with so many more, for the progress bar."""
        self._together.tokens += more
        seconds = time.monotonic() - self._together.begun
        return f", {self._together.tokens / seconds:.0f} tokens/s" if self._together.tokens and seconds else ""


class _Together:
    def __init__(self) -> None:
        self.places = asyncio.Semaphore(CONCURRENCY)
        self.working: set[Share] = set()
        self.quiet, self.turn = asyncio.Event(), asyncio.Lock()
        self.tokens, self.begun = 0, time.monotonic()


def shares(packs: int) -> list[Share]:
    """One for each of so many packs. Each is to leave in the end, however that comes about: others may wait for it."""
    together = _Together()
    found = [Share(together) for _ in range(packs)]
    together.working.update(found)
    return found
