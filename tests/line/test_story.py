"""The story of one GPU, on the toy: what a narrow mix and a deep cut cost, and what is served in the end."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.line.conftest import STORY, Line, copy_project

LOADS = """
import sys, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
tokenizer = transformers.AutoTokenizer.from_pretrained(sys.argv[1])
text = tokenizer.apply_chat_template([{"role": "user", "content": "1+1"}], tokenize=False, add_generation_prompt=True)
ids = tokenizer(text, return_tensors="pt", add_special_tokens=False).input_ids
assert torch.isfinite(model(input_ids=ids).logits).all()
print(model.config.num_experts)
"""


def _percent(score: dict[str, float]) -> float:
    return 100 * score["points"] / score["of"]


def test_the_unpruned_toy_scores_95_or_more_on_every_skill_and_in_parameter_precision(told: Line) -> None:
    evidence = told.json("show", "toy")["evidence"].values()
    scores = {each["pack"]: each["totals"] for each in evidence}
    assert len(scores) == 4
    for pack, totals in scores.items():
        assert _percent(totals["overall"]) >= 95, pack
        assert totals["missing"] == 0
    assert _percent(scores["toy-toolcall"]["categories"]["Parameter Precision"]) >= 95


def test_the_narrow_mix_and_the_deep_cut_fail_the_tool_gate_and_the_broad_mix_passes(told: Line) -> None:
    verdicts = told.verdicts()
    assert verdicts["v2"] == verdicts["v7a"] == "FailToolcall"
    assert verdicts["v7b.prune"] == verdicts["v7b"] == "Pass"


def test_a_narrow_and_a_broad_mix_at_one_depth_isolate_the_mix(told: Line) -> None:
    found = told.json("compare", "v2", "v7b.prune")
    assert [each["field"] for each in found["differences"]] == ["prune.mix"]
    assert found["conclusion"] == "isolates the mix at equal depth"


def test_the_story_is_told_again_in_seconds_and_makes_nothing_new(told: Line) -> None:
    before = sorted(path for path in told.root.rglob("*") if "locks" not in path.parts)
    begun = time.monotonic()
    told.run("init")
    told.run("add", "toy", "stages/toy/checkpoint")
    again = told.run("run", *(f"recipes/toy/{name}.yaml" for name in STORY), expect=1)
    assert time.monotonic() - begun < 60
    assert [line.split()[:3] for line in again.stdout.splitlines()] == [
        ["recipe", "candidate", "verdict"],
        ["baseline", "toy", "-"],
        ["v2", "v2", "FailToolcall"],
        ["v7a", "v7a", "FailToolcall"],
        ["v7b", "v7b", "Pass"],
    ]
    assert sorted(path for path in told.root.rglob("*") if "locks" not in path.parts) == before


def test_nothing_is_promoted_that_did_not_pass(told: Line) -> None:
    refused = told.run("promote", "v2", "--channel", "never", "--policy", "policies/toy.yaml", expect=2)
    assert "FailToolcall" in refused.stderr
    assert not (told.root / "channels" / "never").exists()


def test_the_fp8_candidate_is_promoted_and_loads_in_transformers(told: Line, project: Path) -> None:
    best = told.root / "channels" / "best"
    assert best.resolve() == (told.root / "candidates" / "v7b" / "model").resolve()
    assert told.run("path", "best").stdout.strip() == str(best.resolve())
    assert told.json("show", "best")["manifest"]["shape"]["quantization"] == "fp8-block"
    python = project / ".venv-prune" / "bin" / "python"
    loaded = subprocess.run([python, "-c", LOADS, best.resolve()], capture_output=True, text=True, check=False)
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.strip() == "12"


def test_every_candidate_is_sound_to_the_last_byte(told: Line) -> None:
    told.run("verify", "--all")
    told.run("log", "--verify")


def test_with_the_mixes_swapped_the_verdicts_swap(told: Line, tmp_path: Path, project: Path) -> None:
    line = Line(copy_project(project, tmp_path / "project"), tmp_path / "models")
    line.run("init")
    line.run("add", "toy", str(project / "stages/toy/checkpoint"))
    for name, (mine, other) in {"v2": ("narrow", "broad"), "v7b": ("broad", "narrow")}.items():
        recipe = line.project / "recipes" / "toy" / f"{name}.yaml"
        recipe.write_text(recipe.read_text().replace(f"mixes/toy/{mine}.yaml", f"mixes/toy/{other}.yaml"))
    line.run("run", "recipes/toy/baseline.yaml", "recipes/toy/v2.yaml", "recipes/toy/v7b.yaml", expect=1)
    verdicts = line.verdicts()
    assert verdicts["v2"] == told.verdicts()["v7b.prune"] == "Pass"
    assert verdicts["v7b.prune"] == told.verdicts()["v2"] == "FailToolcall"
    assert "v7b" not in verdicts, "a recipe stops at the gate that fails"


def test_a_name_made_from_something_else_needs_replace(told: Line, tmp_path: Path, project: Path) -> None:
    line = Line(copy_project(project, tmp_path / "project"), tmp_path / "models")
    line.run("init")
    line.run("add", "toy", str(project / "stages/toy/checkpoint"))
    recipe = line.project / "recipes" / "toy" / "v2.yaml"
    recipe.write_text(
        "\n".join(text for text in recipe.read_text().splitlines() if "evaluate" not in text and "gate" not in text)
    )
    line.run("run", "recipes/toy/v2.yaml")
    first = line.digest("v2")
    assert first == told.digest("v2"), "the same work gives the same identity in another registry"
    recipe.write_text(recipe.read_text().replace("narrow", "broad"))
    refused = line.run("run", "recipes/toy/v2.yaml", expect=2)
    assert "mix.rows" in refused.stderr
    assert "--replace" in refused.stderr
    assert line.digest("v2") == first
    line.run("run", "recipes/toy/v2.yaml", "--replace")
    assert line.digest("v2") == told.digest("v7b.prune")


def test_a_renamed_recipe_makes_the_same_candidate_with_the_same_verdict(
    told: Line, tmp_path: Path, project: Path
) -> None:
    line = Line(copy_project(project, tmp_path / "project"), told.root)
    recipe = line.project / "recipes" / "toy" / "v2.yaml"
    recipe.write_text(recipe.read_text().replace("name: v2", "name: excellent"))
    line.run("run", "recipes/toy/v2.yaml", expect=1)
    assert line.digest("excellent") == told.digest("v2")
    assert line.verdicts()["excellent"] == told.verdicts()["v2"]


@pytest.mark.parametrize("seeds", [(1, 2, 3)])
def test_experts_chosen_at_random_fail_the_tool_gate_for_most_seeds(
    told: Line, tmp_path: Path, project: Path, seeds: tuple[int, ...]
) -> None:
    line = Line(copy_project(project, tmp_path / "project"), told.root)
    original = (line.project / "recipes" / "toy" / "v7a.yaml").read_text()
    names = [f"random-{seed}" for seed in seeds]
    for name, seed in zip(names, seeds, strict=True):
        text = original.replace("name: v7a", f"name: {name}").replace("compression: 0.5", "compression: 0.25")
        text = text.replace("criterion: reap", f"criterion: random, seed: {seed}")
        text = text.replace(
            "[toy-toolcall, toy-arithmetic, toy-facts, toy-strings]", "[toy-toolcall]"
        )  # all that counts
        assert "criterion: random" in text
        (line.project / "recipes" / "toy" / f"{name}.yaml").write_text(text)
    line.run("run", *(f"recipes/toy/{name}.yaml" for name in names), expect=1)
    verdicts = line.verdicts()
    assert sum(verdicts[name] == "FailToolcall" for name in names) > len(names) / 2, verdicts
