"""The shell of every stage: which step it does when nobody says which."""

from __future__ import annotations

from pathlib import Path

import pytest

from gates.errors import UsageError
from registry.recipes import Recipe, read_recipe
from stages.common.stage import DEFAULT_RECIPE, chosen_step

PRUNE, EVALUATE_PRUNED, QUANTIZE, EVALUATE = 0, 1, 3, 4


@pytest.fixture
def recipe(project: Path) -> Recipe:
    """prune, evaluate, gate, quantize, evaluate, gate"""
    return read_recipe(project / DEFAULT_RECIPE)


@pytest.mark.parametrize(
    ("there", "candidate", "expected"),
    [
        (["toy"], None, EVALUATE_PRUNED),
        (["toy", "v7b.prune"], None, EVALUATE_PRUNED),
        (["toy", "v7b", "v7b.prune"], None, EVALUATE),
        (["toy", "v7b", "v7b.prune"], "v7b.prune", EVALUATE_PRUNED),
        (["toy", "v7b", "v7b.prune"], "v7b", EVALUATE),
        (["toy", "v7b.prune"], "toy", EVALUATE),
    ],
)
def test_of_several_evaluations_the_one_of_the_newest_candidate_is_done(
    recipe: Recipe, there: list[str], candidate: str | None, expected: int
) -> None:
    assert chosen_step("evaluate", recipe, None, candidate, there, where="here") == expected


def test_a_step_that_is_named_is_done_whatever_is_there(recipe: Recipe) -> None:
    everything = ["toy", "v7b", "v7b.prune"]
    assert chosen_step("evaluate", recipe, 2, None, everything, where="here") == EVALUATE_PRUNED
    assert chosen_step("prune", recipe, None, None, everything, where="here") == PRUNE
    assert chosen_step("quantize", recipe, None, None, [], where="here") == QUANTIZE


@pytest.mark.parametrize(("kind", "step"), [("evaluate", 1), ("prune", 9), ("train", None)])
def test_a_step_that_the_recipe_has_not_is_refused_with_those_that_it_has(
    recipe: Recipe, kind: str, step: int | None
) -> None:
    with pytest.raises(UsageError, match=kind) as caught:
        chosen_step(kind, recipe, step, None, [], where="here")
    assert "1 prune, 2 evaluate, 3 gate, 4 quantize" in str(caught.value)
