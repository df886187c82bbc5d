"""The embedded engine takes a text apart as the real server does, whatever the text."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from registry.manifests import Shape
from registry.recipes import Evaluate
from stages.common.grading.answers import read, with_results
from stages.evaluate import client, engines
from stages.evaluate.proof import PROBE
from stages.evaluate.server.parsing import Parsers, parse
from tests.vllm.conftest import Place

pytestmark = pytest.mark.needs("vllm")

THOUGHT = "<think>\na\n</think>\n\n"
CALL = '<tool_call>\n{"name": "probe", "arguments": {"city": "Oslo", "days": 3}}\n</tool_call>'
TEXTS = [
    "hello",
    THOUGHT + "hello",
    "a\n</think>\n\nhello",
    "<think>\na",
    "<think>\n</think>\n\nhello",
    THOUGHT + "  ",
    THOUGHT + "x</think>y",
    THOUGHT + "<think>b</think>c",
    "<think>\na<think>b\n</think>\n\nhello",
    "x " + THOUGHT + "hello",
    THOUGHT + CALL,
    THOUGHT + CALL + "\n" + CALL,
    THOUGHT + "before " + CALL,
    THOUGHT + CALL + " after",
    "<think>\na" + CALL,
    THOUGHT + CALL.removesuffix("\n</tool_call>"),
    THOUGHT + '<tool_call>\n{"name": "probe", "arguments": {broken\n</tool_call>',
    THOUGHT + CALL + "<tool_call>\n{bad</tool_call>",
    THOUGHT + "<tool_call>\nnonsense</tool_call>",
    THOUGHT + "<tool_call>\n[1]\n</tool_call>",
    THOUGHT + '<tool_call>\n{"name": "probe"}\n</tool_call>',
    THOUGHT + '<tool_call>\n{"arguments": {}}\n</tool_call>',
    THOUGHT + '<tool_call>\n{"name": "probe", "arguments": "text"}\n</tool_call>',
]


@pytest.fixture(scope="module")
def engine(place: Place) -> Iterator[engines.Engine]:
    shape = Shape(family="qwen3_moe", layers=4, experts=16, top_k=2, quantization=None, tensor_bytes=1)
    description = engines.describe(Evaluate(packs=["any"], engine="vllm"), place.project, shape, where="a test")
    with engines.start(description, place.store.candidate("toy").folder) as started:
        yield started


def test_forced_texts_come_back_in_the_same_parts(engine: engines.Engine) -> None:
    assert asyncio.run(_compare(engine.base_url)) == []


def test_a_conversation_goes_on_after_any_answer_and_the_model_is_shown_what_was_said(engine: engines.Engine) -> None:
    """As the runner sends it: the assistant's turn again, malformed arguments included, and what a tool gave."""

    async def shown() -> list[str]:
        prompts = []
        async with client.connect(engine.base_url, concurrency=4) as connection:
            for text in TEXTS:
                chat = [{"role": "user", "content": "proof"}]
                body = client.request(chat, tools=[PROBE], max_tokens=300, thinking=True, forced=text)
                answer = read((await connection.chat(body)).body)
                assert answer is not None
                chat += with_results([answer], ["it rains"] * len(answer.calls))
                chat.append({"role": "user", "content": "and then?"})
                again = client.request(chat, tools=[PROBE], max_tokens=4, thinking=True)
                assert read((await connection.chat(again)).body) is not None, text
                prompt = await connection.prompt(again)
                assert prompt.count("it rains") == len(answer.calls), text
                tokens, most = await connection.length(again)
                assert 0 < tokens < most
                prompts.append(prompt)
        return prompts

    prompts = asyncio.run(shown())
    assert sum("it rains" in prompt for prompt in prompts) >= 4
    assert all("and then?" in prompt for prompt in prompts)


async def _compare(base_url: str) -> list[tuple[Any, ...]]:
    differing = []
    async with client.connect(base_url, concurrency=4) as connection:
        for text in TEXTS:
            for thinking in (True, False):
                for tools in ([PROBE], None):
                    chat = [{"role": "user", "content": "proof"}]
                    body = client.request(chat, tools=tools, max_tokens=300, thinking=thinking, forced=text)
                    message = (await connection.chat(body)).body["choices"][0]["message"]
                    calls = [each["function"] for each in message.get("tool_calls") or []]
                    real = (message["reasoning"], message["content"], [(c["name"], c["arguments"]) for c in calls])
                    ours = parse(text, Parsers(), thinking=thinking, tools=tools is not None)
                    if _plain(*real) != _plain(ours.reasoning, ours.content, list(ours.calls)):
                        differing.append((text, thinking, bool(tools), real, ours))
    return differing


def _plain(reasoning: str | None, content: str | None, calls: list[tuple[str, str]]) -> Any:
    """Without the white space around each part, in which servers may differ."""
    return (reasoning or "").strip(), (content or "").strip(), [(name, json.loads(text)) for name, text in calls]
