"""Servers' flags: only what evidence states is set."""

from __future__ import annotations

import http.server
import tempfile
import threading
from pathlib import Path

import pytest

from gates.errors import InvalidEvidence, UsageError
from registry.manifests import Shape
from registry.recipes import Evaluate
from stages.evaluate.engines import server, vllm

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
