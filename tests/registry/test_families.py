"""Families: from a config.json to every tensor of a whole checkpoint, and from a tensor's name to what it is."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterable

import pytest

from gates.errors import UsageError
from registry.families import Architecture, Spec, architecture_of, families, scale_shape
from tests.support import real_configs, tiny
from tests.support.tiny_configs import CONFIGS, MTP_KEYS

BLOCK = (128, 128)
GIB = 2**30


def parameters(specs: Iterable[Spec]) -> int:
    return sum(math.prod(spec.shape) for spec in specs if spec.part is not None)


def real(config: dict, *, experts: int | None = None) -> Architecture:
    config = copy.deepcopy(config)
    if experts is not None:
        (path,) = architecture_of(config).count_changes(experts)
        section = config
        for key in path[:-1]:
            section = section[key]
        section[path[-1]] = experts
    return architecture_of(config)


# ── against what is published ──


@pytest.mark.parametrize(
    ("config", "without_mtp", "with_mtp"),
    [
        (real_configs.QWEN3_30B_A3B, 30_532_122_624, 30_532_122_624),
        (real_configs.QWEN1_5_MOE_A2_7B, 14_315_784_192, 14_315_784_192),
        (real_configs.QWEN3_NEXT_80B_A3B, 79_674_391_296, 81_324_862_720),
        (real_configs.DEEPSEEK_V2_LITE, 15_706_484_224, 15_706_484_224),
        (real_configs.MIXTRAL_8X7B, 46_702_792_704, 46_702_792_704),
        (real_configs.OLMOE_1B_7B, 6_919_161_856, 6_919_161_856),
        (real_configs.QWEN3_6_35B_A3B, 35_107_181_936, None),
        (real_configs.GLM_4_5_AIR, None, 110_468_824_832),
        # the Hub counts 3,918,786,560 in BF16 and 680,571,043,840 in F8; the correction biases are among the F32
        (real_configs.DEEPSEEK_V3, None, 3_918_786_560 + 680_571_043_840 + 59 * 256),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
@pytest.mark.parametrize("fused", [False, True])
def test_the_parameters_of_published_models_are_counted(config, without_mtp, with_mtp, fused):
    architecture = architecture_of(config)
    for mtp, count in ((False, without_mtp), (True, with_mtp)):
        if count is not None:
            assert parameters(architecture.tensors(fused=fused, mtp=mtp)) == count


@pytest.mark.parametrize(
    ("experts", "mtp", "block", "size"),
    [
        (256, False, BLOCK, 34.09),
        (256, True, BLOCK, 34.89),
        (183, False, BLOCK, 25.52),
        (183, True, BLOCK, 26.10),
        (183, False, None, 48.3),
    ],
)
def test_the_sizes_of_the_story_come_out(experts, mtp, block, size):
    specs = real(real_configs.QWEN3_6_35B_A3B, experts=experts).tensors(fused=False, mtp=mtp, block=block)
    assert sum(spec.size for spec in specs) / GIB == pytest.approx(size, abs=0.03)


def test_deepseek_v3_in_fp8_is_what_was_published():
    specs = list(architecture_of(real_configs.DEEPSEEK_V3).tensors(fused=False, mtp=True, block=BLOCK))
    assert sum(math.prod(spec.shape) for spec in specs if spec.dtype == "F8_E4M3") == 680_571_043_840
    assert sum(math.prod(spec.shape) for spec in specs if spec.dtype == "BF16") == 3_918_786_560
    assert sum(math.prod(spec.shape) for spec in specs if spec.dtype == "F32") == 41_555_600


def test_qwen3_5_and_3_6_have_as_many_tensors_as_were_published():
    """3.5: 1,811, the layers' experts fused and the head's one by one; 3.6: 19 in the head, fused too."""
    architecture = architecture_of(real_configs.QWEN3_6_35B_A3B)
    assert len(list(architecture.tensors(fused=True, mtp=True, mtp_fused=False))) == 1811
    assert sum(spec.part.mtp for spec in architecture.tensors(fused=True, mtp=True)) == 19


# ── every family ──


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_every_expected_tensor_is_known_by_its_name(family, fused):
    architecture = architecture_of(tiny.config_of(family, mtp=True))
    specs = list(architecture.tensors(fused=fused, mtp=True))
    assert len({spec.name for spec in specs}) == len(specs)
    for spec in specs:
        assert architecture.spec(spec.name) == spec
        assert architecture.part(spec.name) == spec.part
        assert spec.part is not None
        if spec.part.layer is not None:
            assert spec.name.startswith(architecture.layer_prefix(spec.part.layer))


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_every_layer_with_experts_has_all_of_them_and_a_router(family):
    architecture = architecture_of(tiny.config_of(family, mtp=True))
    layers = {*architecture.expert_layers, *architecture.mtp_layers}
    apart, fused = Counter(), Counter()
    routers = set()
    for specs, count in (
        (architecture.tensors(fused=False, mtp=True), apart),
        (architecture.tensors(fused=True, mtp=True), fused),
    ):
        for spec in specs:
            part = spec.part
            if part.projection:
                count[part.layer, part.projection] += 1
                assert (part.kind == "expert") == (part.expert is not None)
                assert part.quantized
                assert part.kind == "expert" or spec.shape[0] == architecture.experts
            elif part.kind == "router":
                routers.add(part.layer)
                assert spec.shape[0] == architecture.experts
                assert not part.quantized
    each = ("gate_proj", "up_proj", "down_proj")
    assert apart == {(layer, name): architecture.experts for layer in layers for name in each}
    assert fused == {(layer, name): 1 for layer in layers for name in ("gate_up_proj", "down_proj")}
    assert routers == layers


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_both_layouts_hold_the_same_numbers(family):
    architecture = architecture_of(tiny.config_of(family, mtp=True))
    assert parameters(architecture.tensors(fused=True, mtp=True)) == parameters(
        architecture.tensors(fused=False, mtp=True)
    )


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_a_scale_stands_beside_every_quantised_tensor_and_no_other(family):
    architecture = architecture_of(tiny.config_of(family, mtp=True))
    specs = {spec.name: spec for spec in architecture.tensors(fused=False, mtp=True, block=(16, 8))}
    weights = {name: spec for name, spec in specs.items() if spec.part is not None}
    scales = {name: spec for name, spec in specs.items() if spec.part is None}
    quantized = {name for name, spec in weights.items() if spec.part.quantized}
    assert {name + "_scale_inv" for name in quantized} == scales.keys()
    for name in quantized:
        assert weights[name].dtype == "F8_E4M3"
        out, into = weights[name].shape
        assert scales[name + "_scale_inv"].shape == (math.ceil(out / 16), math.ceil(into / 8))
    assert {spec.dtype for spec in weights.values() if not spec.part.quantized} <= {"BF16", "F32"}


def test_the_scales_of_a_3d_tensor_are_those_of_its_matrices():
    assert scale_shape((5, 257, 128), BLOCK) == (5, 3, 1)


# ── names ──

QWEN3_6 = architecture_of(real_configs.QWEN3_6_35B_A3B)
DEEPSEEK = architecture_of(real_configs.DEEPSEEK_V3)


def test_layers_have_the_attention_that_config_gives_them():
    assert QWEN3_6.part("model.language_model.layers.3.self_attn.q_proj.weight").role == "attention"
    assert QWEN3_6.part("model.language_model.layers.3.linear_attn.A_log") is None
    assert QWEN3_6.part("model.language_model.layers.4.self_attn.q_proj.weight") is None
    assert QWEN3_6.spec("model.language_model.layers.3.self_attn.q_proj.weight").shape == (8192, 2048)
    assert QWEN3_6.spec("model.language_model.layers.4.linear_attn.in_proj_qkv.weight").shape == (8192, 2048)


def test_mtp_layers_are_numbered_from_the_last_layer_up():
    assert QWEN3_6.mtp_layers == [40]
    assert QWEN3_6.layer_prefix(40) == "mtp.layers.0."
    expert = QWEN3_6.part("mtp.layers.0.mlp.experts.255.up_proj.weight")
    assert (expert.layer, expert.expert, expert.projection, expert.mtp) == (40, 255, "up_proj", True)
    assert QWEN3_6.part("mtp.fc.weight").listed
    assert QWEN3_6.part("mtp.layers.1.mlp.gate.weight") is None

    assert DEEPSEEK.mtp_layers == [61]
    assert DEEPSEEK.layer_prefix(61) == "model.layers.61."
    assert DEEPSEEK.part("model.layers.61.mlp.gate.e_score_correction_bias").mtp
    assert DEEPSEEK.part("model.layers.61.eh_proj.weight").mtp
    assert DEEPSEEK.part("model.layers.60.eh_proj.weight") is None
    assert DEEPSEEK.part("model.layers.62.mlp.gate.weight") is None


def test_the_first_layers_of_deepseek_are_dense():
    assert DEEPSEEK.expert_layers == list(range(3, 61))
    assert DEEPSEEK.part("model.layers.2.mlp.gate_proj.weight").role == "dense"
    assert DEEPSEEK.part("model.layers.3.mlp.gate_proj.weight") is None
    assert DEEPSEEK.part("model.layers.2.mlp.gate.weight") is None
    assert DEEPSEEK.elsewhere("model.layers.2.mlp.experts.7.up_proj.weight").expert == 7
    assert DEEPSEEK.groups == 8


def test_mixtrals_matrices_have_the_names_of_the_field():
    architecture = architecture_of(real_configs.MIXTRAL_8X7B)
    names = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
    for name, projection in names.items():
        part = architecture.part(f"model.layers.31.block_sparse_moe.experts.7.{name}.weight")
        assert (part.kind, part.expert, part.projection) == ("expert", 7, projection)


@pytest.mark.parametrize(
    "name",
    [
        "model.layers.03.mlp.gate.weight",
        "model.layers.٣.mlp.gate.weight",
        "model.layers.-1.mlp.gate.weight",
        "model.layers.3 .mlp.gate.weight",
        "model.layers.3.mlp.gate.weight.weight",
        "model.layers.999999999999999999.mlp.gate.weight",
        "model.layers.3.3.mlp.gate.weight",
        "model.layers.3.mlp.experts.gate_up_proj.weight",
        "model.layers.{number}.mlp.gate.weight",
        "model.layers.#.mlp.gate.weight",
        "MODEL.layers.3.mlp.gate.weight",
        "",
        ".",
        "3",
    ],
)
def test_only_names_as_the_family_writes_them_are_its_own(name):
    assert architecture_of(real_configs.QWEN3_30B_A3B).part(name) is None


# ── config.json ──


def test_other_families_are_refused_with_those_that_are_known():
    for model_type in ("gpt_oss", "granitemoe", "llama", None):
        with pytest.raises(UsageError, match="not a family that Sluice knows") as refused:
            architecture_of({"model_type": model_type}, where="there")
        assert "glm4_moe" in refused.value.remedy
        assert "CONTRIBUTING.md" in refused.value.remedy


def test_the_count_is_changed_wherever_it_is_stated():
    config = tiny.config_of("qwen3_5_moe") | {"num_experts": 8}
    assert architecture_of(config).count_changes(5) == {("num_experts",): 5, ("text_config", "num_experts"): 5}
    assert real(real_configs.DEEPSEEK_V3).count_changes(8) == {("n_routed_experts",): 8}
    both = tiny.config_of("qwen3_moe") | {"num_local_experts": 8}
    assert architecture_of(both).count_changes(3) == {("num_experts",): 3, ("num_local_experts",): 3}


@pytest.mark.parametrize("family", sorted(MTP_KEYS))
def test_an_mtp_head_is_taken_out_of_the_config(family):
    config = tiny.config_of(family, mtp=True)
    ((path, _),) = architecture_of(config).mtp_changes(0).items()
    assert path[-1] == MTP_KEYS[family]
    assert architecture_of(tiny.config_of(family, mtp=False)).mtp_layers == []


def test_a_config_that_says_nothing_of_mtp_means_what_vllm_takes_it_to_mean():
    config = copy.deepcopy(real_configs.QWEN3_6_35B_A3B)
    del config["text_config"]["mtp_num_hidden_layers"]
    assert architecture_of(config).mtp_layers == [40]
    assert architecture_of(config).mtp_changes(0) == {("text_config", "mtp_num_hidden_layers"): 0}
    config = {key: value for key, value in real_configs.DEEPSEEK_V3.items() if key != "num_nextn_predict_layers"}
    assert architecture_of(config).mtp_layers == []


@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_a_number_that_is_missing_is_named(family):
    config = tiny.config_of(family, mtp=True)
    for key in ("hidden_size", "num_hidden_layers", "num_experts_per_tok", "vocab_size", "num_attention_heads"):
        damaged = copy.deepcopy(config)
        del damaged.get("text_config", damaged)[key]
        with pytest.raises(UsageError, match=f"states no {key}"):
            architecture_of(damaged)


@pytest.mark.parametrize("value", [0, -1, 1.5, "8", True, 10**30, [], {}])
@pytest.mark.parametrize("key", ["hidden_size", "num_hidden_layers", "num_key_value_heads", "moe_intermediate_size"])
def test_a_number_that_is_none_is_refused(key, value):
    for config in (tiny.config_of("qwen3_5_moe"), tiny.config_of("qwen3_moe"), tiny.config_of("glm4_moe")):
        config.get("text_config", config)[key] = value
        with pytest.raises(UsageError, match=f"config.json.*{key}"):
            architecture_of(config)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("qwen3_moe", {"num_hidden_layers": 10**6}),
        ("deepseek_v3", {"num_nextn_predict_layers": 10**9}),
        ("deepseek_v3", {"num_nextn_predict_layers": -1}),
        ("deepseek_v3", {"first_k_dense_replace": "3"}),
        ("qwen3_moe", {"mlp_only_layers": {}, "num_experts": 4}),
        ("qwen3_moe", {"mlp_only_layers": ["1"]}),
        ("qwen3_5_moe", {"text_config": [1]}),
        ("qwen3_5_moe", {"text_config": None}),
        ("qwen3_5_moe", {"vision_config": 3}),
        ("qwen3_5_moe", {"vision_config": {"depth": 10**9}}),
        ("qwen3_5_moe_text", {"layer_types": ["full_attention"]}),
        ("qwen3_5_moe_text", {"layer_types": ["sparse"] * 4}),
        ("qwen3_5_moe_text", {"layer_types": "full"}),
        ("qwen3_5_moe_text", {"layer_types": [[]] * 4}),
        ("olmoe", {"hidden_size": 3}),
        ("deepseek_v2", {"norm_topk_prob": True}),
        ("deepseek_v3", {"scoring_func": "softmax"}),
        ("glm4_moe_lite", {"first_k_dense_replace": 2}),
        ("qwen3_moe", {"num_experts": 2**40, "moe_intermediate_size": 2**40, "hidden_size": 2**41}),
    ],
)
def test_an_absurd_config_is_refused_at_once(family, changes):
    with pytest.raises(UsageError, match=r"config\.json"):
        architecture_of(tiny.config_of(family) | changes)


def test_a_tied_head_is_neither_expected_nor_too_much():
    architecture = architecture_of(tiny.config_of("qwen3_moe") | {"tie_word_embeddings": True})
    assert "lm_head.weight" not in {spec.name for spec in architecture.tensors(fused=False, mtp=False)}
    assert architecture.part("lm_head.weight").need == "rare"


def test_a_text_model_without_a_vision_tower_has_no_vision_tensors():
    config = tiny.config_of("qwen3_5_moe")
    del config["vision_config"]
    assert not any(spec.part.vision for spec in architecture_of(config).tensors(fused=False, mtp=False))
    whole = architecture_of(tiny.config_of("qwen3_5_moe"))
    assert any(spec.part.vision for spec in whole.tensors(fused=False, mtp=False))
    assert not any(spec.part.vision for spec in whole.tensors(fused=False, mtp=False, vision=False))


def test_every_family_can_be_made_tiny():
    assert families().keys() == CONFIGS.keys()
