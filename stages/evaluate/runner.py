"""Asking the items of a pack, many at a time, and what evidence says of the answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gates import canonical
from gates.errors import InvalidEvidence
from gates.records import Row
from registry.progress import Bar
from registry.recipes import Evaluate
from stages.common.grading import grade
from stages.evaluate.client import Client, UnansweredError, request
from stages.evaluate.journal import Answer, Journal, Key
from stages.evaluate.packs import Item, Pack

CONCURRENCY = 32


@dataclass(frozen=True, slots=True)
class Results:
    """Evidence in the making: rows in the order of item and repeat, and the raw responses in the same order."""

    rows: tuple[Row, ...]
    responses: bytes
    """One JSON value a line: item, repeat and the response."""

    @property
    def rows_bytes(self) -> bytes:
        return b"".join(row.to_bytes() + b"\n" for row in self.rows)


async def ask(
    client: Client, pack: Pack, settings: Evaluate, journal: Journal, bar: Bar, *, check: Callable[[], None]
) -> dict[str, Any]:
    """Asks whatever the journal lacks, and adds it there; what could not be answered stays missing.

    Args:
        check: raises if the server is not there any more.

    Returns:
        Timings: the seconds that this took, and how many tokens were written in them.

    Raises:
        InvalidEvidence: the server ended, or refuses an item.
    """
    begun = time.monotonic()
    wanted = [(item, repeat) for repeat in range(settings.repeats) for item in pack.items]
    waiting = [(item, repeat) for item, repeat in wanted if (item.id, repeat) not in journal.answers]
    score = _RunningScore(pack)
    for answer in journal.answers.values():
        score.add(answer)
    bar.advance(len(wanted) - len(waiting), note=score.text)
    asked = iter(waiting)

    async def worker() -> None:
        for item, repeat in asked:
            answer = await _ask_one(client, pack, item, repeat, settings)
            if answer is not None:
                journal.add(answer)
                score.add(answer)
            else:
                check()
            bar.advance(1, note=score.text)

    workers = [asyncio.create_task(worker()) for _ in range(min(CONCURRENCY, len(waiting)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for each in workers:
            each.cancel()
    return _timings(journal, {(item.id, repeat) for item, repeat in waiting}, time.monotonic() - begun)


def results(pack: Pack, repeats: int, answers: dict[Key, Answer]) -> Results:
    """What the answers are worth. An item without an answer is missing (`infra`)."""
    rows, lines = [], []
    for item in sorted(pack.items, key=lambda item: item.id):
        for repeat in range(repeats):
            answer = answers.get((item.id, repeat))
            rows.append(_row(pack, item, repeat, answer))
            if answer is not None and answer.response is not None:
                lines.append({"item": item.id, "repeat": repeat, "response": answer.response})
    return Results(tuple(rows), b"".join(canonical.dumps(line) + b"\n" for line in lines))


async def _ask_one(client: Client, pack: Pack, item: Item, repeat: int, settings: Evaluate) -> Answer | None:
    body = request(
        item.messages,
        tools=item.tools,
        max_tokens=pack.max_tokens,
        thinking=settings.thinking,
        temperature=float(settings.temperature),
        seed=repeat,
    )
    try:
        reply = await client.chat(body)
    except UnansweredError:
        return None
    except InvalidEvidence as error:
        raise InvalidEvidence(
            error.what, where=f"{pack.name}, item {item.id}", remedy="mend the item, or the pack's max_tokens"
        ) from None
    return Answer(item.id, repeat, reply.body, round(reply.seconds, 4))


def _row(pack: Pack, item: Item, repeat: int, answer: Answer | None) -> Row:
    if answer is None:
        return Row(item=item.id, repeat=repeat, category=item.category, of=1, outcome="infra")
    graded = grade(pack.grader, item.right, answer.response)
    return Row(
        item=item.id,
        repeat=repeat,
        category=item.category,
        points=graded.points,
        of=1,
        outcome=graded.outcome,
        tokens=_tokens(answer),
        response=None if answer.response is None else canonical.digest(canonical.dumps(answer.response)),
    )


def _tokens(answer: Answer) -> int | None:
    usage = (answer.response or {}).get("usage")
    count = usage.get("completion_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) and not isinstance(count, bool) else None


def _timings(journal: Journal, asked: set[Key], wall: float) -> dict[str, Any]:
    answers = [journal.answers[key] for key in sorted(asked & journal.answers.keys())]
    tokens = sum(_tokens(answer) or 0 for answer in answers)
    return {
        "wall_seconds": round(wall, 3),
        "asked": len(asked),
        "tokens": tokens,
        "tokens_per_second": round(tokens / wall, 1) if wall else None,
        "latency_seconds": {f"{each.item}/{each.repeat}": each.seconds for each in journal.answers.values()},
    }


class _RunningScore:
    """The score so far, for the progress bar."""

    def __init__(self, pack: Pack) -> None:
        self._pack = pack
        self._right = {item.id: item.right for item in pack.items}
        self._points = self._count = 0.0

    def add(self, answer: Answer) -> None:
        self._points += grade(self._pack.grader, self._right[answer.item], answer.response).points
        self._count += 1

    @property
    def text(self) -> str:
        return f"{self._pack.name} {100 * self._points / self._count:.1f}" if self._count else self._pack.name
