"""Will it fit? Bytes by part, the cache, and the least compression, from config.json alone."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from decimal import Decimal
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registry import plan as planning
from registry.checkpoint import headers
from registry.families import architecture_of, families
from registry.plan import Card, Load, Model, Terms, demand, least_compression, of_config, of_tensors
from registry.plan.view import record, render
from registry.recipes import experts_kept
from tests.support import real_configs, tiny
from tests.support.tiny_configs import CONFIGS, MTP_KEYS

GIB = 2**30
QWEN3_6 = of_config(architecture_of(real_configs.QWEN3_6_35B_A3B))
ONE = Load(context=1, sequences=1)


def weights(model: Model, terms: Terms, experts: int | None = None) -> int:
    return sum(planning.weights(model, terms, experts=experts).values())


def card(gib: float, *, utilisation: str = "1", overhead: int = 0) -> Card:
    return Card(memory=int(gib * GIB), utilisation=Decimal(utilisation), overhead=overhead)


@pytest.mark.parametrize(
    ("experts", "written", "mtp", "size"),
    [
        (256, "fp8-block", False, 34.09),
        (256, "fp8-block", True, 34.89),
        (183, "fp8-block", False, 25.52),
        (183, "fp8-block", True, 26.10),
        (183, "bf16", False, 48.3),
    ],
)
def test_the_weights_of_qwen3_6_are_what_the_story_says(experts, written, mtp, size):
    assert weights(QWEN3_6, Terms(format=written, mtp=mtp), experts) / GIB == pytest.approx(size, abs=0.03)


def test_the_cache_of_qwen3_6_is_what_the_story_says():
    terms = Terms(format="fp8-block", mtp=True)
    for context, gib in ((32 * 1024, 0.625), (256 * 1024, 5)):
        assert demand(QWEN3_6, Load(context=context, sequences=1), terms).kv_cache == gib * GIB
    four = demand(QWEN3_6, Load(context=32 * 1024, sequences=4), terms)
    assert four.kv_cache == 2.5 * GIB
    assert four.mtp_cache == four.kv_cache // 10  # one layer beside the ten with full attention
    # 30 layers: a convolution over 3 tokens of 8,192 channels in 16 bits, 32 states of 128 x 128 in 32 bits
    assert four.linear_state == 4 * 30 * (3 * 8192 * 2 + 32 * 128 * 128 * 4)


def test_the_latent_of_deepseek_is_what_is_cached():
    model = of_config(architecture_of(real_configs.DEEPSEEK_V3))
    assert demand(model, ONE, Terms(format="bf16", mtp=False)).kv_cache == 61 * (512 + 64) * 2


@pytest.mark.parametrize("written", ["bf16", "fp8-block"])
@pytest.mark.parametrize("mtp", [False, True])
@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_a_pruned_model_is_predicted_to_the_byte(family, mtp, written):
    """What `experts` of the whole model take is what the whole model with so many experts takes."""
    key = architecture_of(CONFIGS[family]).family.keys.experts[0]
    whole, pruned = (of_config(architecture_of(tiny.config_of(family, mtp=mtp, **{key: n}))) for n in (8, 6))
    terms = Terms(format=written, mtp=True)
    assert demand(whole, ONE, terms, experts=6) == demand(pruned, ONE, terms)
    block = planning.BLOCK if written == "fp8-block" else None
    specs = pruned.architecture.tensors(fused=False, mtp=mtp, block=block)
    assert weights(pruned, terms) == sum(spec.size for spec in specs)


@pytest.mark.parametrize(("fused", "block"), [(False, None), (True, None), (False, (128, 128))])
@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_a_folder_is_counted_as_it_lies_there(tmp_path, family, fused, block):
    folder = tiny.make(tmp_path, family, fused=fused, mtp=family in MTP_KEYS, block=block, shards=2)
    tensors = headers(folder)
    model = of_tensors(architecture_of(json.loads((folder / "config.json").read_bytes())), tensors)
    terms = Terms(format="fp8-block" if block else "bf16", mtp=True)
    assert weights(model, terms) == sum(tensor.size for tensor in tensors.values())
    assert model.has_mtp == (family in MTP_KEYS)


def test_the_parts_add_up_and_mtp_and_vision_can_be_left_out():
    for written in ("bf16", "fp8-block"):
        whole = demand(QWEN3_6, ONE, Terms(format=written, mtp=True)).weights
        assert whole.keys() == set(planning.PARTS)
        for left_out, terms in (
            ("MTP", Terms(format=written, mtp=False)),
            ("vision", Terms(format=written, mtp=True, vision=False)),
        ):
            assert whole[left_out] > 0
            assert demand(QWEN3_6, ONE, terms).weights == whole | {left_out: 0}


# ── what training takes ──


def to_train(model: Model, written: str, experts: int | None = None) -> planning.Training:
    return planning.training(model, Terms(format=written, mtp=True), experts=experts)


@pytest.mark.parametrize(("written", "size"), [("nf4-double", 16.4), ("nf4", 17.4)])
def test_training_qwen3_6_at_183_experts_takes_what_the_story_says(written, size):
    """The whole model but its MTP head; text alone needs no vision tower, and is trained without."""
    found = to_train(QWEN3_6, written, 183)
    assert sum(found.weights.values()) / GIB == pytest.approx(size, abs=0.1)
    assert found.weights["MTP"] == 0
    without = planning.training(QWEN3_6, Terms(format=written, mtp=False, vision=False), experts=183)
    assert found.weights == without.weights | {"vision": found.weights["vision"]}


def test_four_bits_and_a_scale_for_64_numbers_are_what_an_expert_takes():
    numbers = 40 * 183 * 3 * 2048 * 512
    assert to_train(QWEN3_6, "nf4", 183).weights["experts"] == numbers // 2
    assert to_train(QWEN3_6, "nf4", 183).weights["scales"] == numbers // 64 * 4
    # quantised too: a byte for each, and for 256 of them a scale of four bytes
    assert to_train(QWEN3_6, "nf4-double", 183).weights["scales"] == numbers // 64 + numbers // (64 * 256) * 4


@pytest.mark.parametrize("written", ["nf4-double", "nf4", "bf16"])
@pytest.mark.parametrize("family", sorted(family for family, each in families().items() if each.trainable))
def test_what_training_a_pruned_model_takes_is_predicted(family, written):
    wide = {"hidden_size": 128, "intermediate_size": 128, "moe_intermediate_size": 128}
    key = architecture_of(CONFIGS[family]).family.keys.experts[0]
    whole, pruned = (of_config(architecture_of(tiny.config_of(family, **wide, **{key: n}))) for n in (8, 6))
    assert to_train(whole, written, 6) == to_train(pruned, written)


def test_what_is_streamed_is_the_largest_layer_or_the_head():
    layer, found = 183 * 3 * 2048 * 512 * 2, to_train(QWEN3_6, "nf4", 183)
    assert layer < found.streamed < 1.1 * layer
    small = of_config(architecture_of(tiny.config_of("qwen3_moe", vocab_size=100_000)))
    assert to_train(small, "nf4").streamed == 100_000 * small.architecture.text["hidden_size"] * 2


def test_what_cannot_be_quantised_is_said():
    """GLM-4.5-Air's first layer is 10,944 wide: 85 blocks and a half."""
    gate = "model.layers.0.mlp.gate_proj.weight"
    room, load = Card(memory=80 * GIB, utilisation=Decimal("0.92"), overhead=GIB), Load(context=1024, sequences=1)
    for config, uneven in ((real_configs.GLM_4_5_AIR, gate), (real_configs.QWEN3_30B_A3B, None)):
        model = of_config(architecture_of(config))
        for written in ("bf16", "fp8-block"):
            found = planning.plan(model, room, load, Terms(format=written, mtp=True))
            assert record(found)["uneven"] == uneven
            said = f"{gate} is 10944 x 4096" in "\n".join(render(found, name="it"))
            assert said == (uneven is not None and written == "fp8-block")


def test_deepseek_and_glm_are_not_trained():
    assert {family for family, each in families().items() if not each.trainable} == {
        "deepseek_v3",
        "glm4_moe",
        "glm4_moe_lite",
    }
    model = of_config(architecture_of(real_configs.DEEPSEEK_V3))
    assert planning.plan(model, card(80), ONE, Terms(format="bf16", mtp=True)).training == {}


# ── the least compression ──

SMALL = [
    of_config(architecture_of(tiny.config_of(family, mtp=True, **changes)))
    for family, changes in (
        ("qwen3_5_moe", {"num_experts": 37}),
        ("deepseek_v3", {"n_routed_experts": 24, "n_group": 4, "topk_group": 2}),
        ("mixtral", {}),
    )
]


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(SMALL),
    st.integers(0, 2_000_000),
    st.sampled_from(["bf16", "fp8-block"]),
    st.integers(1, 300),
    st.sampled_from(["1", "0.92", "0.333"]),
)
def test_the_least_compression_fits_and_less_does_not(model, memory, written, context, utilisation):
    load, terms = Load(context=context, sequences=2), Terms(format=written, mtp=True)
    where = Card(memory=memory, utilisation=Decimal(utilisation), overhead=1000)
    architecture = model.architecture
    found = least_compression(model, where, load, terms)
    if found is None:
        steps = range(architecture.groups, architecture.experts + 1, architecture.groups)
        allowed = [keep for keep in steps if keep == architecture.experts or _may_stay(model, keep)]
        assert all(demand(model, load, terms, experts=keep).total > where.room for keep in allowed)
        return
    assert demand(model, load, terms, experts=found.experts).total <= where.room
    if found.compression == 0:
        assert found.experts == architecture.experts
        return
    assert _kept(model, found.compression) == found.experts
    more = found.experts + architecture.groups
    assert demand(model, load, terms, experts=more).total > where.room


def _kept(model: Model, compression: Decimal) -> int:
    architecture = model.architecture
    return experts_kept(
        architecture.experts,
        compression,
        top_k=architecture.top_k,
        groups=architecture.groups,
        groups_used=architecture.text.get("topk_group"),
    )


def _may_stay(model: Model, keep: int) -> bool:
    architecture = model.architecture
    in_each = keep // architecture.groups
    if architecture.groups > 1 and in_each < 2:
        return False
    return (
        keep % architecture.groups == 0 and in_each * (architecture.text.get("topk_group") or 1) >= architecture.top_k
    )


def test_the_story_s_card_takes_the_story_s_compression():
    """31.84 GiB, 4 sequences of 32k, no MTP head: 183 of 256 experts stay, as in the one-GPU story."""
    load, terms = Load(context=32768, sequences=4), Terms(format="fp8-block", mtp=False)
    found = least_compression(QWEN3_6, card(31.84, utilisation="0.92", overhead=GIB), load, terms)
    assert found.experts == 183
    assert found.compression < Decimal("0.289")


# ── the command ──


def said(code: int, *words: str) -> tuple[str, str]:
    command = [sys.executable, "-m", "registry", "plan", *words]
    done = subprocess.run(command, capture_output=True, env=os.environ | {"COLUMNS": "100"}, check=False, text=True)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout, done.stderr


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "qwen.json"
    tiny.write_json(path, real_configs.QWEN3_6_35B_A3B)
    return str(path)


def test_the_plan_of_a_config_is_a_table_a_bar_and_a_sentence(config):
    text, _ = said(0, config, "--card", "31.84", "--sequences", "4", "--no-mtp")
    assert "weights               65.39       34.09" in text
    assert "37.50 GiB needed" not in text
    assert "8.54 GiB too much" in text
    assert "It fits with compression 0.2852: 183 experts stay in each layer." in text
    bar = next(line for line in text.splitlines() if line.startswith("###"))
    assert 97 <= len(bar) <= 101
    assert bar.count("|") == 1
    fits, _ = said(0, config, "--card", "80")
    assert "free." in fits
    assert "compression" not in fits
    never, _ = said(0, config, "--card", "2")
    assert "No compression makes it fit" in never


def test_the_plan_as_json_holds_bytes(config):
    found = json.loads(said(0, config, "--json", "--context", "32768")[0])
    assert found["kv_cache"] == 0.625 * GIB
    assert found["weights"]["fp8-block"]["total"] / GIB == pytest.approx(34.89, abs=0.03)
    assert found["needed"] == found["weights"]["fp8-block"]["total"] + sum(
        found[part] for part in ("kv_cache", "mtp_cache", "linear_state")
    )
    assert found["fits"] is False
    assert found["over"] == found["needed"] - found["room"]


def test_a_folder_and_a_candidate_are_planned_from_their_tensors(tmp_path):
    from registry.store import Store

    folder = tiny.make(tmp_path / "model", "qwen3_moe", fused=False)
    root = str(Store.init(tmp_path / "models").layout.root)
    Store.open(Path(root)).add("toy", folder)
    by_folder = json.loads(said(0, str(folder), "--json")[0])
    by_name = json.loads(said(0, "toy", "--root", root, "--json")[0])
    assert {**by_folder, "model": "toy"} == by_name
    assert by_name["weights"]["bf16"]["total"] == sum(tensor.size for tensor in headers(folder).values())


def test_the_plan_says_what_training_takes(tmp_path):
    pruned = copy.deepcopy(real_configs.QWEN3_6_35B_A3B)
    pruned["text_config"]["num_experts"] = 183
    tiny.write_json(tmp_path / "pruned.json", pruned)
    text = " ".join(said(0, str(tmp_path / "pruned.json"))[0].split())
    assert "16.44 GiB of weights with double quantisation, 17.44 GiB without, less 0.83 GiB of the vision tower" in text
    assert "0.34 GiB for adapters of rank 16" in text
    training = json.loads(said(0, str(tmp_path / "pruned.json"), "--json")[0])["training"]
    assert {written: round(each["weights"]["total"] / GIB, 1) for written, each in training.items()} == {
        "nf4-double": 16.4,
        "nf4": 17.4,
    }
    tiny.write_json(tmp_path / "deepseek.json", real_configs.DEEPSEEK_V3)
    assert "To train it" not in said(0, str(tmp_path / "deepseek.json"))[0]
    assert json.loads(said(0, str(tmp_path / "deepseek.json"), "--json")[0])["training"] == {}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("./nowhere",), "no such folder"),
        (("nowhere.json",), "cannot be read"),
        (("CONFIG", "--card", "many"), "--card 'many' is no size"),
        (("CONFIG", "--card", "-3"), "--card '-3'"),
        (("CONFIG", "--card", "NaN"), "--card 'NaN'"),
        (("CONFIG", "--utilisation", "92"), "not a share"),
        (("CONFIG", "--format", "int4"), "'int4' is not one"),
        (("CONFIG", "--context", "0"), "context"),
    ],
)
def test_bad_words_are_refused(config, words, says):
    _, error = said(5 if words == ("nowhere.json",) else 2, *(config if word == "CONFIG" else word for word in words))
    assert says in error


def test_a_pipe_among_a_model_s_files_is_not_waited_for(tmp_path):
    folder = tiny.make(tmp_path / "model", "qwen3_moe", fused=False)
    os.mkfifo(folder / "more.safetensors")
    assert "not a regular file" in said(5, str(folder))[1]


@pytest.mark.parametrize(
    ("written", "size"), [("24", 24 * GIB), ("24GiB", 24 * GIB), ("24 gib", 24 * GIB), ("24GB", 24 * 10**9)]
)
def test_a_card_is_written_with_a_unit_or_in_gib(config, written, size):
    assert json.loads(said(0, config, "--card", written, "--overhead", "512MiB", "--json")[0])["card"] == size


def test_an_absurd_number_of_experts_is_planned_or_refused_at_once(tmp_path):
    for experts in (10**9, 10**15):
        config = copy.deepcopy(real_configs.MIXTRAL_8X7B) | {"num_local_experts": experts}
        tiny.write_json(tmp_path / "config.json", config)
        said(0 if experts == 10**9 else 2, str(tmp_path / "config.json"))


def test_an_unknown_family_is_refused(tmp_path):
    config = copy.deepcopy(real_configs.MIXTRAL_8X7B) | {"model_type": "gpt_oss"}
    tiny.write_json(tmp_path / "config.json", config)
    assert "not a family" in said(2, str(tmp_path / "config.json"))[1]
    assert "not a family" in said(2, str(tmp_path))[1]
