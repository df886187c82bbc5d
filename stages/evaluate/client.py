"""The harness's side of an OpenAI-compatible server: one request, asked until the server has really answered."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gates import canonical
from gates.errors import InvalidEvidence
from stages.common.grading.answers import read

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import httpx

PAUSES = (0.5, 2.0, 8.0)
"""Seconds before each new try after a fault of the infrastructure: no connection, no whole answer in time, a 5xx, a 408
or 429, or what no model can bring about: no JSON object, no chat completion, one that the server itself ended early."""
LONGEST_ANSWER = 600.0
"""Seconds that one request may take, until the last byte of its answer is here."""
LARGEST_ANSWER = 1 << 25
"""Bytes of one answer; the longest that a model writes take a tenth of it."""

Json = dict[str, Any]

UNCHANGED: Json = {
    "top_p": 1,
    "top_k": 0,
    "min_p": 0,
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
}
"""What leaves the model's own distribution as it is. It is said in every request: where nothing is said vLLM takes the
checkpoint's generation_config.json, whose repetition penalty counts at temperature 0 too."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: `body` is the response without its volatile fields, None if it cannot be kept as JSON."""

    body: Json | None
    seconds: float


class UnansweredError(Exception):
    """The server could not be reached or did not answer, in any of the tries."""


@dataclass(frozen=True, slots=True)
class Client:
    """Speaks to the server at `base_url` of `http`; `model` is what the model is called there."""

    http: httpx.AsyncClient
    model: str

    async def chat(self, request: Json) -> Reply:
        """
        Raises:
            InvalidEvidence: the server refuses the request (4xx) or sends it elsewhere (3xx).
            UnansweredError: there was no answer.
        """
        begun = time.monotonic()
        answer = await self._post("/v1/chat/completions", {"model": self.model} | request, _unfinished)
        return Reply(without_volatile(answer), time.monotonic() - begun)

    async def prompt(self, request: Json) -> str:
        """The text that the candidate's template makes of a chat, as far as the assistant's turn."""
        chat = {key: request[key] for key in ("messages", "tools", "chat_template_kwargs") if key in request}
        tokens = await self._post("/tokenize", {"model": self.model} | chat)
        text = await self._post("/detokenize", {"model": self.model, "tokens": tokens.get("tokens")})
        return str(text.get("prompt", ""))

    async def length(self, request: Json) -> tuple[int, int]:
        """How many tokens the prompt of a chat has, and how many the model can hold, the answer's included.

        Raises:
            InvalidEvidence, UnansweredError: the server does not say.
        """
        chat = {key: request[key] for key in ("messages", "tools", "chat_template_kwargs") if key in request}
        tokens = await self._post("/tokenize", {"model": self.model} | chat)
        try:
            return int(tokens["count"]), int(tokens["max_model_len"])
        except (KeyError, TypeError, ValueError):
            raise UnansweredError("POST /tokenize counts no tokens") from None

    async def _post(self, path: str, body: Json, unfit: Callable[[Json], str | None] = lambda _: None) -> Json:
        """
        Args:
            unfit: says what is wrong with an answer that no model can bring about; None where there is nothing.
        """
        import httpx

        fault = ""
        for pause in (*PAUSES, None):
            try:
                async with asyncio.timeout(LONGEST_ANSWER):
                    answer = await self.http.post(path, json=body)
            except TimeoutError:
                fault = f"no whole answer within {LONGEST_ANSWER:g} s"
            except httpx.RequestError as error:
                fault = f"{type(error).__name__}: {error}"
            else:
                value = _json(answer)
                wrong = "no JSON object" if value is None else unfit(value)
                if answer.is_success and value is not None and wrong is None:
                    return value
                fault = f"{answer.status_code}: {f'{wrong}: ' if answer.is_success else ''}{answer.text[:500]}"
                if 300 <= answer.status_code < 500 and answer.status_code not in (408, 429):
                    raise InvalidEvidence(f"the server refuses a request: {fault}", where=f"POST {path}")
            if pause is not None:
                await asyncio.sleep(pause)
        raise UnansweredError(fault)


@asynccontextmanager
async def connect(
    base_url: str, *, concurrency: int, model: str | None = None, key: str | None = None
) -> AsyncIterator[Client]:
    """
    Args:
        model: what the model is called there; without it the server is asked, which then has one alone.
        key: that the server wants.

    Raises:
        InvalidEvidence: nothing there says which model it serves.
    """
    import httpx

    # trust_env off: a proxy set in the environment is not on the way to 127.0.0.1
    async with httpx.AsyncClient(
        base_url=base_url,
        headers={"Authorization": f"Bearer {key}"} if key else {},
        transport=_lanes(concurrency),
        timeout=LONGEST_ANSWER,
        trust_env=False,
    ) as http:
        yield Client(http, model or await _only_model(http))


async def _only_model(http: httpx.AsyncClient) -> str:
    import httpx

    try:
        models = _json(await http.get("/v1/models"))
        return str((models or {})["data"][0]["id"])
    except (httpx.RequestError, KeyError, IndexError, TypeError):
        raise InvalidEvidence("the server names no model", where=f"{http.base_url}v1/models") from None


def _lanes(count: int) -> httpx.AsyncBaseTransport:
    """A transport with a pool for each request at a time: one shared pool looks at all of its connections again and
    again, which costs more than all else that is done about a request."""
    import ssl

    import httpx

    trusted = ssl.create_default_context()  # once: it reads all certificates of the machine

    class Lanes(httpx.AsyncBaseTransport):
        def __init__(self) -> None:
            self._free = [httpx.AsyncHTTPTransport(verify=trusted, trust_env=False) for _ in range(count)]
            self._all = tuple(self._free)
            self._room = asyncio.Semaphore(count)

        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            async with self._room:
                lane = self._free.pop()
                try:
                    response = await lane.handle_async_request(request)
                    # whole, before the next request takes this connection
                    return httpx.Response(response.status_code, content=await self._content(response))
                finally:
                    self._free.append(lane)

        @staticmethod
        async def _content(response: httpx.Response) -> bytes:
            content = bytearray()
            try:
                async for part in response.aiter_bytes():
                    content += part
                    if len(content) > LARGEST_ANSWER:
                        raise httpx.ReadError(f"an answer of more than {LARGEST_ANSWER >> 20} MiB")
            finally:
                await response.aclose()
            return bytes(content)

        async def aclose(self) -> None:
            for lane in self._all:
                await lane.aclose()

    return Lanes()


def request(
    messages: list[Json],
    *,
    tools: list[Json] | None = None,
    max_tokens: int,
    thinking: bool,
    temperature: float = 0.0,
    seed: int = 0,
    forced: str | None = None,
) -> Json:
    """The body of a chat request. Everything that bears on sampling is said, so that no default of a server's counts.

    Args:
        forced: the text that the server must answer, whatever the model would.
    """
    body: Json = {
        "messages": messages,
        "max_tokens": max_tokens,
        "temperature": temperature,
        **UNCHANGED,
        "seed": seed,
        "chat_template_kwargs": {"enable_thinking": thinking},
    }
    if tools:
        body["tools"] = tools
    if forced is not None:
        body["structured_outputs"] = {"choice": [forced]}
    return body


def without_volatile(body: Json) -> Json | None:
    """A response without what differs from call to call or from place to place: ids, times, the model's name.

    None for what cannot be kept as canonical JSON.
    """
    kept = {key: value for key, value in body.items() if key not in _VOLATILE}
    for call in _calls(kept):
        call.pop("id", None)
    try:
        canonical.dumps(kept)
    except (ValueError, RecursionError):
        return None
    return kept


_ENDS = ("stop", "length", "tool_calls")
"""Why a model's turn is over. Whatever else a server says there (vLLM: abort), the turn is not whole."""


def _unfinished(body: Json) -> str | None:
    if read(body) is None:
        return "no chat completion"
    end = body["choices"][0]["finish_reason"]
    return None if end in _ENDS else f"an answer that was not finished (finish_reason {end})"


_VOLATILE = ("id", "created", "model", "system_fingerprint", "service_tier", "kv_transfer_params", "metrics")


def _calls(body: Json) -> Iterator[Json]:
    choices = body.get("choices")
    for choice in choices if isinstance(choices, list) else ():
        message = choice.get("message") if isinstance(choice, dict) else None
        calls = message.get("tool_calls") if isinstance(message, dict) else None
        yield from (call for call in calls if isinstance(call, dict)) if isinstance(calls, list) else ()


def _json(answer: httpx.Response) -> Json | None:
    try:
        value = answer.json()
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None
