"""The proof: untrained weights behind right flags pass it, and each wrong flag fails it for its own reason."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from gates.errors import InvalidEvidence
from stages.evaluate import proof
from stages.evaluate.packs import Pack, read_pack
from stages.evaluate.server.model import Generator
from stages.evaluate.server.parsing import Parsers
from tests.support import serving, tiny

OPENS_REASONING = serving.template(on="<think>\\n")
IGNORES_THE_SWITCH = serving.template(off="")
ONLY_OPENS = serving.template(off="<think>\\n")


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    folder = serving.write_chat_model(tmp_path_factory.mktemp("proof") / "model")
    return Generator(folder, device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def packs():
    return [read_pack(serving.PROJECT, name) for name in ("toy-toolcall", "toy-strings")]


def prove(app: Any, packs: list[Pack]) -> None:
    async def run() -> None:
        async with serving.connected(app) as client:
            await proof.prove(client, packs)

    asyncio.run(run())


def failure(app: Any, packs: list[Pack]) -> InvalidEvidence:
    with pytest.raises(InvalidEvidence) as error:
        prove(app, packs)
    assert error.value.exit_code == 4
    return error.value


@pytest.fixture
def template(generator):
    """Puts another chat template in front of the same weights."""
    own = generator.tokenizer.chat_template

    def use(text: str) -> None:
        assert text != own
        generator.tokenizer.chat_template = text

    yield use
    generator.tokenizer.chat_template = own


def test_untrained_weights_pass_behind_the_right_flags(generator, packs):
    prove(serving.application(generator), packs)


def test_a_template_that_opens_the_reasoning_itself_passes(generator, packs, template):
    template(OPENS_REASONING)
    prompt = generator.decode(generator.render([{"role": "user", "content": "x"}], None), skip_special=False)
    assert prompt.endswith("<think>\n")
    prove(serving.application(generator), packs)


def test_without_the_reasoning_parser_it_fails_and_names_that_flag(generator, packs):
    error = failure(serving.application(generator, Parsers(reasoning=None)), packs)
    assert "no reasoning is in content" in error.what
    assert "--reasoning-parser qwen3" in error.remedy
    assert "tool-call-parser" not in error.remedy


def test_without_the_tool_parser_it_fails_and_names_that_flag(generator, packs):
    error = failure(serving.application(generator, Parsers(tools=None)), packs)
    assert "a tool call arrives as a call" in error.what
    assert "--tool-call-parser hermes" in error.remedy
    assert "reasoning-parser" not in error.remedy


def test_with_neither_parser_it_names_both(generator, packs):
    error = failure(serving.application(generator, Parsers(None, None)), packs)
    assert "--reasoning-parser qwen3" in error.remedy
    assert "--tool-call-parser hermes" in error.remedy


@pytest.mark.parametrize(
    "text", [IGNORES_THE_SWITCH, ONLY_OPENS, tiny.CHAT_TEMPLATE], ids=["ignores", "opens", "plain"]
)
def test_a_template_that_cannot_switch_thinking_off_fails_and_is_named(generator, packs, template, text):
    template(text)
    error = failure(serving.application(generator), packs)
    assert "thinking can be switched off" in error.what
    assert "enable_thinking" in error.remedy
    assert "parser" not in error.remedy


def test_a_pack_in_which_junk_earns_a_point_is_found(generator, packs):
    item = packs[1].items[3]
    loose = item.model_copy(update={"expected": item.expected.model_copy(update={"answer": proof.JUNK})})
    error = failure(serving.application(generator), [packs[0], replace(packs[1], items=(*packs[1].items[:3], loose))])
    assert "junk scores next to nothing" in error.what
    assert item.id in error.what


def test_a_server_that_forces_nothing_is_told_from_one_with_wrong_parsers(generator, packs):
    app = serving.application(generator)

    async def without_forcing(scope: Any, receive: Any, send: Any) -> None:
        """A server that overlooks structured_outputs, as vLLM does in reasoning without its flag."""

        async def changed() -> Any:
            message = await receive()
            if message["type"] == "http.request" and message["body"]:
                message["body"] = _unforced(message["body"])
            return message

        await app(scope, changed, send)

    error = failure(without_forcing, packs)
    assert "--structured-outputs-config.enable_in_reasoning true" in error.remedy
    assert "parser" not in error.remedy


def _unforced(body: bytes) -> bytes:
    import json

    request = json.loads(body)
    request.pop("structured_outputs", None)
    return json.dumps(request).encode()


def message(**parts: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "message": {"role": "assistant", **parts}, "finish_reason": "stop"}]}


def test_a_parser_of_another_format_that_drops_the_call_is_found():
    """What vLLM 0.32 answers with --tool-call-parser qwen3_coder: the call is nowhere, and nothing says so."""
    dropped = message(content=None, reasoning="sluice", tool_calls=[])
    (fault,) = proof.check_call(dropped, "hermes")
    assert "hermes" in fault.remedy
    assert not list(proof.check_reasoning(dropped))


@pytest.mark.parametrize("arguments", ['{"city": "Oslo", "days": "3", "metric": "true"}', '{"city": "Oslo"}', "{"])
def test_arguments_that_lost_their_types_are_found(arguments):
    call = {"type": "function", "function": {"name": "probe", "arguments": arguments}}
    assert list(proof.check_call(message(content=None, reasoning="sluice", tool_calls=[call]), "hermes"))


def test_reasoning_under_its_older_name_is_seen():
    assert not list(proof.check_reasoning(message(content=None, reasoning_content="\nsluice\n")))


def test_an_answer_cut_off_that_says_stop_is_found():
    assert list(proof.check_truncation(message(content="<th")))


@pytest.mark.parametrize("response", [None, {}, {"choices": []}, message()])
def test_a_response_without_a_message_fails_every_check_and_breaks_none(response):
    for check in (proof.check_reasoning, proof.check_plain, proof.check_truncation, proof.check_not_thinking):
        assert list(check(response))
    assert list(proof.check_call(response, "hermes"))


def test_junk_may_be_worth_a_little_where_calling_nothing_is_right_and_not_a_quarter(packs):
    """Of BFCL's items nearly a quarter want no call."""
    toolcall = packs[0]
    junk = message(content=proof.JUNK)

    def refusing(count: int) -> Pack:
        loose = [
            item.model_copy(update={"expected": item.expected.model_copy(update={"name": None, "answer": proof.JUNK})})
            for item in toolcall.items[:count]
        ]
        return replace(toolcall, items=(*loose, *toolcall.items[count:]))

    quarter = len(toolcall.items) // 4
    assert list(proof.check_junk(junk, [refusing(quarter - 1)])) == []
    (fault,) = proof.check_junk(junk, [refusing(quarter)])
    assert "25 % of toy-toolcall" in fault.seen
