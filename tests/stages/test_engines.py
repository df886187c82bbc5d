"""Servers' flags: only what evidence states is set."""

from __future__ import annotations

import http.server
import json
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gates.errors import InvalidEvidence, UsageError
from registry.manifests import Shape
from registry.recipes import Evaluate
from registry.store import Candidate, Store
from stages.evaluate.engines import elsewhere, server, vllm

MODEL = {"id": "mine", "root": "/nowhere", "max_model_len": 1024}
SHAPE = Shape(family="qwen3_moe", layers=2, experts=4, top_k=2, quantization=None, tensor_bytes=0)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An environment that says it holds vLLM."""
    (tmp_path / "bin").mkdir()
    python, vllm_itself = tmp_path / "bin" / "python", tmp_path / "bin" / "vllm"
    python.write_text("#!/bin/sh\necho 0.32.0+cpu\n")
    vllm_itself.write_text(f"#!{python}\n")
    python.chmod(0o755)
    monkeypatch.setenv("VLLM", str(tmp_path))


@pytest.mark.usefixtures("program")
@pytest.mark.parametrize(
    "flag",
    [
        *("chat-template", "chat_template", "tokenizer", "served_model_name", "reasoning_parser", "port"),
        *("config", "trust_remote_code", "middleware"),
    ],
)
def test_a_flag_for_something_that_is_the_candidates_own_or_ours_or_runs_others_code_is_refused(flag: str) -> None:
    settings = Evaluate(packs=["any"], engine="vllm", server_flags={flag: "other"})
    with pytest.raises(UsageError, match=f"server_flags: {flag}"):
        vllm.describe(settings, Path(), SHAPE, where="a test")


class _Stranger(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b'{"data": [{"id": "candidate-of-somebody-else"}], "version": "0.32.0"}'
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_another_server_at_the_port_is_not_taken_for_ours() -> None:
    description = server.Description("vllm", "0.32.0", "cpu", "none", "none", {}, Path("vllm"))
    with http.server.HTTPServer(("127.0.0.1", 0), _Stranger) as other, tempfile.TemporaryFile() as log:
        threading.Thread(target=other.serve_forever, daemon=True).start()
        running = server.Server(None, log)  # type: ignore[arg-type]
        with pytest.raises(InvalidEvidence, match="another server answers"):
            vllm._confirm(
                running, f"http://127.0.0.1:{other.server_port}", description, served_as="candidate-of-this-one"
            )
        other.shutdown()


@pytest.fixture
def candidate(tmp_path: Path) -> Candidate:
    store = Store.init(tmp_path / "models")
    store.add("mine", Path("stages/toy/checkpoint"))
    return store.candidate("mine")


@contextmanager
def _telling(version: Any, *models: dict[str, Any], key: str | None = None) -> Iterator[str]:
    """A server that says this of itself, to whoever knows its key."""

    class Teller(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if key is None or self.headers["Authorization"] == f"Bearer {key}" else 401)
            self.end_headers()
            self.wfile.write(json.dumps({"/version": version, "/v1/models": {"data": models}}[self.path]).encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Teller) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{serving.server_port}"
        serving.shutdown()


VERSION = {"version": "0.32.0+cpu"}


def _described(candidate: Candidate, url: str, **settings: Any) -> server.Description:
    step = Evaluate(packs=["any"], **settings)
    return elsewhere.describe(step, candidate, url, longest=1024, where="a test")


def test_a_server_that_serves_the_candidate_by_its_name_or_from_its_folder_is_asked_as_that(
    candidate: Candidate,
) -> None:
    at_home = MODEL | {"id": "called-otherwise", "root": str(candidate.folder)}
    for model in (MODEL, at_home):
        with _telling(VERSION, MODEL | {"id": "another"}, model) as url:
            for spelled in (url, f"{url}/", f"{url}/v1", f"{url}/v1/"):
                found = _described(candidate, spelled, server_flags={"dtype": "float32"})
                assert (found.base_url, found.model) == (url, model["id"])
                assert (found.engine, found.version, found.device) == ("vllm", "0.32.0", None)
                assert found.server_flags == {"dtype": "float32"}


@pytest.mark.parametrize(
    ("version", "model", "settings", "words"),
    [
        ({}, MODEL, {}, "no vLLM server"),
        ("0.32.0", MODEL, {}, "no vLLM server"),
        (VERSION, MODEL | {"id": "another"}, {}, "does not serve mine, but another"),
        (VERSION, {"object": "model"}, {}, "does not serve mine, but nothing"),
        (VERSION, MODEL | {"max_model_len": 512}, {}, "holds 512 tokens, and not 1024"),
        (VERSION, MODEL, {"server_flags": {"max_model_len": 512}}, "holds 1024 tokens, and not 512"),
        (VERSION, MODEL, {"server_flags": {"chat-template": "other"}}, "server_flags: chat-template"),
        (VERSION, MODEL, {"engine": "embedded"}, "engine: embedded"),
    ],
)
def test_a_server_that_does_not_serve_the_candidate_as_the_step_says_is_refused(
    candidate: Candidate, version: Any, model: dict[str, Any], settings: dict[str, Any], words: str
) -> None:
    with _telling(version, model) as url, pytest.raises(UsageError, match=words):
        _described(candidate, url, **settings)


def test_a_key_is_told_to_the_server_alone(candidate: Candidate, monkeypatch: pytest.MonkeyPatch) -> None:
    with _telling(VERSION, MODEL, key="sekrit") as url:
        with pytest.raises(UsageError, match="wants a key"):
            _described(candidate, url)
        monkeypatch.setenv("SLUICE_API_KEY", "guessed")
        with pytest.raises(UsageError, match="refuses the key") as refused:
            _described(candidate, url)
        assert "guessed" not in str(refused.value)
        monkeypatch.setenv("SLUICE_API_KEY", "sekrit")
        found = _described(candidate, url)
        with elsewhere.start(found, candidate.folder) as engine:
            assert engine.key == "sekrit"
            assert "sekrit" not in f"{found!r} {engine!r}"


@pytest.mark.parametrize("address", ["127.0.0.1:8000", "ftp://127.0.0.1", "http://", "http://a:sekrit@127.0.0.1:8000"])
def test_an_address_with_a_password_or_of_no_server_is_refused_and_not_repeated(
    candidate: Candidate, address: str
) -> None:
    with pytest.raises(UsageError, match="no address of a server") as refused:
        _described(candidate, address)
    assert "sekrit" not in str(refused.value)
