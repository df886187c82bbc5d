"""Conversations by script: a server that answers as told, graders as a person writes them, a verifier with faults."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from registry.recipes import Evaluate
from stages.common.execution import Execution, Result, Returned, UnavailableError, decode
from stages.common.grading import Grader
from stages.common.grading.answers import with_results
from stages.common.grading.items import Grade, Item
from stages.evaluate import runner, scoring, together
from stages.evaluate.client import Client
from stages.evaluate.journal import Answer, Journal
from stages.evaluate.packs import Pack
from tests.support import serving

Agent = Callable[[dict[str, Any]], dict[str, Any]]
"""From a request to the message that the model answers with."""


# ------------------------------------------------------------------------------------- graders as a person writes them


def count_to_three(_: Item, answers: Any) -> Any:
    """Each call is answered with how many there have been; without a call the conversation is over."""
    return with_results(answers, [f"{len(answers)}"] * len(answers[-1].calls)) if answers[-1].calls else None


TALKS = SimpleNamespace(
    VERSION=1,
    Item=Item,
    reply=count_to_three,
    grade=lambda _, answers, __: Grade(float(answers[-1].content == "3")),
)


def code_in(_: Item, answers: Any) -> tuple[Execution, ...]:
    return (Execution("python", answers[-1].content, "double", ((2,), (3,))),) if answers[-1].content else ()


def doubled(_: Item, answers: Any, results: Any) -> Grade:
    if not answers[-1].content:
        return Grade(0, detail="no code")
    (result,) = results.values()
    given = [decode(value.value) for value in result.values if isinstance(value, Returned)]
    return Grade(float(given == [4, 6]), detail=result.detail)


EXECUTES = SimpleNamespace(VERSION=1, Item=Item, executions=code_in, grade=doubled)


def pack_of(module: Any, count: int, *, turns: int = 1) -> Pack:
    items = tuple(
        Item(id=f"item-{number:02d}", category="C", messages=[{"role": "user", "content": str(number)}])
        for number in range(count)
    )
    return Pack("scripted", Grader("scripted", module), 64, turns, items, "0" * 64, "1" * 64)


# --------------------------------------------------------------------------------------------------- a scripted server


class Server:
    """Answers chats by `agent`; counts what it is asked. `room` is how many messages a chat may have."""

    def __init__(self, agent: Agent, *, room: int = 1000) -> None:
        self.agent, self.room = agent, room
        self.bodies: list[dict[str, Any]] = []
        self.at_once = self.most_at_once = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = json.loads((await receive())["body"])
        status, answer = 200, {}
        if scope["path"] == "/tokenize":
            answer = {"count": 10 * len(body["messages"]), "max_model_len": 10 * self.room + 64}
        elif len(body["messages"]) > self.room:
            status, answer = 400, {"error": "too long"}
        else:
            self.bodies.append(body)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            await asyncio.sleep(0.001)
            self.at_once -= 1
            answer = {"id": "x", "choices": [{"message": self.agent(body), "finish_reason": "stop"}]}
            answer["usage"] = {"completion_tokens": 2}
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


def says(content: str | None, *calls: str) -> dict[str, Any]:
    made = [{"id": "random", "type": "function", "function": {"name": name, "arguments": "{}"}} for name in calls]
    return {"role": "assistant", "content": content, "tool_calls": made}


class Seen:
    """A progress bar that remembers."""

    def __init__(self) -> None:
        self.done = 0.0
        self.notes: list[str] = []

    def advance(self, amount: float = 1, note: str = "") -> None:
        self.done += amount
        self.notes.append(note)


def ask(
    server: Any, pack: Pack, journal: Path, *, run: Any = None, seen: Seen | None = None, **settings: Any
) -> scoring.Results:
    wanted = Evaluate(packs=["any"], **settings)

    async def asked() -> dict[Any, Answer]:
        async with serving.connected(server) as client:
            with Journal(journal) as opened:
                await runner.ask(client, pack, wanted, opened, seen or Seen(), check=lambda: None, run=run)
            return opened.answers

    return scoring.results(pack, wanted.repeats, asyncio.run(asked()))


def ask_together(server: Any, packs: Sequence[tuple[Pack, Any]], folder: Path) -> list[scoring.Results]:
    """Asks packs, each with what runs its code, at the same time."""
    wanted = Evaluate(packs=["any"])

    async def one(client: Client, number: int, pack: Pack, run: Any, share: together.Share) -> scoring.Results:
        with Journal(folder / f"journal-{number}") as opened:
            await runner.ask(client, pack, wanted, opened, Seen(), check=lambda: None, run=run, share=share)
        return scoring.results(pack, 1, opened.answers)

    async def all_of_them() -> list[scoring.Results]:
        async with serving.connected(server) as client:
            shared = zip(packs, together.shares(len(packs)), strict=True)
            return await asyncio.gather(
                *(one(client, number, pack, run, share) for number, ((pack, run), share) in enumerate(shared))
            )

    return asyncio.run(all_of_them())


# ----------------------------------------------------------------------------------------------------- code in answers

RIGHT = "def double(x): return 2 * x"
DONE = Result("done", (Returned(4), Returned(6)))


def codes(body: dict[str, Any]) -> dict[str, Any]:
    number = body["messages"][0]["content"]
    return says("" if number == "1" else f"{RIGHT}  # {number}")


class Verifier:
    """Stands for the real one where its faults are wanted at a certain time."""

    def __init__(self, *, slow: str = "\0", always: bool = True, down: bool = False) -> None:
        self.slow, self.always, self.down = slow, always, down
        self.ran: list[str] = []
        self.at_once: list[int] = []
        self.running = 0

    async def __call__(self, execution: Execution) -> Result:
        if self.down:
            raise UnavailableError("nobody there")
        self.running += 1
        await asyncio.sleep(0.002)
        self.at_once.append(self.running)
        self.running -= 1
        again = execution.code in self.ran
        self.ran.append(execution.code)
        late = self.slow in execution.code and (self.always or not again)
        return Result("timeout", detail="time") if late else DONE
