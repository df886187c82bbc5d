"""The HTTP side of the embedded server: what of vLLM's API the harness uses, field for field as vLLM 0.32 has it.

A request field that would change the answer and is not supported is refused with 400, never ignored.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from jinja2 import TemplateError
from pydantic import BaseModel, ConfigDict, Field

from stages.evaluate.server.model import Completion, Generator, Prompt
from stages.evaluate.server.parsing import Parsers, parse

Submit = Callable[[Prompt], "Future[Completion]"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Structured(_Strict):
    """Constrained output, of one kind: the answer is this text. So the parsers can be tried with a known answer."""

    choice: Annotated[list[Annotated[str, Field(min_length=1)]], Field(min_length=1, max_length=1)]


class ChatRequest(_Strict):
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    model: str | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["auto", "none"] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(ge=1, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=0)] = 0
    min_p: Annotated[float, Field(ge=0, le=0)] = 0.0
    repetition_penalty: Annotated[float, Field(ge=1, le=1)] = 1.0
    presence_penalty: Annotated[float, Field(ge=0, le=0)] = 0.0
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] = 0.0
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    n: Annotated[int, Field(ge=1, le=1)] = 1
    stream: Literal[False] = False
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)
    structured_outputs: Structured | None = None


class TokenizeRequest(_Strict):
    messages: Annotated[list[dict[str, Any]], Field(min_length=1)]
    model: str | None = None
    tools: list[dict[str, Any]] | None = None
    add_generation_prompt: bool = True
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)


class DetokenizeRequest(_Strict):
    tokens: list[Annotated[int, Field(ge=0)]]
    model: str | None = None


def build(generator: Generator, parsers: Parsers, submit: Submit, *, name: str, version: str) -> FastAPI:
    """
    Args:
        submit: hands a prompt to the loop that generates; its result comes later.
        name: what the model is called at this server.
    """
    app = FastAPI(title="Sluice embedded server", openapi_url=None)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(HTTPException)(_failed)

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ready"}

    @app.get("/version")
    async def tell_version() -> dict[str, str]:
        return {"version": version}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        model = {"id": name, "object": "model", "owned_by": "sluice", "max_model_len": generator.max_length}
        return {"object": "list", "data": [model]}

    @app.post("/tokenize")
    async def tokenize(request: TokenizeRequest) -> dict[str, Any]:
        options = {"add_generation_prompt": request.add_generation_prompt} | request.chat_template_kwargs
        tokens = _render(generator, request.messages, request.tools, options)
        return {"count": len(tokens), "max_model_len": generator.max_length, "tokens": tokens, "token_strs": None}

    @app.post("/detokenize")
    async def detokenize(request: DetokenizeRequest) -> dict[str, str]:
        return {"prompt": generator.decode(request.tokens, skip_special=False)}

    @app.post("/v1/chat/completions")
    async def chat(request: ChatRequest) -> dict[str, Any]:
        ids = _render(generator, request.messages, request.tools, request.chat_template_kwargs)
        prompt = Prompt(ids, _limit(request, len(ids), generator.max_length), request.temperature, _seed(request))
        if request.structured_outputs:
            completion = _forced(generator, request.structured_outputs.choice[0], prompt.max_tokens)
        else:
            completion = await asyncio.wrap_future(submit(prompt))
        return _response(generator, parsers, request, len(ids), completion, name)

    return app


def _render(
    generator: Generator, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, options: dict[str, Any]
) -> list[int]:
    try:
        return generator.render(_with_arguments(messages), tools, **options)
    except (TemplateError, TypeError, KeyError, ValueError) as error:
        raise HTTPException(400, f"the chat template refuses this chat: {error}") from None


def _with_arguments(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages as templates expect them, where the API has them otherwise: the arguments of earlier calls as
    values, and earlier reasoning under its older name too."""
    messages = json.loads(json.dumps(messages))
    for message in messages:
        if "reasoning" in message:
            message.setdefault("reasoning_content", message["reasoning"])
        for call in message.get("tool_calls") or ():
            function = call["function"]
            if isinstance(function.get("arguments"), str):
                function["arguments"] = json.loads(function["arguments"])
    return messages


def _limit(request: ChatRequest, prompt: int, most: int) -> int:
    asked = request.max_completion_tokens or request.max_tokens
    limit = asked or most - prompt
    if prompt + limit > most or limit < 1:
        raise HTTPException(
            400, f"the model holds {most} tokens; the prompt has {prompt} and {asked or 'some'} more were asked for"
        )
    return limit


def _seed(request: ChatRequest) -> int:
    return secrets.randbits(62) if request.seed is None else request.seed


def _forced(generator: Generator, text: str, limit: int) -> Completion:
    ids = [*generator.encode(text), generator.ends[0]]
    return Completion(ids[:limit], stopped=len(ids) <= limit)


def _response(
    generator: Generator, parsers: Parsers, request: ChatRequest, prompt: int, completion: Completion, name: str
) -> dict[str, Any]:
    tools = bool(request.tools) and request.tool_choice != "none"
    ids = completion.ids[:-1] if completion.stopped else completion.ids
    # With tools on offer nothing is left out of the text: in some tokenizers the tags of a call are special tokens.
    text = generator.decode(ids, skip_special=not tools)
    thinking = request.chat_template_kwargs.get("enable_thinking", True) is not False
    parsed = parse(text, parsers, thinking=thinking, tools=tools)
    calls = [
        {"id": f"call-{secrets.token_hex(8)}", "type": "function", "function": {"name": called, "arguments": arguments}}
        for called, arguments in parsed.calls
    ]
    message = {"role": "assistant", "content": parsed.content, "reasoning": parsed.reasoning, "tool_calls": calls}
    reason = ("tool_calls" if calls else "stop") if completion.stopped else "length"
    written = len(completion.ids)
    return {
        "id": f"chatcmpl-{secrets.token_hex(8)}",
        "object": "chat.completion",
        "created": int(time.time()),
        "model": name,
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
        "usage": {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written},
    }


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    found = error.errors()[0] if isinstance(error, RequestValidationError) else {"loc": (), "msg": str(error)}
    field = ".".join(str(part) for part in found["loc"][1:])
    return _error(400, f"{field}: {found['msg']}")


async def _failed(_: Request, error: Exception) -> JSONResponse:
    code = error.status_code if isinstance(error, HTTPException) else 500
    return _error(code, str(getattr(error, "detail", error)))


def _error(code: int, message: str) -> JSONResponse:
    return JSONResponse({"error": {"message": message, "type": "invalid_request_error", "code": code}}, code)
