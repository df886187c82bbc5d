"""The shell of every stage: which step it does when nobody says which."""

from __future__ import annotations

from pathlib import Path

import pytest

from gates.errors import UsageError
from registry.recipes import Recipe, read_recipe
from stages.common.stage import chosen_step

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
