"""In which decisions two candidates differ, and what that lets anybody conclude."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import history
from registry.history import Chain, Difference, conclusion, differences, settings
from tests.support.histories import base, derive, prune, quantize, train

QWEN = base()
V3 = quantize(prune(QWEN, "0.289", "v3"))
MIX_A = quantize(prune(QWEN, "0.40", "mix-a"))
V3RATIO = quantize(prune(QWEN, "0.289", "mix-a"))


def between(left: Chain, right: Chain) -> list[Difference]:
    return differences(settings(left), settings(right))


@pytest.mark.parametrize(
    ("left", "right", "concluded"),
    [
        (V3, V3, "the same work: nothing that made them differs"),
        (V3, V3RATIO, "isolates the mix at equal depth"),
        (MIX_A, V3RATIO, "isolates the depth with one mix"),
        (
            V3,
            MIX_A,
            "confounded: the depth and the mix differ, so no difference in scores can be put down to one of them",
        ),
        (V3, V3[1:], "isolates the quantisation: nothing else differs"),
        (QWEN, V3[1:], "isolates the prune: nothing else differs"),
        (V3, derive(V3, "chat_template.jinja", "v19"), "isolates the chat template: nothing else differs"),
        (
            V3,
            quantize(prune(QWEN, "0.289", "v3", criterion="frequency")),
            "isolates the criterion: nothing else differs",
        ),
        (
            prune(QWEN, "0.289", "v3", code="prune-1"),
            prune(QWEN, "0.289", "v3", code="prune-2"),
            "isolates the code revision: nothing else differs",
        ),
        (prune(base("a"), "0.5", "v3"), prune(base("b"), "0.5", "v3"), "isolates the base model: nothing else differs"),
    ],
)
def test_what_can_be_concluded_from_a_comparison(left, right, concluded):
    assert conclusion(between(left, right)) == concluded
    back = conclusion(between(right, left))
    assert back == concluded


@pytest.mark.parametrize(
    ("one", "other", "word"),
    [
        ({}, {"experts": "bf16"}, "precision of the frozen experts"),
        ({"double_quantization": True}, {"experts": "bf16"}, "precision of the frozen experts"),
        ({"double_quantization": True}, {"double_quantization": False}, "precision of the frozen experts"),
        ({"max_steps": 20}, {"epochs": "1"}, "length of training"),
        ({"max_steps": 20}, {"max_steps": 40}, "length of training"),
        ({}, {"mix": "other"}, "training mix"),
        ({}, {"reference": "other"}, "reference answers"),
        ({}, {"lora": {"rank": 8}}, "LoRA settings"),
        ({}, {"learning_rate": "0.1"}, "learning rate of training"),
    ],
)
def test_one_decision_about_a_training_is_one_difference_however_many_settings_state_it(one, other, word):
    cut = prune(QWEN, "0.289", "v3")
    found = between(*(train(cut, given.pop("mix", "sft"), **given) for given in (dict(one), dict(other))))
    assert [each.word for each in found] == [word]


def test_with_experts_in_bf16_nothing_is_left_of_how_their_scales_would_be_quantised():
    cut = prune(QWEN, "0.289", "v3")
    one, other = (train(cut, "sft", experts="bf16", double_quantization=chosen) for chosen in (True, False))
    assert between(one, other) == []


def test_the_same_reference_answers_under_another_name_are_the_same():
    cut = prune(QWEN, "0.289", "v3")
    names = ({"name": name, "rows": "a" * 64} for name in ("held-out", "again"))
    assert between(*(train(cut, "sft", reference=each) for each in names)) == []


def test_what_a_step_did_is_told_without_what_the_steps_before_it_did():
    chain = quantize(derive(train(prune(QWEN, "0.289", "v3"), "sft"), "chat_template.jinja", "v19"))
    told = [history.told(chain, number) for number in range(len(chain))]
    assert told[0] == {"quantisation": "fp8-block", "code revision": "quantize-1"}
    assert list(told[1]) == ["chat template"]
    assert told[2]["precision of the frozen experts"] == "nf4"
    assert told[2]["LoRA settings"] == "rank 16, alpha 32, dropout 0"
    assert told[2]["training mix"].startswith("sft (")
    assert not told[2].keys() & {"depth", "mix", "criterion"}
    assert told[3]["depth"] == "0.289 (183 of 256 experts)"
    assert list(told[4]) == ["base model"]


def test_of_the_second_prune_its_own_depth_is_told():
    chain = prune(prune(QWEN, "0.289", "v3"), "0.5", "v3")
    assert history.told(chain, 0)["depth"] == "0.5 (92 of 183 experts)"


def test_a_difference_shows_the_depth_with_its_experts_and_the_mix_with_its_rows():
    depth, mix = between(V3, MIX_A)
    assert (depth.field, depth.left, depth.right) == (
        "prune.compression",
        "0.289 (183 of 256 experts)",
        "0.40 (154 of 256 experts)",
    )
    assert mix.field == "prune.mix"
    assert str(mix.right).startswith("mix-a (")


def test_two_depths_that_keep_as_many_experts_are_one_depth():
    assert between(prune(QWEN, "0.289", "v3"), prune(QWEN, "0.2885", "v3")) == []


def test_the_same_rows_under_another_name_are_the_same_mix():
    one = prune(QWEN, "0.289", "v3")
    inputs = one[0][1].inputs
    assert inputs.mix is not None
    renamed = inputs.model_copy(update={"mix": inputs.mix.model_copy(update={"name": "v3-again"})})
    other = one[0][1].model_copy(update={"inputs": renamed})
    assert between(one, ((other.identity(), other), *QWEN)) == []


def test_the_same_files_from_a_folder_and_from_the_hub_are_one_base_model():
    hub = base(source="hf://Qwen/Qwen3.6-35B-A3B", revision="0123abc")
    assert between(prune(hub, "0.289", "v3"), prune(QWEN, "0.289", "v3")) == []
    assert settings(hub)["base"].value == "hf://Qwen/Qwen3.6-35B-A3B@0123abc"


def test_a_template_replaced_before_the_prune_is_another_than_one_replaced_after_it():
    """Calibration rows are rendered by it, so the prune saw something else."""
    before = prune(derive(QWEN, "chat_template.jinja", "v19"), "0.289", "v3")
    after = derive(prune(QWEN, "0.289", "v3"), "chat_template.jinja", "v19")
    (difference,) = between(before, after)
    assert (difference.field, difference.word) == (
        "prune.calibrated.chat_template.jinja",
        "chat template of the calibration",
    )
    assert difference.right is None


def test_a_file_that_no_calibration_reads_is_the_same_before_and_after_the_prune():
    before = prune(derive(QWEN, "generation_config.json", "new"), "0.289", "v3")
    assert between(before, derive(prune(QWEN, "0.289", "v3"), "generation_config.json", "new")) == []


def test_a_template_that_was_put_back_is_no_difference():
    there = derive(derive(QWEN, "chat_template.jinja", "v19"), "chat_template.jinja", "qwen's own")
    assert between(there, QWEN) == []


def test_of_a_stacked_prune_each_prune_is_named():
    once = prune(QWEN, "0.25", "upstream")
    twice = prune(once, "0.25", "reap-26b")
    assert history.is_stacked(twice)
    assert not history.is_stacked(once)
    (difference,) = between(once, twice)
    assert (difference.field, difference.word, difference.left) == ("prune#2", "prune 2", None)
    assert "(144 of 192 experts)" in difference.right["compression"]
    other = prune(once, "0.25", "narrow")
    assert [each.word for each in between(twice, other)] == ["mix of prune 2"]


def test_what_a_later_release_records_is_compared_too():
    one, other = prune(QWEN, "0.289", "v3", mtp="prune"), prune(QWEN, "0.289", "v3", mtp="drop", packing=[1, 2])
    assert [each.field for each in between(one, other)] == ["prune.mtp", "prune.packing"]


def test_a_permission_to_stack_is_no_difference():
    assert between(prune(QWEN, "0.289", "v3", stacked=True), prune(QWEN, "0.289", "v3")) == []


CHAINS = st.builds(
    lambda depth, mix, quantized, template, early: _built(depth, mix, quantized, template, early),
    st.sampled_from([None, "0.25", "0.289", "0.4"]),
    st.sampled_from(["v3", "mix-a"]),
    st.booleans(),
    st.sampled_from([None, "v18", "v19"]),
    st.booleans(),
)


def _built(depth: str | None, mix: str, quantized: bool, template: str | None, early: bool) -> Chain:
    chain = QWEN
    if template and early:
        chain = derive(chain, "chat_template.jinja", template)
    if depth:
        chain = prune(chain, depth, mix)
    if quantized:
        chain = quantize(chain)
    if template and not early:
        chain = derive(chain, "chat_template.jinja", template)
    return chain


@given(one=CHAINS, other=CHAINS)
def test_differences_are_the_same_both_ways_and_there_are_none_with_oneself(one, other):
    assert between(one, one) == []
    there, back = between(one, other), between(other, one)
    assert {each.field: (each.left, each.right) for each in there} == {
        each.field: (each.right, each.left) for each in back
    }
    if one[0][0] == other[0][0]:
        assert there == []
    assert all(each.left != each.right for each in there)
