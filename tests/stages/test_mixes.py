"""The mixes and recipes of the one-GPU story: they read, take what the record says, and tell the story again."""

from __future__ import annotations

from pathlib import Path

import pytest

from gates.errors import UsageError
from registry.controls import Side, controls
from registry.history import Chain, conclusion, differences, settings
from registry.recipes import Mix, read_mix, read_recipe
from stages.common import calibration
from stages.common.calibration.adapters import ADAPTERS
from tests.support.histories import base, prune, quantize, side

PROJECT = Path(__file__).resolve().parents[2]
MIXES = {path.stem: read_mix(path) for path in sorted((PROJECT / "mixes").glob("*.yaml"))}
RECIPES = {path.stem: read_recipe(path) for path in sorted((PROJECT / "recipes").glob("*.yaml"))}


def counts(mix: Mix) -> dict[str, int]:
    """Rows by adapter."""
    found: dict[str, int] = {}
    for dataset in mix.datasets:
        found[dataset.adapter] = found.get(dataset.adapter, 0) + dataset.count
    return found


def made(name: str) -> Side:
    """What the recipe makes."""
    recipe = RECIPES[name]
    chain: Chain = base(recipe.parent)
    for step in recipe.steps:
        if step.prune:
            mix = read_mix(PROJECT / step.prune.mix).name
            chain = prune(
                chain,
                str(step.prune.compression),
                mix,
                sequence_length=step.prune.sequence_length,
                renormalize_router=step.prune.renormalize_router,
            )
        elif step.quantize:
            chain = quantize(chain)
    return side(name, chain)


def test_all_of_the_story_is_there():
    assert MIXES.keys() == {"v2", "v3", "mix-a", "mix-b", "reap-26b", "50-50"}
    assert RECIPES.keys() == {"v2", "v3", "mix-a", "mix-b", "v3ratio", "v7a", "v7b", "v7c", "50-50"}
    assert all(recipe.name == name for name, recipe in RECIPES.items())
    assert all(mix.name == name for name, mix in MIXES.items())


@pytest.mark.parametrize("name", MIXES)
def test_every_dataset_of_a_mix_has_an_adapter(name):
    assert {dataset.adapter for dataset in MIXES[name].datasets} <= ADAPTERS.keys()


def test_the_mixes_take_what_the_record_says():
    code = ("evol_codealpaca", "bigcodebench", "swe_bench", "xlam")
    assert counts(MIXES["v2"]) == dict.fromkeys(code, 700)
    assert counts(MIXES["v3"]) == dict.fromkeys(code, 700) | {"mmlu": 600, "c4": 600}
    assert counts(MIXES["50-50"]) == dict.fromkeys(code, 500) | {"mmlu": 1000, "c4": 1000}
    assert sum(counts(MIXES["reap-26b"]).values()) == 1024
    assert counts(MIXES["reap-26b"]).keys() == {"swe_smith", "xlam", "evol_codealpaca", "mixture_of_thoughts"}
    assert MIXES["mix-b"].datasets[:6] == MIXES["v3"].datasets
    assert MIXES["mix-b"].datasets[6:] == MIXES["mix-a"].datasets


def test_what_asks_for_an_account_says_so():
    stated = {dataset.hub: dataset.gated for mix in MIXES.values() for dataset in mix.datasets}
    assert [hub for hub, gated in stated.items() if gated] == ["Salesforce/xlam-function-calling-60k"]


@pytest.mark.parametrize("name", ["mix-a", "mix-b"])
def test_a_mix_whose_datasets_are_not_known_for_sure_is_refused_with_what_to_fill_in(name):
    with pytest.raises(UsageError, match="not known for sure") as caught:
        calibration.take(f"mixes/{name}.yaml", PROJECT)
    assert f"mixes/{name}.yaml, datasets[" in str(caught.value.where)


def test_the_recipes_tell_the_story_again():
    def told(one: str, other: str) -> str:
        return conclusion(differences(settings(made(one).chain), settings(made(other).chain)))

    assert told("v2", "v3") == told("v3", "v3ratio") == told("v3", "50-50") == "isolates the mix at equal depth"
    assert told("mix-a", "v3ratio") == told("v7a", "v7b") == "isolates the depth with one mix"
    assert told("v3", "mix-a").startswith("confounded: the depth and the mix differ")
    assert told("v3", "v7b").startswith("confounded"), "the sequence length and the router's weights differ too"


def test_the_control_of_v3_and_mix_a_is_v3ratio():
    candidates = [made(name) for name in RECIPES]
    found = controls(made("v3"), made("mix-a"), candidates)
    assert [each.name for each in found] == ["v3ratio"]
    without = [each for each in candidates if each.name != "v3ratio"]
    (missing,) = controls(made("v3"), made("mix-a"), [*without, side("qwen3.6-35b-a3b", base("qwen3.6-35b-a3b"))])
    assert "compression: 0.289" in (missing.recipe or "")
    assert "mix: mixes/mix-a.yaml" in (missing.recipe or "")
