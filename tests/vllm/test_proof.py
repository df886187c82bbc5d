"""The proof judges the server and not the model: on the real server, with weights that were never trained."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from gates.errors import InvalidEvidence
from registry.manifests import Shape
from registry.recipes import Evaluate
from stages.evaluate import client, engines, proof
from stages.evaluate.packs import read_pack
from tests.vllm.conftest import Place

pytestmark = pytest.mark.needs("vllm")


@pytest.mark.parametrize(
    ("candidate", "flags", "words"),
    [
        ("untrained", {"reasoning_parser": "none"}, ["reasoning arrives in its own field", "--reasoning-parser qwen3"]),
        ("untrained", {"tool_parser": "qwen3_coder"}, ["a tool call arrives as a call", "--tool-call-parser hermes"]),
        ("always-thinks", {}, ["thinking can be switched off", "enable_thinking"]),
        ("leaks", {}, ["thinking can be switched off", "enable_thinking"]),
    ],
)
def test_a_wrong_flag_or_template_is_invalid_with_a_reason_of_its_own(
    place: Place, candidate: str, flags: dict[str, str], words: list[str]
) -> None:
    recipe = place.recipe("wrong", candidate, "vllm", **flags)
    done = place.evaluate(recipe, "--prove-only")
    assert done.returncode == 4, done.stderr
    for word in words:
        assert word in done.stderr
    assert place.store.evidence(place.store.candidate(candidate).digest) == {}


class _WithoutLimit(httpx.AsyncHTTPTransport):
    """A server that ignores max_tokens: what stands between drops it from every request."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/v1/chat/completions":
            body = json.loads(request.content)
            del body["max_tokens"]
            request = httpx.Request("POST", request.url, json=body)
        return await super().handle_async_request(request)


def _started_elsewhere(place: Place, base_url: str) -> None:
    """The stage asks a server that somebody else has started on its folder, and no other candidate there."""
    for candidate, code in (("untrained", 0), ("toy", 2)):
        recipe = place.recipe(f"{candidate}-elsewhere", candidate, "vllm", packs="[toy-facts]")
        done = place.evaluate(recipe, "--base-url", f"{base_url}/v1")
        assert done.returncode == code, done.stderr
    assert "does not serve toy" in done.stderr
    (evidence,) = place.store.evidence(place.store.candidate("untrained").digest).values()
    assert evidence.totals.missing == 0
    assert evidence.conditions.server_flags == {}
    assert evidence.recorded["server"] == "started elsewhere"


def test_right_flags_pass_on_untrained_weights_and_a_server_that_ignores_max_tokens_does_not(place: Place) -> None:
    packs = [read_pack(place.project, name) for name in ("toy-toolcall", "toy-arithmetic", "toy-facts", "toy-strings")]
    shape = Shape(family="qwen3_moe", layers=4, experts=16, top_k=2, quantization=None, tensor_bytes=1)
    settings = Evaluate(packs=["any"], engine="vllm")
    description = engines.describe(settings, place.project, shape, where="a test")

    async def ask(base_url: str) -> str:
        async with client.connect(base_url, concurrency=4) as right:
            await proof.prove(right, packs)
        async with httpx.AsyncClient(base_url=base_url, transport=_WithoutLimit(), timeout=120) as http:
            with pytest.raises(InvalidEvidence) as error:
                await proof.prove(client.Client(http, right.model), packs)
        return str(error.value)

    with engines.start(description, place.store.candidate("untrained").folder) as engine:
        _started_elsewhere(place, engine.base_url)
        fault = asyncio.run(ask(engine.base_url))
    assert "an answer cut off says so" in fault
    assert "max_tokens" in fault
