"""What is served is served as it was judged; where that is not known, nothing is guessed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gates import canonical
from gates.errors import UsageError
from registry import judging, leases, locks, promotion, serving
from registry.store import Store
from tests.support import stores
from tests.support.scores import header, right, written

VLLM: dict[str, Any] = {"engine": "vllm", "engine_version": "0.32.0", "tool_parser": "qwen3_coder"}
FLAGS = {"max-model-len": 4096, "enforce-eager": True, "enable-prefix-caching": False, "a.b": True}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.init(tmp_path / "models")
    stores.add(store, "v7b", tmp_path)
    return store


@pytest.fixture
def scored(store: Store) -> Callable[..., str]:
    """Records evidence on v7b, all right, under conditions with these changes."""

    def record(**changes: Any) -> str:
        rows, responses = right(9, 10), b'{"raw":"response"}\n'
        evidence = header(rows, pack=stores.PACK, candidate=store.candidate("v7b").digest, **changes)
        evidence = evidence.model_copy(update={"responses": canonical.digest(responses)})
        return store.add_evidence(evidence, rows=written(rows), responses=responses, timings={})

    return record


def promote(store: Store, folder: Path) -> None:
    policy = stores.write_policy(folder / "policy.yaml")
    judging.judge(store, "v7b", policy=judging.read_policy(policy), baseline=None)
    promotion.promote(store, "v7b", policy=judging.read_policy(policy))


def test_the_command_has_every_flag_of_the_evidence_and_the_folder_resolved(
    store: Store, tmp_path: Path, scored: Callable[..., str]
) -> None:
    scored(**VLLM, server_flags=FLAGS)
    promote(store, tmp_path)
    assert serving.command(store, "best", port=9) == [
        *("serve", str(store.layout.model("v7b")), "--host", "127.0.0.1", "--port", "9"),
        *("--served-model-name", "best", "--reasoning-parser", "qwen3"),
        *("--enable-auto-tool-choice", "--tool-call-parser", "qwen3_coder"),
        *("--a.b", "true", "--no-enable-prefix-caching", "--enforce-eager", "--max-model-len", "4096"),
    ]


def test_a_parser_that_was_switched_off_stays_off(store: Store, scored: Callable[..., str]) -> None:
    scored(**VLLM | {"reasoning_parser": "none", "tool_parser": "none"})
    flags = [word for word in serving.command(store, "v7b") if word.startswith("--")]
    assert flags == ["--host", "--port", "--served-model-name", "--dtype"]


def test_a_channel_is_served_by_what_its_verdict_rests_on_and_not_by_later_evidence(
    store: Store, tmp_path: Path, scored: Callable[..., str]
) -> None:
    scored(**VLLM, server_flags=FLAGS)
    scored()  # the embedded engine's: judged too, and says nothing about vLLM
    promote(store, tmp_path)
    before = serving.command(store, "best")
    scored(**VLLM, server_flags={"max-model-len": 8})
    assert serving.command(store, "best") == before
    with pytest.raises(UsageError, match="more than one server_flags"):
        serving.command(store, "v7b")


@pytest.mark.parametrize("changes", [{}, VLLM | {"server_flags": None}])
def test_flags_are_not_guessed(store: Store, scored: Callable[..., str], changes: dict[str, Any]) -> None:
    scored(**changes)
    with pytest.raises(UsageError, match="no evidence") as caught:
        serving.command(store, "v7b")
    assert "evaluate v7b on vLLM" in str(caught.value)


def test_the_server_of_registry_serve_holds_the_device_until_it_ends(
    store: Store, tmp_path: Path, scored: Callable[..., str]
) -> None:
    scored(**VLLM, server_flags=FLAGS)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "vllm"
    program.write_text("#!/bin/sh\necho started\nexec sleep 60\n")
    program.chmod(0o755)
    command = [sys.executable, "-m", "registry", "serve", "v7b", "--root", str(store.layout.root)]
    environment = os.environ | {"VLLM": str(tmp_path), "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as server:
        assert server.stdout is not None
        server.stdout.readline()
        holder = leases.holder(store.layout.lease("cpu"))
        assert locks.held(store.layout.lease("cpu"))
        server.kill()
    with leases.hold(store.layout, ["cpu"], leases.Claim("next"), wait=5):
        pass
    assert holder is not None
    assert (holder.what, holder.manifest) == ("serve v7b", store.candidate("v7b").digest)


@pytest.mark.parametrize("flag", ["trust-remote-code", "trust_remote_code", "trust-rem", "middleware", "config"])
def test_nothing_is_served_under_a_flag_that_runs_code_from_elsewhere(
    store: Store, scored: Callable[..., str], flag: str
) -> None:
    """The evidence may have come with the model, from anybody."""
    scored(**VLLM, server_flags=FLAGS | {flag: True})
    with pytest.raises(UsageError, match="runs code from elsewhere"):
        serving.command(store, "v7b")
