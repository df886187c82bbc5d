"""Of two candidates that differ in several things, the control is named: the one that is there, or how to make it."""

from __future__ import annotations

import re
from pathlib import Path

from hypothesis import assume, given
from hypothesis import strategies as st

from gates.strict_yaml import parse
from registry.controls import Control, Side, controls
from registry.history import Chain, differences, settings
from registry.recipes import Recipe
from tests.support.histories import base, derive, digest, prune, quantize, side, train

QWEN = side("qwen3.6-35b-a3b", base(source="hf://Qwen/Qwen3.6-35B-A3B", revision="0123abc"))
V3 = side("v3", quantize(prune(QWEN.chain, "0.289", "v3")))
MIX_A = side("mix-a", quantize(prune(QWEN.chain, "0.40", "mix-a")))
MIX_B = side("mix-b", quantize(prune(QWEN.chain, "0.40", "mix-b")))
V3RATIO = side("v3ratio", quantize(prune(QWEN.chain, "0.289", "mix-a")))
STORY = [QWEN, V3, MIX_A, MIX_B]


def test_the_control_of_v3_and_mix_a_is_the_mix_of_mix_a_at_0_289():
    """As the one-GPU story found out: depth was blamed for what the mix had done."""
    for left, right in ((V3, MIX_A), (MIX_A, V3)):
        (missing,) = controls(left, right, STORY, packs=["toolcall-15"])
        assert missing.name is None
        assert re.fullmatch(
            r"mix as mix-a: mix-a \(\w{12}\); depth as v3: 0\.289 \(183 of 256 experts\)", missing.takes
        )
        assert missing.tells == {"v3": "isolates the mix at equal depth", "mix-a": "isolates the depth with one mix"}
        recipe = parse(missing.recipe or "", Recipe, where="printed")
        assert recipe.parent == "qwen3.6-35b-a3b"
        assert [step.kind for step in recipe.steps] == ["prune", "quantize", "evaluate"]
        assert (str(recipe.steps[0].settings.compression), recipe.steps[0].settings.mix) == (
            "0.289",
            "mixes/mix-a.yaml",
        )


def test_a_control_that_is_there_is_named_instead():
    (there,) = controls(V3, MIX_A, [*STORY, V3RATIO])
    assert (there.name, there.recipe) == ("v3ratio", None)
    assert there.tells == {"v3": "isolates the mix at equal depth", "mix-a": "isolates the depth with one mix"}


def test_the_other_corner_is_a_control_too():
    other = side("deep-v3", quantize(prune(QWEN.chain, "0.40", "v3")))
    (there,) = controls(V3, MIX_A, [*STORY, other])
    assert there.name == "deep-v3"
    assert there.tells == {"v3": "isolates the depth with one mix", "mix-a": "isolates the mix at equal depth"}


def test_the_control_of_two_trained_candidates_is_a_recipe_that_can_be_run():
    cut = prune(QWEN.chain, "0.289", "v3")
    left, right = side("a", quantize(train(cut, "sft-a"))), side("b", quantize(train(cut, "sft-b", experts="bf16")))
    (missing,) = controls(left, right, [QWEN])
    recipe = parse(missing.recipe or "", Recipe, where="printed")
    assert [step.kind for step in recipe.steps] == ["prune", "train", "quantize"]
    settings = recipe.steps[1].settings
    assert (settings.mix, settings.reference) == ("mixes/sft-b.yaml", "mixes/held-out.yaml")
    assert (settings.experts, settings.lora.rank, settings.seed) == ("nf4", 16, 0)


def test_the_control_of_two_trainings_of_another_length_is_a_recipe_that_states_one_length():
    cut = prune(QWEN.chain, "0.289", "v3")
    left, right = side("a", train(cut, "sft", max_steps=20)), side("b", train(cut, "sft", epochs="2", experts="bf16"))
    (missing,) = controls(left, right, [QWEN])
    settings = parse(missing.recipe or "", Recipe, where="printed").steps[1].settings
    assert (settings.experts, settings.max_steps) in {("bf16", 20), ("nf4", None)}
    assert len(missing.tells) == 2


def test_a_control_that_has_several_names_is_named_once():
    again = side("again", V3RATIO.chain)
    assert [each.name for each in controls(V3, MIX_A, [*STORY, V3RATIO, again])] == ["v3ratio"]


def test_a_step_that_one_side_lacks_is_named_without_its_settings():
    """They stand in the comparison."""
    cut = prune(QWEN.chain, "0.289", "v3")
    (there,) = controls(QWEN, side("sft", train(cut, "sft")), [QWEN, side("cut", cut)])
    assert there.takes == "prune as sft; training as qwen3.6-35b-a3b: none"


def test_one_difference_needs_no_control():
    assert controls(V3, V3RATIO, STORY) == []
    assert controls(V3, V3, STORY) == []


def test_a_candidate_of_another_depth_or_before_it_was_quantised_is_no_control():
    third = side("third", quantize(prune(QWEN.chain, "0.35", "mix-a")))
    unquantised = side("v3ratio.prune", V3RATIO.chain[1:])
    (missing,) = controls(V3, MIX_A, [*STORY, third, unquantised])
    assert missing.name is None


def test_a_control_starts_from_what_is_made_already():
    """v7b and v3 in FP8 differ in mix and criterion; the control's own prune is new, its base is not."""
    named = side("tuned", derive(QWEN.chain, "chat_template.jinja", "v19"))
    left = side("left", prune(named.chain, "0.25", "v3"))
    right = side("right", prune(named.chain, "0.4", "mix-a"))
    (missing,) = controls(left, right, [QWEN, named, left, right])
    assert parse(missing.recipe or "", Recipe, where="printed").parent == "tuned"


def test_a_base_model_without_a_name_is_asked_for():
    (missing,) = controls(V3, MIX_A, [V3, MIX_A])
    assert f"# the base model {QWEN.chain[0][0][:12]} has no name here" in (missing.recipe or "")


def test_the_file_of_a_mix_is_named_where_it_is_known():
    (missing,) = controls(V3, MIX_A, STORY, mixes={"mix-a": "mixes/story/a.yaml"})
    assert "mix: mixes/story/a.yaml" in (missing.recipe or "")


CONTENTS = ("v18", "v19", "qwen's own", "glm's own")

SETTINGS = st.fixed_dictionaries(
    {
        "depth": st.sampled_from(["0.25", "0.289", "0.40"]),
        "mix": st.sampled_from(["v3", "mix-a"]),
        "criterion": st.sampled_from(["reap", "frequency"]),
        "length": st.sampled_from([2048, 16384]),
        "second": st.sampled_from([None, "v3", "mix-a"]),
        "quantized": st.booleans(),
        "template": st.sampled_from([None, "v18", "v19"]),
        "early": st.booleans(),
        "base": st.sampled_from(["qwen", "glm"]),
    }
)


def made(given: dict) -> Chain:
    chain = base(given["base"])
    if given["template"] and given["early"]:
        chain = derive(chain, "chat_template.jinja", given["template"])
    chain = prune(chain, given["depth"], given["mix"], criterion=given["criterion"], sequence_length=given["length"])
    if given["second"]:
        chain = prune(chain, "0.25", given["second"])
    if given["quantized"]:
        chain = quantize(chain)
    if given["template"] and not given["early"]:
        chain = derive(chain, "chat_template.jinja", given["template"])
    return chain


def followed(control: Control, sides: list[Side]) -> Chain:
    """What comes of doing what a control's recipe says, by names, as a person would."""
    known = {each.name: each.chain for each in sides}
    chain: Chain = ()
    documents = re.split(r"(?m)^(?:---\n|(?=# then: registry derive|name: ))", control.recipe or "")
    for document in filter(str.strip, documents):
        if derived := re.match(r"# then: registry derive (\S+) (\S+) --replace (\S+)=PATH  # (\w{12})", document):
            source, name, file, start = derived.groups()
            (content,) = (text for text in CONTENTS if digest(text).startswith(start))
            chain = known[name] = derive(known[source], file, content)
            continue
        recipe = parse(document, Recipe, where="printed")
        chain = known[recipe.parent]
        for step in recipe.steps:
            if step.prune:
                chain = prune(
                    chain,
                    str(step.prune.compression),
                    Path(step.prune.mix).stem,
                    criterion=step.prune.criterion,
                    sequence_length=step.prune.sequence_length,
                )
            elif step.quantize:
                chain = quantize(chain)
        known[recipe.name] = chain
    return chain


@given(one=SETTINGS, other=SETTINGS)
def test_whoever_follows_the_recipe_gets_the_control(one, other):
    left, right = side("left", made(one)), side("right", made(other))
    sides = [side("qwen", base("qwen")), side("glm", base("glm")), left, right]
    assume(len(differences(settings(left.chain), settings(right.chain))) > 1)
    for control in controls(left, right, sides):
        assert set(control.tells) == {"left", "right"}
        assert control.name is None
        again = controls(left, right, [*sides, side("control", followed(control, sides))])
        assert [each.name for each in again] == ["control"], control.recipe
        assert again[0].tells == control.tells
