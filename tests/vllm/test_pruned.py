"""Pruned and merged checkpoints in the real vLLM: they load and answer; a head for multi-token prediction loads."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.needs("vllm")

PROMPT = list(range(10, 34))
TOKENS = 12
SPECULATIVE = {"method": "mtp", "num_speculative_tokens": 1}
WIDTHS = {"hidden_size": 128, "head_dim": 32, "moe_intermediate_size": 64}
"""What vLLM's kernels for the CPU take, here and below: they want heads of 32, and of 128 in linear attention."""
HYBRID = WIDTHS | {
    "shared_expert_intermediate_size": 64,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "mrope_interleaved": True,
        "mrope_section": [2, 1, 1],
    },
}


@pytest.fixture(scope="module")
def pruned(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Candidates of five experts out of eight, a broken one, and what transformers answers; made where torch is."""
    base = tmp_path_factory.mktemp("pruned")
    python = project / ".venv-prune" / "bin" / "python"
    code = "import sys; from tests.support.pruned import write; write(*sys.argv[1:])"
    words = [str(base), json.dumps(WIDTHS), json.dumps(HYBRID), json.dumps(PROMPT), str(TOKENS)]
    environment = os.environ | {"PYTHONPATH": str(project)}
    done = subprocess.run(
        [python, "-P", "-c", code, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return base


@pytest.fixture(scope="module")
def results(project: Path, pruned: Path) -> dict[str, dict[str, Any]]:
    """What vLLM makes of them, all in one process: importing it takes longer than the rest."""
    bfloat16: dict[str, Any] = {"dtype": "bfloat16", "enable_prefix_caching": False}  # its linear attention wants both
    jobs: dict[str, dict[str, Any]] = {
        "qwen3_moe": {"options": {"dtype": "float32"}, "prompt": PROMPT, "tokens": TOKENS},
        "merged": {"options": {"dtype": "float32"}, "prompt": PROMPT, "tokens": TOKENS},
        "qwen3_5_moe_text": {"options": bfloat16, "prompt": PROMPT, "tokens": TOKENS},
        "speculative": {"options": bfloat16 | {"speculative_config": SPECULATIVE}, "model": "qwen3_5_moe_text"},
        "broken": {"options": bfloat16 | {"speculative_config": SPECULATIVE}},
    }
    asked = [job | {"model": str(pruned / job.get("model", name))} for name, job in jobs.items()]
    script = project / "tests" / "support" / "vllm_offline.py"
    python = Path(os.environ["VLLM"]) / "bin" / "python"
    done = subprocess.run([python, script, json.dumps(asked)], capture_output=True, text=True, check=False)
    lines = [line.removeprefix("RESULT ") for line in done.stdout.splitlines() if line.startswith("RESULT ")]
    assert len(lines) == len(jobs), done.stderr[-4000:]
    return dict(zip(jobs, map(json.loads, lines), strict=True))


def test_a_pruned_qwen3_moe_answers_in_vllm_as_in_transformers(results: dict[str, Any], pruned: Path) -> None:
    assert results["qwen3_moe"]["tokens"] == json.loads((pruned / "answers.json").read_bytes())["qwen3_moe"]


def test_a_merged_candidate_answers_in_vllm_as_in_transformers(results: dict[str, Any], pruned: Path) -> None:
    answers = json.loads((pruned / "answers.json").read_bytes())
    assert results["merged"]["tokens"] == answers["merged"] != answers["qwen3_moe"]


def test_a_pruned_qwen3_5_moe_answers_in_vllm(results: dict[str, Any]) -> None:
    """In BF16, the only precision of its linear attention on a CPU: token for token nothing can be compared there."""
    tokens = results["qwen3_5_moe_text"]["tokens"]
    assert len(tokens) == TOKENS
    assert len(set(tokens)) > TOKENS // 2


def test_the_pruned_head_is_loaded_by_a_speculative_config(results: dict[str, Any]) -> None:
    """Loaded, not run: vLLM 0.32 corrupts its heap when it speculates on a CPU, with the unpruned source too."""
    assert results["speculative"] == {"loaded": True}


def test_a_head_with_all_its_experts_is_not_loaded_where_config_says_fewer(results: dict[str, Any]) -> None:
    assert "error" in results["broken"]
