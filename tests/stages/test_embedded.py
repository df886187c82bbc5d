"""The embedded server: what it answers, that batches change nothing, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gates.errors import InvalidEvidence, UsageError
from stages.evaluate import engines
from stages.evaluate.client import connect, without_volatile
from stages.evaluate.client import request as body
from stages.evaluate.proof import PROBE
from stages.evaluate.server.parsing import Parsed, Parsers, parse
from tests.support import serving

BOTH = Parsers()
CALL = '<tool_call>\n{"name": "probe", "arguments": {"days": 3}}\n</tool_call>'
CALLED = ("probe", '{"days": 3}')
CHAT = [{"role": "user", "content": "hello"}]


def parsed(text: str, parsers: Parsers = BOTH, *, thinking: bool = True, tools: bool = True) -> Parsed:
    return parse(text, parsers, thinking=thinking, tools=tools)


# ------------------------------------------------------------------------------------------------------- the parsers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<think>\nwhy\n</think>\n\nfour", Parsed("\nwhy\n", "\n\nfour", ())),
        ("why\n</think>\n\nfour", Parsed("why\n", "\n\nfour", ())),  # the template opened it
        ("<think>\nwhy and wh", Parsed("\nwhy and wh", None, ())),  # cut off
        ("never closed", Parsed("never closed", None, ())),
        ("<think>\nwhy\n</think>\n\n", Parsed("\nwhy\n", None, ())),
        (f"<think>a</think>\n{CALL}", Parsed("a", None, (CALLED,))),
        (f"<think>a</think>Here: {CALL}", Parsed("a", "Here: ", (CALLED,))),
        (f"<think>a</think>{CALL}\n{CALL}", Parsed("a", None, (CALLED, CALLED))),
        (f"<think>a</think>{CALL.removesuffix('</tool_call>')}", Parsed("a", None, (CALLED,))),  # not closed
        (f"<think>a</think>{CALL}<tool_call>{{</tool_call>", Parsed("a", f"{CALL}<tool_call>{{</tool_call>", ())),
        ("<think>a</think><tool_call>3</tool_call>", Parsed("a", "<tool_call>3</tool_call>", ())),
        ("<think>a</think><tool_call>", Parsed("a", "<tool_call>", ())),
        (f"<think>why{CALL}", Parsed("why", None, (CALLED,))),  # a call ends the reasoning
    ],
)
def test_text_is_taken_apart_as_vllm_does(text, expected):
    assert parsed(text) == expected


@pytest.mark.parametrize("arguments", ['"\\ud800"', '{"a": "\\udfff"}'])
def test_half_a_surrogate_pair_is_malformed(arguments):
    text = f'</think><tool_call>{{"name": "probe", "arguments": {arguments}}}</tool_call>'
    assert parsed(text).calls == ()


def test_with_thinking_off_an_answer_is_content():
    assert parsed("four", thinking=False) == Parsed(None, "four", ())


def test_without_tools_on_offer_nothing_is_a_call():
    assert parsed(f"</think>{CALL}", tools=False) == Parsed(None, CALL, ())


def test_a_parser_that_is_off_leaves_its_tags_in_content():
    text = f"<think>a</think>{CALL}"
    assert parsed(text, Parsers(reasoning=None)) == Parsed(None, "<think>a</think>", (CALLED,))
    assert parsed(text, Parsers(tools=None)) == Parsed("a", CALL, ())
    assert parsed(text, Parsers(None, None)) == Parsed(None, text, ())


TAGS = st.sampled_from(["<think>", "</think>", "<tool_call>", "</tool_call>", CALL, "{}", "\n", " "])


@given(st.lists(TAGS | st.text(max_size=3)).map("".join), st.booleans(), st.booleans())
def test_no_text_breaks_the_parsers_and_all_they_give_can_be_sent(text, thinking, tools):
    parts = parsed(text, thinking=thinking, tools=tools)
    for name, arguments in parts.calls:
        assert isinstance(name, str)
        json.loads(arguments)
    assert "</think>" not in (parts.reasoning or "")
    if not thinking and "think>" not in text and not parts.calls:
        assert (parts.content or "") == text


# -------------------------------------------------------------------------------------------------------- the server


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return serving.write_chat_model(tmp_path_factory.mktemp("chat") / "model")


@pytest.fixture(scope="module")
def description():
    os.environ["SLUICE_TORCH_PYTHON"] = sys.executable
    try:
        return serving.embedded(serving.PROJECT)
    finally:
        del os.environ["SLUICE_TORCH_PYTHON"]


@pytest.fixture(scope="module")
def engine(model, description):
    with engines.start(description, model) as engine:
        yield engine


def ask(engine: engines.Engine, *bodies: dict[str, Any]) -> list[dict[str, Any]]:
    """The answers to requests that are sent at the same time."""

    async def all_at_once() -> list[dict[str, Any]]:
        async with connect(engine.base_url, concurrency=32) as client:
            return [reply.body for reply in await asyncio.gather(*(client.chat(each) for each in bodies))]

    return asyncio.run(all_at_once())


def questions(count: int, **how: Any) -> list[dict[str, Any]]:
    """Chats of very different lengths, every other one with a tool."""
    return [
        body(
            [{"role": "user", "content": f"{number} " * (1 + 7 * number % 20)}],
            tools=[PROBE] if number % 2 else None,
            max_tokens=5 + number,
            thinking=bool(number % 3),
            **how,
        )
        for number in range(count)
    ]


def test_batched_answers_equal_answers_one_at_a_time(engine):
    asked = questions(24)
    assert ask(engine, *asked) == [ask(engine, each)[0] for each in asked]


def test_a_seed_gives_the_same_sample_in_any_company(engine):
    asked = [each | {"seed": number % 3} for number, each in enumerate(questions(12, temperature=1.0))]
    together = ask(engine, *asked)
    assert together == [ask(engine, each)[0] for each in asked]
    assert together != ask(engine, *(each | {"seed": 77} for each in asked))


def test_an_answer_keeps_to_its_limit_and_says_that_it_was_cut(engine):
    for answer, number in zip(ask(engine, *questions(24)), range(24), strict=True):
        written = answer["usage"]["completion_tokens"]
        assert written <= 5 + number
        assert (answer["choices"][0]["finish_reason"] == "length") <= (written == 5 + number)


def test_forced_text_passes_through_the_parsers(engine):
    text = f"<think>\nwhy\n</think>\n\n{CALL}"
    how = {"max_tokens": 200, "thinking": True}
    (called,) = ask(engine, body(CHAT, tools=[PROBE], forced=text, **how))
    assert called["choices"][0]["finish_reason"] == "tool_calls"
    message = called["choices"][0]["message"]
    assert (message["reasoning"].strip(), message["content"]) == ("why", None)
    assert message["tool_calls"] == [{"type": "function", "function": {"name": "probe", "arguments": '{"days": 3}'}}]
    (cut,) = ask(engine, body(CHAT, forced=text, max_tokens=4, thinking=True))
    assert cut["choices"][0]["finish_reason"] == "length"
    assert cut["usage"]["completion_tokens"] == 4
    assert cut["choices"][0]["message"]["content"] is None


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"stop": ["x"]}, "stop"),
        ({"logprobs": True}, "logprobs"),
        ({"top_p": 0.9}, "top_p"),
        ({"top_k": 20}, "top_k"),
        ({"min_p": 0.1}, "min_p"),
        ({"repetition_penalty": 1.1}, "repetition_penalty"),
        ({"presence_penalty": 1}, "presence_penalty"),
        ({"frequency_penalty": 1}, "frequency_penalty"),
        ({"n": 2}, "n"),
        ({"stream": True}, "stream"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 10_000}, "1024"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "template"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "template"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"structured_outputs": {"choice": ["a", "b"]}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a"}}, "structured_outputs"),
    ],
)
def test_what_would_change_the_answer_and_is_not_supported_is_refused(engine, change, named):
    asked = body(CHAT, max_tokens=3, thinking=True) | change
    answer = httpx.post(f"{engine.base_url}/v1/chat/completions", json=asked, trust_env=False)
    assert answer.status_code == 400
    assert named in answer.json()["error"]["message"]


def test_a_refused_request_is_no_fault_of_the_infrastructure(engine):
    with pytest.raises(InvalidEvidence, match="refuses a request: 400"):
        ask(engine, body(CHAT, max_tokens=10_000, thinking=True))


def test_it_listens_on_this_machine_only(engine):
    port = int(engine.base_url.rpartition(":")[2])
    with socket.socket() as mine:  # had it taken every address, this one would be in use too
        mine.bind(("127.0.0.2", port))


def test_volatile_fields_are_left_out_and_nothing_else():
    raw = {
        "id": "1",
        "created": 2,
        "model": "m",
        "choices": [{"message": {"tool_calls": [{"id": "3", "type": "function"}], "content": None}, "index": 0}],
        "usage": {"completion_tokens": 1},
    }
    kept = without_volatile(json.loads(json.dumps(raw)))
    assert kept == {
        "choices": [{"message": {"tool_calls": [{"type": "function"}], "content": None}, "index": 0}],
        "usage": {"completion_tokens": 1},
    }
    assert without_volatile({"choices": [{"message": {"content": "\ud800"}}]}) is None
    assert without_volatile({"choices": 3}) == {"choices": 3}


# ----------------------------------------------------------------------------------------------------- FP8 checkpoints


def write_fp8(folder: Path) -> dict[str, Any]:
    """Turns the checkpoint in `folder` into block FP8, and returns the float32 matrices that it then stands for."""
    import torch
    from safetensors.torch import load_file, save_file

    from stages.quantize.fp8 import quantize_block

    written, meant, kept = {}, {}, []
    for name, weight in load_file(folder / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            cast, scales = quantize_block(weight, name=name)
            written |= {name: cast, f"{name}_scale_inv": scales}
            meant[name] = torch.empty(weight.shape)
            for (row, column), scale in zip(torch.ones_like(scales).nonzero().tolist(), scales.flatten(), strict=True):
                block = slice(128 * row, 128 * row + 128), slice(128 * column, 128 * column + 128)
                meant[name][block] = cast[block].float() * scale
        else:
            written[name], meant[name] = weight, weight.float()
            kept += [name.removesuffix(".weight")] * (weight.dim() == 2)
    save_file(written, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": kept,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return meant


def test_block_fp8_is_read_as_exactly_the_numbers_that_it_stands_for(tmp_path):
    import torch

    from stages.evaluate.server.model import Generator

    sizes = {"hidden_size": 256, "moe_intermediate_size": 128, "num_attention_heads": 2, "head_dim": 128}
    folder = serving.write_chat_model(tmp_path / "model", num_hidden_layers=2, num_experts=4, **sizes)
    meant = write_fp8(folder)
    loaded = dict(Generator(folder, device="cpu", dtype="float32").model.named_parameters())
    for name, weight in meant.items():
        expert = re.fullmatch(r"(.*\.experts)\.(\d+)\.(gate|up|down)_proj\.weight", name)
        found = loaded[name] if expert is None else None
        if expert:
            fused = loaded[f"{expert[1]}.{'down_proj' if expert[3] == 'down' else 'gate_up_proj'}"][int(expert[2])]
            found = fused if expert[3] == "down" else fused.chunk(2)[expert[3] == "up"]
        assert found.dtype == torch.float32
        assert torch.equal(found, weight), name


# -------------------------------------------------------------------------------------------------- starting, stopping


def refused(url: str) -> bool:
    try:
        httpx.get(f"{url}/health", trust_env=False)
    except httpx.ConnectError:
        return True
    except httpx.TransportError:
        return False  # it is just dying
    return False


def test_describing_the_engine_imports_nothing_heavy(description):
    assert description.engine == "embedded"
    assert "transformers 5" in description.version
    script = "import sys, stages.evaluate.embedded as e; e.describe(); print({'torch', 'fastapi'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=serving.PROJECT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


HOLD = """
import sys
from pathlib import Path
from stages.evaluate import engines
from tests.support import serving
project, model = map(Path, sys.argv[1:])
with engines.start(serving.embedded(project), model) as engine:
    print(engine.base_url, flush=True)
    sys.stdin.read()
"""


def test_nothing_is_left_when_the_stage_is_killed(model):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, serving.PROJECT, model],
        env=os.environ | {"SLUICE_TORCH_PYTHON": sys.executable, "PYTHONPATH": str(serving.PROJECT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with holder:
        url = holder.stdout.readline().strip()
        assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        deadline = time.monotonic() + 5
        while not refused(url):
            assert time.monotonic() < deadline, "the server outlives the stage"
            time.sleep(0.05)


def test_nothing_is_left_when_the_engine_is_stopped(model, description):
    with engines.start(description, model) as engine:
        engine.check()
    assert engine.server.process.poll() == -signal.SIGTERM
    assert refused(engine.base_url)


def test_a_server_that_ends_by_itself_is_noticed(model, description):
    with engines.start(description, model) as engine:
        engine.server.process.kill()
        engine.server.process.wait()
        with pytest.raises(InvalidEvidence, match="the server ended with -9"):
            engine.check()


def test_a_checkpoint_that_lacks_a_tensor_is_not_served(model, description, tmp_path):
    from safetensors.torch import load_file, save_file

    broken = shutil.copytree(model, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidEvidence, match=r"missing keys: model\.norm\.weight"), engines.start(description, broken):
        pass


def test_without_a_torch_environment_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("SLUICE_TORCH_PYTHON", str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="SLUICE_TORCH_PYTHON"):
        serving.embedded(tmp_path)


def test_a_broken_environment_is_told_from_none(tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 'no module named torch' >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setenv("SLUICE_TORCH_PYTHON", str(python))
    with pytest.raises(UsageError, match="no module named torch") as error:
        serving.embedded(tmp_path)
    assert "make envs" in error.value.remedy
