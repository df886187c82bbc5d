"""What a server may answer that is no answer: each such item is missing and says why, none is a zero, nothing hangs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from registry.recipes import Evaluate
from stages.evaluate import client, runner, scoring, together
from stages.evaluate.journal import Journal
from tests.support.scripted import TALKS, Seen, pack_of, says

CALL = {"id": "1", "type": "function", "function": {"name": "more", "arguments": "{}"}}


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(client, "PAUSES", (0.0, 0.0))
    monkeypatch.setattr(client, "LONGEST_ANSWER", 0.3)


def http(body: Any, *, status: int = 200, more: str = "", length: int | None = None) -> bytes:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = f"HTTP/1.1 {status} X\r\n{more}content-length: {len(data) if length is None else length}\r\n\r\n"
    return head.encode() + data


def chat(message: Any = None, **choice: Any) -> dict[str, Any]:
    return {"choices": [{"message": message or says("3"), "finish_reason": "stop"} | choice]}


def ask(told: Callable[[int], Iterator[bytes] | bytes], journal: Path, *, items: int = 1) -> scoring.Results:
    """Asks a server that answers the n-th request (from 1) with these bytes, each piece a little after the other."""

    @asynccontextmanager
    async def serving() -> AsyncIterator[str]:
        asked, connections = 0, set()

        async def connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal asked
            connections.add(asyncio.current_task())
            try:
                while head := await reader.readuntil(b"\r\n\r\n"):
                    (length,) = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
                    await reader.readexactly(int(length.split(b":")[1]))
                    asked += 1
                    answer = told(asked)
                    for piece in [answer] if isinstance(answer, bytes) else answer:
                        writer.write(piece)
                        await writer.drain()
                        await asyncio.sleep(0.002)
                    if not isinstance(answer, bytes):
                        return
            except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass
            finally:
                writer.transport.abort()

        server = await asyncio.start_server(connection, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for task in connections:
                task.cancel()
            await asyncio.gather(*connections)

    async def asked_of(use: Callable[[client.Client, Journal], Awaitable[Any]]) -> scoring.Results:
        import httpx

        with Journal(journal) as opened:
            async with serving() as url, httpx.AsyncClient(base_url=url, transport=client._lanes(32)) as connected:
                await use(client.Client(connected, "candidate"), opened)
            return scoring.results(pack, 1, opened.answers)

    pack = pack_of(TALKS, items)
    return asyncio.run(
        asked_of(
            lambda asks, opened: runner.ask(asks, pack, Evaluate(packs=["any"]), opened, Seen(), check=lambda: None)
        )
    )


def endless(first: bytes, piece: bytes) -> Iterator[bytes]:
    yield first
    while True:
        yield piece


NO_ANSWERS = {
    "no choices": {"choices": []},
    "choices null": {"choices": None},
    "an error that calls itself a success": {"error": {"message": "overloaded"}},
    "no message": chat() | {"choices": [{"message": None, "finish_reason": "stop"}]},
    "no content": chat({"role": "assistant"}),
    "content in parts": chat(says("3") | {"content": [{"type": "text", "text": "3"}]}),
    "arguments null": chat(says(None) | {"tool_calls": [CALL | {"function": {"name": "a", "arguments": None}}]}),
    "arguments as an object": chat(says(None) | {"tool_calls": [CALL | {"function": {"name": "a", "arguments": {}}}]}),
    "calls as text": chat(says(None) | {"tool_calls": "more"}),
    "ended by the server (abort)": chat(finish_reason="abort"),
    "not ended": chat(finish_reason=None),
}
ON_THE_WIRE: dict[str, tuple[Callable[[int], Iterator[bytes] | bytes], str]] = {
    "a page": (lambda _: http(b"<html>busy</html>", more="content-type: text/html\r\n"), "no JSON object"),
    "a stream of events": (lambda _: http(b"data: {}\n\n"), "no JSON object"),
    "a request that took too long there": (lambda _: http(b"", status=408), "408"),
    "a connection dropped in the middle": (lambda _: iter([http(chat(), length=5000)]), "RemoteProtocolError"),
    "half a chunk": (
        lambda _: iter([b"HTTP/1.1 200 X\r\ntransfer-encoding: chunked\r\n\r\n10\r\n{"]),
        "RemoteProtocolError",
    ),
    "another protocol": (lambda _: b"\x15\x03\x03\x00\x02\x02\x28\r\n\r\n", "RemoteProtocolError"),
    "what is not packed as it says": (lambda _: http(chat(), more="content-encoding: gzip\r\n"), "DecodingError"),
    "nothing at all": (lambda _: endless(b"", b""), "no whole answer within 0.3 s"),
    "a byte now and then": (lambda _: endless(http(b"{", length=10**6), b" "), "no whole answer within 0.3 s"),
    "a head without end": (lambda _: endless(b"HTTP/1.1 200 X\r\n", b"a: b\r\n"), "no whole answer within 0.3 s"),
    "patience": (lambda _: endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n"), "no whole answer within 0.3 s"),
}


@pytest.mark.parametrize("body", NO_ANSWERS.values(), ids=list(NO_ANSWERS))
def test_what_is_no_chat_completion_or_was_not_finished_is_the_servers_doing(tmp_path, capsys, body):
    (row,) = ask(lambda _: http(body), tmp_path / "journal").rows
    assert (row.outcome, row.points) == ("infra", None)
    told = capsys.readouterr().err
    assert "1 answer missing, such as to item-00" in told
    assert "no chat completion" in told or "not finished (finish_reason " in told


@pytest.mark.parametrize(("told", "why"), ON_THE_WIRE.values(), ids=list(ON_THE_WIRE))
def test_what_goes_wrong_on_the_way_is_missing_and_says_why(tmp_path, capsys, told, why):
    (row,) = ask(told, tmp_path / "journal").rows
    assert (row.outcome, row.points) == ("infra", None)
    assert why in capsys.readouterr().err


def test_an_answer_of_any_size_takes_no_more_than_the_largest(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(client, "LARGEST_ANSWER", 1 << 20)
    monkeypatch.setattr(client, "LONGEST_ANSWER", 60)
    told = lambda _: endless(http(b"{", length=10**12), b" " * 2**18)  # noqa: E731
    assert [row.outcome for row in ask(told, tmp_path / "journal").rows] == ["infra"]
    assert "an answer of more than 1 MiB" in capsys.readouterr().err


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("more", ["", "retry-after: 1\r\n", "retry-after: soon\r\n"])
def test_a_server_that_was_busy_and_answers_then_costs_nothing(tmp_path, capsys, status, more):
    told = lambda number: http(b"busy", status=status, more=more) if number < 3 else http(chat())  # noqa: E731
    assert [row.points for row in ask(told, tmp_path / "journal").rows] == [1]
    assert capsys.readouterr().err == ""


def test_a_server_that_has_fallen_silent_is_not_asked_all_the_rest(tmp_path, capsys):
    asked = 0

    def told(number: int) -> bytes:
        nonlocal asked
        asked = number
        return http(chat()) if number <= 40 else http(b"", status=500)

    rows = ask(told, tmp_path / "journal", items=400).rows
    assert [row.outcome for row in rows].count("scored") == 40
    assert asked < 40 + 3 * 2 * together.CONCURRENCY
    assert "360 answers missing" in capsys.readouterr().err
