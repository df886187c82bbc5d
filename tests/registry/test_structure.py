"""The rules of a whole checkpoint, on every family and layout: what is whole passes, and each damage is named."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.checkpoint.completeness import problems_of
from registry.checkpoint.facts import Facts, facts_of
from registry.families import Architecture, Spec, architecture_of
from registry.tensors import DTYPES, Tensor
from tests.support import real_configs, tiny
from tests.support.tiny_configs import CONFIGS, MTP_KEYS

FILE = Path("model.safetensors")
BLOCK = (128, 128)

CASES = [
    (family, layout, mtp, block)
    for family in sorted(CONFIGS)
    for layout in (False, True)
    for mtp in (False, True)[: 1 + (family in MTP_KEYS)]
    for block in (None, BLOCK)
]


def tensor(dtype: str, *shape: int) -> Tensor:
    size = DTYPES[dtype]
    for side in shape:
        size *= side
    return Tensor(dtype, tuple(shape), 0, size, FILE)


def of(specs) -> dict[str, Tensor]:
    return {spec.name: tensor(spec.dtype, *spec.shape) for spec in specs}


def whole(family: str, fused: bool, mtp: bool, block: Any, **changes: Any) -> Facts:
    """The facts of a checkpoint as `tiny.make` writes it."""
    architecture = architecture_of(tiny.config_of(family, mtp=mtp, block=block, **changes))
    return facts_of(architecture, of(architecture.tensors(fused=fused, mtp=mtp, block=block)), block)


def said(facts: Facts) -> str:
    return "\n".join(map(str, problems_of(facts)))


def with_tensors(facts: Facts, **tensors: Tensor | None) -> Facts:
    held = {**facts.tensors, **tensors}
    return facts_of(facts.architecture, {name: one for name, one in held.items() if one}, facts.block)


def with_kept(facts: Facts, kept: list[str]) -> Facts:
    config = copy.deepcopy(facts.architecture.config)
    config["quantization_config"]["modules_to_not_convert"] = kept
    return facts_of(architecture_of(config), facts.tensors, facts.block)


@pytest.mark.parametrize(("family", "fused", "mtp", "block"), CASES)
def test_a_whole_checkpoint_passes(family, fused, mtp, block):
    facts = whole(family, fused, mtp, block)
    assert said(facts) == ""
    assert facts.has_mtp == mtp
    assert facts.shape().tensor_bytes == sum(spec.size for spec in expected(facts, fused, mtp))


def expected(facts: Facts, fused: bool, mtp: bool) -> list[Spec]:
    return list(facts.architecture.tensors(fused=fused, mtp=mtp, block=facts.block))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150, deadline=None)
@given(st.sampled_from(CASES), st.data())
def test_not_one_tensor_can_be_missing_of_another_shape_or_of_another_kind(case, data):
    family, fused, mtp, block = case
    facts = whole(family, fused, mtp, block)
    name = data.draw(st.sampled_from(sorted(facts.tensors)))
    spec = facts.architecture.spec(name)
    held = facts.tensors[name]
    optional = spec is not None and spec.part.need == "usual"
    missing = said(with_tensors(facts, **{name: None}))
    assert (missing == "") == optional
    if not optional:
        assert name in missing or name.removesuffix("_scale_inv") in missing or says_where(missing, facts, name)
    wider = tensor(held.dtype, *held.shape[:-1], held.shape[-1] + 1)
    assert name in said(with_tensors(facts, **{name: wider}))
    assert name in said(with_tensors(facts, **{name: tensor("I16", *held.shape)}))


def says_where(text: str, facts: Facts, name: str) -> bool:
    part = facts.architecture.part(name)
    return part is not None and f"layer {part.layer}" in text


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(CASES), st.sampled_from(CASES))
def test_a_tensor_of_another_family_or_layout_is_too_much(case, other):
    facts = whole(*case)
    strange = {name: one for name, one in whole(*other).tensors.items() if name not in facts.tensors}
    known = {name for name in strange if (spec := facts.architecture.spec(name)) and spec.part.need == "rare"}
    if any(name not in known for name in strange):
        assert said(with_tensors(facts, **strange)) != ""


@pytest.mark.parametrize("change", [-1, 1])
@pytest.mark.parametrize(("family", "fused", "mtp", "block"), CASES)
def test_a_count_that_is_not_the_tensors_is_found(family, fused, mtp, block, change):
    facts = whole(family, fused, mtp, block)
    config = copy.deepcopy(facts.architecture.config)
    for path in facts.architecture.count_changes(0):
        section = config
        for key in path[:-1]:
            section = section[key]
        section[path[-1]] += change
    assert said(facts_of(architecture_of(config), facts.tensors, block)) != ""


# ── the MTP head ──


@pytest.mark.parametrize("block", [None, BLOCK])
@pytest.mark.parametrize("family", sorted(MTP_KEYS))
def test_an_mtp_head_with_another_number_of_experts_is_found(family, block):
    """What llm-compressor leaves behind: the layers pruned, the head as it was."""
    pruned = whole(family, False, True, block)
    key = pruned.architecture.family.keys.experts[0]
    before = whole(family, False, True, block, **{key: 12})
    head = {name: one for name, one in before.tensors.items() if is_mtp(before.architecture, name)}
    layer = pruned.architecture.layers
    text = said(with_tensors(pruned, **head))
    assert f"layer {layer} has an expert 8, 9, 10, 11 (expected: experts 0 to 7)" in text
    assert "mlp.gate.weight: its shape is [12, 32] (expected: [8, 32], by config.json)" in text


def is_mtp(architecture: Architecture, name: str) -> bool:
    part = architecture.part(name.removesuffix("_scale_inv"))
    return part is not None and part.mtp


@pytest.mark.parametrize("family", sorted(MTP_KEYS))
def test_a_head_that_config_does_not_state_is_found(family):
    facts = whole(family, False, True, None)
    without = architecture_of(tiny.config_of(family, mtp=False))
    assert said(facts_of(without, facts.tensors, None)) != ""


@pytest.mark.parametrize("family", sorted(MTP_KEYS))
def test_a_head_may_be_absent_though_config_states_one(family):
    facts = whole(family, False, True, None)
    tensors = {name: one for name, one in facts.tensors.items() if not is_mtp(facts.architecture, name)}
    assert said(facts_of(facts.architecture, tensors, None)) == ""


def test_a_head_may_have_a_layout_of_its_own():
    """Qwen3.5 is published so: the layers fused, the head expert by expert."""
    architecture = architecture_of(tiny.config_of("qwen3_5_moe", mtp=True))
    tensors = of(architecture.tensors(fused=True, mtp=True, mtp_fused=False))
    assert said(facts_of(architecture, tensors, None)) == ""


# ── layouts ──


def test_a_layer_in_both_layouts_is_found():
    facts = whole("qwen3_moe", False, False, None)
    both = with_tensors(facts, **whole("qwen3_moe", True, False, None).tensors)
    assert "layer 0 has experts both in 3D tensors and one by one" in said(both)


def test_layers_in_different_layouts_are_found():
    apart, fused = whole("mixtral", False, False, None), whole("mixtral", True, False, None)
    mixed = {name: one for name, one in apart.tensors.items() if not name.startswith("model.layers.1.")}
    mixed |= {name: one for name, one in fused.tensors.items() if name.startswith("model.layers.1.")}
    assert "layer 1 has its experts in 3D tensors, layer 0, 2 one by one" in said(
        facts_of(apart.architecture, mixed, None)
    )


# ── block FP8 ──


def test_the_official_layout_of_qwen_passes():
    """Qwen3.6-35B-A3B-FP8 lists every module that it leaves as it is, norms and embeddings too."""
    config = copy.deepcopy(real_configs.QWEN3_6_35B_A3B)
    architecture = architecture_of(config)
    specs = list(architecture.tensors(fused=False, mtp=True, block=BLOCK))
    left = [spec.name.removesuffix(".weight") for spec in specs if spec.part and not spec.part.quantized]
    config["quantization_config"] = {
        "quant_method": "fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128, 128],
        "modules_to_not_convert": [name for name in left if not name.endswith((".bias", "A_log", "dt_bias"))],
    }
    assert said(facts_of(architecture_of(config), of(specs), BLOCK)) == ""


def test_deepseek_v3_in_fp8_passes_without_a_list():
    config = real_configs.DEEPSEEK_V3 | {
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]}
    }
    architecture = architecture_of(config)
    assert said(facts_of(architecture, of(architecture.tensors(fused=False, mtp=True, block=BLOCK)), BLOCK)) == ""


def mtp_left_in_bf16(family: str) -> Facts:
    facts = whole(family, False, True, BLOCK)
    config = copy.deepcopy(facts.architecture.config)
    architecture = facts.architecture
    kept = set(config["quantization_config"]["modules_to_not_convert"])
    tensors = of(architecture.tensors(fused=False, mtp=False, block=BLOCK))
    for spec in architecture.tensors(fused=False, mtp=True):
        if spec.part.mtp:
            tensors[spec.name] = tensor(spec.dtype, *spec.shape)
            if spec.part.quantized:
                module = spec.name.removesuffix(".weight")
                kept.add(module.partition(".experts.")[0] + ".experts" if spec.part.projection else module)
    return with_kept(facts_of(architecture, tensors, BLOCK), sorted(kept))


@pytest.mark.parametrize("family", sorted(MTP_KEYS))
def test_an_mtp_head_in_bf16_must_be_listed_and_whole(family):
    facts = mtp_left_in_bf16(family)
    assert said(facts) == ""
    prefix = facts.architecture.layer_prefix(facts.architecture.layers)
    for module in [name for name in facts.kept if name.startswith(prefix) and name.endswith(("experts", "o_proj"))]:
        text = said(with_kept(facts, [name for name in facts.kept if name != module]))
        assert "was not quantised" in text
        assert f"{module} in modules_to_not_convert" in text
    expert = f"{prefix}mlp.experts.1.up_proj.weight"
    shape = facts.tensors[expert].shape
    half = with_tensors(
        facts, **{expert: tensor("F8_E4M3", *shape), expert + "_scale_inv": tensor("F32", *(1 for _ in shape))}
    )
    assert "other tensors of the MTP head were" in said(half)


def test_a_linear_layer_left_in_bf16_must_be_listed_with_those_that_vllm_merges_it_with():
    facts = whole("qwen3_moe", False, False, BLOCK)
    names = [f"model.layers.1.self_attn.{name}_proj" for name in "qkvo"]
    changes: dict[str, Tensor | None] = {}
    for name in names:
        changes[f"{name}.weight"] = replace(facts.tensors[f"{name}.weight"], dtype="BF16")
        changes[f"{name}.weight_scale_inv"] = None
    plain = with_tensors(facts, **changes)
    assert said(plain).count("was not quantised") == 4
    assert said(with_kept(plain, [*facts.kept, *names])) == ""
    assert "names model.layers.1.self_attn.q_proj but not model.layers.1.self_attn.k_proj" in said(
        with_kept(plain, [*facts.kept, names[0], names[2], names[3]])
    )


def test_in_proj_a_and_b_must_both_be_listed():
    facts = whole("qwen3_5_moe", False, True, BLOCK)
    for letter in "ab":
        module = f"model.language_model.layers.1.linear_attn.in_proj_{letter}"
        text = said(with_kept(facts, [name for name in facts.kept if name != module]))
        assert f"does not name {module}" in text


def test_an_expert_of_the_model_is_quantised_whatever_the_list_says():
    facts = whole("qwen3_moe", False, False, BLOCK)
    expert = "model.layers.1.mlp.experts.3.down_proj"
    plain = with_tensors(
        facts,
        **{
            f"{expert}.weight": replace(facts.tensors[f"{expert}.weight"], dtype="BF16"),
            f"{expert}.weight_scale_inv": None,
        },
    )
    assert f"tensor {expert}.weight: BF16" in said(with_kept(plain, [*facts.kept, expert]))
    assert f"names {expert}, which is quantised" in said(with_kept(facts, [*facts.kept, expert]))


def test_scales_of_3d_tensors_are_judged_too():
    facts = whole("qwen3_5_moe", True, True, BLOCK)
    name = "model.language_model.layers.2.mlp.experts.gate_up_proj"
    assert f"tensor {name}: its scales are missing" in said(with_tensors(facts, **{name + "_scale_inv": None}))
