"""The shell of every stage: which step it does when nobody says which."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gates.errors import UsageError
from registry.recipes import Recipe, read_recipe
from registry.store import Store
from stages.common import built
from stages.common.job import chosen_step

PROJECT = Path(__file__).parents[2]
EVALUATE_PARENT, PRUNE, EVALUATE_PRUNED, QUANTIZE, EVALUATE = 0, 1, 2, 4, 5
RECIPE = """\
name: mine
parent: toy
steps:
  - evaluate: {packs: [sums]}
  - prune: {compression: 0.25, mix: mixes/near.yaml}
  - evaluate: {packs: [sums]}
  - gate: {policy: policies/floor.yaml}
  - quantize: {}
  - evaluate: {packs: [sums]}
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    (tmp_path / "mine.yaml").write_text(RECIPE)
    return read_recipe(tmp_path / "mine.yaml")


@pytest.mark.parametrize(
    ("there", "candidate", "expected"),
    [
        ([], None, EVALUATE_PARENT),
        (["toy"], None, EVALUATE_PARENT),
        (["toy", "mine.prune"], None, EVALUATE_PRUNED),
        (["toy", "mine", "mine.prune"], None, EVALUATE),
        (["toy", "mine", "mine.prune"], "mine.prune", EVALUATE_PRUNED),
        (["toy", "mine", "mine.prune"], "mine", EVALUATE),
        (["toy", "mine", "mine.prune"], "toy", EVALUATE_PARENT),
        (["toy", "mine", "another"], "another", EVALUATE),
    ],
)
def test_of_several_evaluations_the_one_of_the_newest_candidate_is_done(
    recipe: Recipe, there: list[str], candidate: str | None, expected: int
) -> None:
    assert chosen_step("evaluate", recipe, None, candidate, there, where="here") == expected


def test_a_step_that_is_named_is_done_whatever_is_there(recipe: Recipe) -> None:
    everything = ["toy", "mine", "mine.prune"]
    assert chosen_step("evaluate", recipe, 3, None, everything, where="here") == EVALUATE_PRUNED
    assert chosen_step("prune", recipe, None, None, everything, where="here") == PRUNE
    assert chosen_step("quantize", recipe, None, None, [], where="here") == QUANTIZE


@pytest.mark.parametrize(("kind", "step"), [("evaluate", 2), ("prune", 9), ("train", None)])
def test_a_step_that_the_recipe_has_not_is_refused_with_those_that_it_has(
    recipe: Recipe, kind: str, step: int | None
) -> None:
    with pytest.raises(UsageError, match=kind) as caught:
        chosen_step(kind, recipe, step, None, [], where="here")
    assert "1 evaluate, 2 prune, 3 evaluate, 4 gate, 5 quantize, 6 evaluate" in str(caught.value)


def _stage(kind: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"stages.{kind}", *words]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)


def test_a_step_whose_input_is_not_made_yet_says_what_makes_it(tmp_path: Path) -> None:
    Store.init(tmp_path)
    (tmp_path / "mine.yaml").write_text(RECIPE)
    done = _stage("quantize", "--root", str(tmp_path), "--recipe", str(tmp_path / "mine.yaml"))
    assert done.returncode == 2
    assert "mine.prune, from which step 5 starts, is not made yet" in done.stderr
    assert f"registry run {tmp_path / 'mine.yaml'} does all steps" in done.stderr


def test_training_with_nothing_said_takes_the_toy_in_and_names_what_comes_before(tmp_path: Path) -> None:
    done = _stage("train", "--root", str(tmp_path / "models"))
    assert done.returncode == 2
    assert "repaired.prune, from which step 3 starts, is not made yet" in done.stderr
    assert "registry run recipes/toy/repaired.yaml does all steps" in done.stderr
    assert Store.open(tmp_path / "models").names() == ["toy"]


@pytest.mark.parametrize(("kind", "offered"), [("prune", ["--preflight", "--freeze"]), ("quantize", [])])
def test_help_offers_what_the_stage_can_do_and_nothing_else(kind: str, offered: list[str]) -> None:
    words = ["--preflight", "--freeze", "--rescore", "--unsafe-local-execution", "--rehearse", "--prove-only"]
    shown = _stage(kind, "--help").stdout
    assert "--device" in shown
    options = shown.partition("Options:")[2]
    assert [word for word in words if f"  {word} " in options] == offered


def test_an_image_that_was_built_from_other_code_is_told_from_the_folder(project: Path, tmp_path: Path) -> None:
    assert built.differing(project, project) == []
    assert built.differing(tmp_path, project) == [], "a project without code"
    for package in built.PACKAGES:
        shutil.copytree(project / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    assert built.differing(project, tmp_path) == []
    (tmp_path / "registry" / "store.py").write_text("changed")
    (tmp_path / "gates" / "units.py").unlink()
    (tmp_path / "stages" / "another.py").write_text("")
    assert built.differing(project, tmp_path) == ["gates/units.py", "registry/store.py", "stages/another.py"]
