"""Asking the items of a pack, many at a time, until every conversation is over and all code in it has been run.

The server is kept full: so many conversations are with it at any time, however long the verifier takes for the code of
those that are over, and however few items a pack has: packs may be asked at the same time. What ran out of time in the
verifier is run once more when nothing else is at work, before that counts.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from gates.errors import InvalidEvidence
from gates.wording import count
from registry import output
from registry.progress import Bar
from registry.recipes import Evaluate
from stages.common.grading.items import Item
from stages.evaluate.client import Client, UnansweredError, request
from stages.evaluate.executing import executed, once
from stages.evaluate.journal import Answer, Journal, Key
from stages.evaluate.packs import Pack
from stages.evaluate.scoring import RunningScore, pending
from stages.evaluate.together import CONCURRENCY, Share, shares

if TYPE_CHECKING:
    from stages.common.execution.client import Run

OUTGROWN = {"error": "the conversation has grown longer than the model can read"}
"""Kept in place of a response where the server can give none any more, which is the model's doing."""


async def ask(
    client: Client,
    pack: Pack,
    settings: Evaluate,
    journal: Journal,
    bar: Bar,
    *,
    check: Callable[[], None],
    run: Run | None = None,
    share: Share | None = None,
) -> dict[str, Any]:
    """Asks and runs whatever the journal lacks, and adds it there; what could not be had stays missing.

    Args:
        check: raises if the server is not there any more.
        run: the verifier, for a pack that executes.
        share: where other packs are asked at the same time.

    Returns:
        Timings: the seconds that this took, and how many tokens of this pack were written in them.

    Raises:
        InvalidEvidence: the server ended, or refuses an item.
    """
    begun = time.monotonic()
    asking = _Asking(client, pack, settings, journal, bar, check, run and once(run), share or shares(1)[0])
    asked = await asking.all()
    return _timings(journal, asked, time.monotonic() - begun)


class _Asking:
    """One pack being asked."""

    def __init__(
        self,
        client: Client,
        pack: Pack,
        settings: Evaluate,
        journal: Journal,
        bar: Bar,
        check: Callable[[], None],
        run: Run | None,
        share: Share,
    ) -> None:
        self._client, self._pack, self._settings, self._journal = client, pack, settings, journal
        self._bar, self._check, self._run, self._share = bar, check, run, share
        self._items = {item.id: item for item in pack.items}
        self._score = RunningScore(pack)
        self._executing: set[asyncio.Task[None]] = set()
        self._later: list[Answer] = []
        """Those with code that is to be run when nothing else is at work."""
        self._fault: Exception | None = None
        """Why the verifier is not to be had."""
        self._silent = 0
        """Conversations in a row that the server did not answer, and why the last was not."""
        self._why = ""

    async def all(self) -> set[Key]:
        """Asks and runs everything; gives what was asked now."""
        every = [(item, repeat) for repeat in range(self._settings.repeats) for item in self._pack.items]
        kept = self._journal.answers
        answered = [kept[item.id, repeat] for item, repeat in every if (item.id, repeat) in kept]
        waiting = [(item, repeat) for item, repeat in every if (item.id, repeat) not in kept]
        left = iter(waiting)
        tasks = [asyncio.create_task(self._converse(left)) for _ in range(min(CONCURRENCY, len(waiting)))]
        try:
            for answer in answered:
                self._answered(answer, new=False)
            await asyncio.gather(*tasks)
            self._say_what_is_missing(waiting)
            await asyncio.gather(*self._executing)
        finally:
            for task in (*tasks, *self._executing):
                task.cancel()
            self._share.leave()
        if self._later:
            async with self._share.alone():
                await self._run_alone()
        return {(item.id, repeat) for item, repeat in waiting}

    async def _converse(self, left: Iterator[tuple[Item, int]]) -> None:
        """Has one conversation after the other, until there seems to be nobody to have one with."""
        for item, repeat in left:
            try:
                async with self._share.place:
                    answer = await _conversation(self._client, self._pack, item, repeat, self._settings)
            except UnansweredError as error:
                self._check()
                self._silent, self._why = self._silent + 1, str(error)
                self._bar.advance(1, note=self._score.note)
            else:
                self._silent = 0
                self._journal.add(answer)
                self._answered(answer, new=True)
            if self._silent >= CONCURRENCY:
                return

    def _say_what_is_missing(self, waiting: Sequence[tuple[Item, int]]) -> None:
        missing = [item.id for item, repeat in waiting if (item.id, repeat) not in self._journal.answers]
        if missing:
            output.hint(
                f"{self._pack.name}: {count(len(missing), 'answer')} missing, such as to {missing[0]}; run this again "
                f"to ask for them. The server gave none: {self._why}"
            )

    def _answered(self, answer: Answer, *, new: bool) -> None:
        if pending(self._pack, self._items[answer.item], answer):
            task = asyncio.create_task(self._execute(answer))
            self._executing.add(task)
        else:
            self._done(answer, new=new)

    async def _execute(self, answer: Answer) -> None:
        item = self._items[answer.item]
        if self._fault is None:
            answer = await self._tried(item, answer, alone=False)
        if pending(self._pack, item, answer):
            self._later.append(answer)
        else:
            self._done(answer, new=True)

    async def _run_alone(self) -> None:
        self._fault = None  # it may be there again
        for answer in sorted(self._later, key=lambda answer: answer.key):
            if self._fault is None:
                answer = await self._tried(self._items[answer.item], answer, alone=True)
            self._done(answer, new=True)
        if self._fault is not None:
            output.hint(f"{self._pack.name}: the verifier cannot be had, so items are missing: {self._fault}")

    async def _tried(self, item: Item, answer: Answer, *, alone: bool) -> Answer:
        from stages.common.execution import UnavailableError

        assert self._run is not None, "a pack that executes is not asked without a verifier"
        try:
            ran = await executed(self._run, self._pack, item, answer, alone=alone)
        except UnavailableError as error:
            self._fault = error
            return answer
        if ran != answer:
            self._journal.add(ran)
        return ran

    def _done(self, answer: Answer, *, new: bool) -> None:
        self._score.add(answer)
        speed = self._share.speed((answer.tokens or 0) if new else 0)
        self._bar.advance(1, note=self._score.note + speed)


async def _conversation(client: Client, pack: Pack, item: Item, repeat: int, settings: Evaluate) -> Answer:
    """All turns with the model about one item.

    Raises:
        InvalidEvidence, UnansweredError: as `Client.chat` does.
    """
    messages, responses, seconds = list(item.messages), [], 0.0
    more: list[dict[str, Any]] | None = []
    while more is not None:
        messages += more
        body = request(
            messages,
            tools=item.tools,
            max_tokens=pack.max_tokens,
            thinking=bool(settings.thinking),
            temperature=float(settings.temperature),
            seed=repeat,
        )
        try:
            reply = await client.chat(body)
        except InvalidEvidence as error:
            if responses and not await _fits(client, body):
                responses.append(OUTGROWN)
                break
            raise InvalidEvidence(
                error.what,
                where=f"{pack.name}, item {item.id}",
                remedy="mend the item, or the pack's max_tokens; or give the model more room (vLLM: server_flags "
                "{max-model-len: …} in the step), if it can hold more",
            ) from None
        responses.append(reply.body)
        seconds += reply.seconds
        more = pack.grader.reply(item, responses) if len(responses) < pack.max_turns else None
    return Answer(item.id, repeat, tuple(responses), round(seconds, 4))


async def _fits(client: Client, body: dict[str, Any]) -> bool:
    """Whether the server has room for a chat and its answer; True where it does not say so."""
    try:
        tokens, most = await client.length(body)
    except (UnansweredError, InvalidEvidence):
        return True
    return tokens + int(body["max_tokens"]) <= most


def _timings(journal: Journal, asked: Iterable[Key], wall: float) -> dict[str, Any]:
    answers = [journal.answers[key] for key in sorted(set(asked) & journal.answers.keys())]
    tokens = sum(answer.tokens or 0 for answer in answers)
    return {
        "wall_seconds": round(wall, 3),
        "asked": len(set(asked)),
        "tokens": tokens,
        "tokens_per_second": round(tokens / wall, 1) if wall else None,
        "latency_seconds": {f"{each.item}/{each.repeat}": each.seconds for each in journal.answers.values()},
    }
