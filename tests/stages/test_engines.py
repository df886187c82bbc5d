"""Servers' processes and flags: only what is ours is ended, and only what evidence states is set."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gates.errors import InvalidEvidence, UsageError
from registry.manifests import Shape
from registry.recipes import Evaluate
from stages.evaluate.engines import server, vllm

SHAPE = Shape(family="qwen3_moe", layers=2, experts=4, top_k=2, quantization=None, tensor_bytes=0)
NAMED = "import ctypes, time; ctypes.CDLL(None).prctl(15, {name!r}); print(flush=True); time.sleep(60)"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A temporary folder of this test's own, where notes lie."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, whose name was cut in the middle of a letter."""
    code = NAMED.format(name="überwachungsgerä".encode()[:15])
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    with process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def note(session: int, *, started: int = 1) -> Path:
    """A note whose owner is gone."""
    path = server._notes() / f"{session}.json"
    facts = {"session": session, "started": started, "owner": 2**22 + 1, "owner_started": 1, "boot": server._boot()}
    path.write_text(json.dumps(facts))
    return path


def test_a_process_of_any_name_is_read(stranger: subprocess.Popen[bytes]) -> None:
    assert server._members(stranger.pid) == [stranger.pid]
    assert server._started(stranger.pid)


@pytest.mark.usefixtures("temporary")
def test_a_number_given_out_again_is_a_stranger_and_is_left_alone(stranger: subprocess.Popen[bytes]) -> None:
    left = note(stranger.pid)
    server.end_leftovers()
    assert stranger.poll() is None
    assert not left.exists()


@pytest.mark.usefixtures("temporary")
def test_what_an_owner_that_is_gone_has_left_is_ended(stranger: subprocess.Popen[bytes]) -> None:
    note(stranger.pid, started=server._started(stranger.pid) or 0)
    server.end_leftovers()
    assert stranger.wait(5) < 0


@pytest.mark.usefixtures("temporary")
@pytest.mark.parametrize("session", [-1, 0, 1])
def test_a_note_that_names_no_session_ends_nothing(session: int) -> None:
    note(session, started=server._started(1) or 0)
    server.end_leftovers()  # a signal to 0 would have ended this test


def test_notes_that_others_could_have_written_are_refused(temporary: Path) -> None:
    folder = temporary / f"sluice-{os.getuid()}"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(UsageError, match="yours alone"):
        server.end_leftovers()
    folder.rmdir()
    folder.symlink_to(temporary)
    with pytest.raises(UsageError, match="yours alone"):
        server.end_leftovers()


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
