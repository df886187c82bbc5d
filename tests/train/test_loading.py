"""A checkpoint is loaded to be trained: every expert in four bits, nothing else touched, and little memory taken."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import bitsandbytes
import pytest
import torch
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional

from gates.errors import IntegrityError, UsageError
from registry import plan
from stages.common.checkpoint import Checkpoint
from stages.train import account, adapters, experts4bit, loading
from tests.support import tiny, whole
from tests.support.adapted import (
    CPU,
    FAMILIES,
    HYBRID,
    MODEL_NAMES,
    MODELS,
    SHARED,
    adapted,
    answers,
    logits,
    settings,
    source,
)


@pytest.fixture(scope="module", params=MODELS, ids=MODEL_NAMES)
def checkpoint(request, tmp_path_factory) -> Checkpoint:
    family, fused = request.param
    return source(tmp_path_factory.mktemp("model"), family, fused=fused)


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Checkpoint:
    return source(tmp_path_factory.mktemp("one"), "qwen3_moe")


def in_numbers(model: Any, folder: Path) -> Any:
    """The whole model as transformers has it, with the numbers that the four bits of `model` stand for."""
    reference = whole.load(folder)
    for layer, quantised in zip(reference.get_decoder().layers, model.get_decoder().layers, strict=True):
        for projection in ("gate_up_proj", "down_proj") if hasattr(layer.mlp, "experts") else ():
            for expert, linear in enumerate(getattr(quantised.mlp.experts, projection)):
                getattr(layer.mlp.experts, projection).data[expert] = experts4bit.numbers(linear.weight)
    return reference


# ---------------------------------------------------------------------------------------------------------- the numbers


def test_with_bf16_experts_it_is_the_whole_model(checkpoint):
    model = loading.load(checkpoint, settings(experts="bf16"), device=CPU)
    reference = whole.load(checkpoint.folder)
    assert logits(model, answers()).equal(logits(reference, answers()))
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_every_expert_is_in_four_bits_and_all_else_is_as_it_was(checkpoint):
    model = loading.load(checkpoint, settings(), device=CPU)
    found = account.of(model, settings())
    architecture = checkpoint.architecture
    assert found.matrices == found.in_4bit == 2 * architecture.experts * len(architecture.expert_layers)
    numbers = sum(spec.size // 2 for spec in architecture.tensors(fused=True, mtp=False) if spec.part.projection)
    assert found.experts == numbers / 2
    reference = in_numbers(model, checkpoint.folder)
    torch.testing.assert_close(logits(model, answers()), logits(reference, answers()), rtol=1e-4, atol=1e-4)


def test_four_bits_are_near_the_numbers_that_they_stand_for(one):
    """NF4 of normal numbers is about 9 % off, and hardly more where the scales are quantised too."""
    for double, most in ((False, 0.10), (True, 0.105)):
        model = loading.load(one, settings(double_quantization=double), device=CPU)
        for projection, stacked in (("gate_up_proj", ("gate_proj", "up_proj")), ("down_proj", ("down_proj",))):
            for expert, linear in enumerate(getattr(model.model.layers[1].mlp.experts, projection)):
                names = [f"model.layers.1.mlp.experts.{expert}.{each}.weight" for each in stacked]
                exact = torch.cat([one.tensor(name) for name in names]).float()
                numbers = experts4bit.numbers(linear.weight)
                assert 0.08 < ((numbers - exact).norm() / exact.norm()).item() < most


@given(rows=st.integers(1, 99), columns=st.integers(1, 99), seed=st.integers(0, 9), double=st.booleans())
@settings_of_hypothesis(max_examples=60)
def test_four_bits_stand_for_the_nearest_of_sixteen_numbers_whatever_the_width(rows, columns, seed, double):
    """In blocks of 64 along the rows, each with its largest number as its scale; the last block may be shorter."""
    matrix = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    linear = experts4bit.quantised(matrix, double=double)
    blocks = functional.pad(matrix.flatten(), (0, -matrix.numel() % 64)).view(-1, 64)
    scales = blocks.abs().amax(1, keepdim=True)
    sixteen = bitsandbytes.functional.get_4bit_type("nf4", device="cpu")
    nearest = sixteen[(blocks / scales).unsqueeze(-1).sub(sixteen).abs().argmin(-1)] * scales
    expected = nearest.flatten()[: matrix.numel()].view(matrix.shape)
    off = (experts4bit.numbers(linear.weight) - expected).norm() / expected.norm()
    assert off < (0.01 if double else 1e-6)
    assert linear.weight.nbytes == -(-matrix.numel() // 2)


@pytest.mark.parametrize("width", [64, 40])
def test_the_gradients_are_those_of_the_numbers(tmp_path, width):
    """What reaches an adapter below the experts passes through them; and gradient checkpointing changes nothing."""
    checkpoint = source(tmp_path, "qwen3_moe", width=width)
    model = adapted(checkpoint, settings())
    reference = adapters.attach(in_numbers(model.get_base_model(), checkpoint.folder).requires_grad_(False), settings())
    adapters.load_state(reference, adapters.state(model))
    found = [_gradients(each, checkpointing=False) for each in (model, reference)]
    assert found[0].keys() == adapters.state(model).keys()
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-3, atol=1e-5)
    again = _gradients(model, checkpointing=True)
    assert all(again[name].equal(gradient) for name, gradient in found[0].items())


def _gradients(model: Any, *, checkpointing: bool) -> dict[str, torch.Tensor]:
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    batch = answers()
    model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels).loss.backward()
    found = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.requires_grad}
    model.zero_grad()
    return found


def test_evaluating_changes_neither_the_numbers_nor_the_weights(one):
    """bitsandbytes packs weights anew in place on some CPUs when a model is evaluated, and then computes in BF16."""
    model = loading.load(one, settings(), device=CPU)
    before = [linear.weight.clone() for linear in model.model.layers[0].mlp.experts.down_proj]
    said = logits(model.train(), answers())
    assert logits(model.eval(), answers()).equal(said)
    assert logits(model.train(), answers()).equal(said)
    after = [linear.weight for linear in model.model.layers[0].mlp.experts.down_proj]
    assert all(a.equal(b) for a, b in zip(before, after, strict=True))


def test_moving_the_model_keeps_the_four_bits(one):
    """As a trainer does before it begins."""
    model = adapted(one, settings())
    said, before = logits(model, answers()), account.of(model, settings())
    assert account.of(model.to(CPU), settings()) == before
    assert logits(model, answers()).equal(said)


def test_tied_embeddings_stay_tied(tmp_path):
    checkpoint = source(tmp_path, "qwen3_moe", tie_word_embeddings=True)
    model = loading.load(checkpoint, settings(experts="bf16"), device=CPU)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert logits(model, answers()).equal(logits(whole.load(checkpoint.folder), answers()))


def test_layers_without_experts_are_loaded_too(tmp_path):
    checkpoint = source(tmp_path, "qwen3_moe", mlp_only_layers=[1])
    model = loading.load(checkpoint, settings(), device=CPU)
    assert account.of(model, settings()).in_4bit == 2 * 8 * 2
    assert adapted(checkpoint, settings()) is not None


# ---------------------------------------------------------------------------------------------------------- the account


def test_an_expert_that_is_not_in_four_bits_is_an_error(one):
    def spoilt(spoil: Any) -> Any:
        model = loading.load(one, settings(), device=CPU)
        spoil(model.model.layers[1].mlp)
        return model

    def whole_numbers(mlp: Any) -> None:
        mlp.experts.down_proj[3] = nn.Linear(64, 64, bias=False)

    def one_missing(mlp: Any) -> None:
        del mlp.experts.gate_up_proj[7]

    def half(mlp: Any) -> None:
        mlp.experts.gate_up_proj[2] = experts4bit.quantised(torch.ones(64, 64), double=True)

    for spoil, message in (
        (whole_numbers, "not quantised: torch.float32"),
        (one_missing, "7 of 8 experts"),
        (half, "was not quantised"),
    ):
        with pytest.raises(IntegrityError, match=message) as caught:
            account.of(spoilt(spoil), settings())
        assert "layers.1.mlp.experts" in str(caught.value.where)
    with pytest.raises(IntegrityError, match="Qwen3MoeExperts"):
        account.of(loading.load(one, settings(experts="bf16"), device=CPU), settings())


@pytest.mark.parametrize(
    ("family", "written", "width"),
    [(family, "nf4-double", 128) for family in FAMILIES]
    + [("qwen3_moe", "nf4", 40), ("mixtral", "nf4-double", 24), ("olmoe", "bf16", 128)],
)
def test_the_plan_predicts_what_is_held(tmp_path, family, written, width):
    """To the byte, but for the constants that bitsandbytes keeps with each matrix: 16 numbers, and with double
    quantisation 256 more and their offset."""
    checkpoint = source(tmp_path, family, width=width)
    chosen = settings(
        experts="bf16" if written == "bf16" else "nf4", double_quantization=written == "nf4-double", lora={"rank": 16}
    )
    model = adapters.attach(loading.load(checkpoint, chosen, device=CPU, dtype=torch.bfloat16), chosen)
    found = account.of(model, chosen)
    planned = plan.training(
        plan.of_tensors(checkpoint.architecture, checkpoint.tensors),
        plan.Terms(format=written, mtp=True, vision=False),
        rank=16,
    )
    constants = {"bf16": 0, "nf4": 64, "nf4-double": 64 + 4 + 1024}[written] * found.matrices
    rotary = sum(buffer.nbytes for buffer in model.buffers())
    assert found.experts == planned.weights["experts"]
    assert found.scales == planned.weights["scales"] + constants
    assert found.adapters == planned.adapters / plan.LEARNING * 4
    assert found.total - found.adapters - constants - rotary == sum(planned.weights.values())


# ----------------------------------------------------------------------------------------------------------- the memory

MEMORY = """
import sys
from pathlib import Path
import torch
from stages.common.checkpoint import Checkpoint
from stages.common.memory import give_back
from stages.train import account, adapters, loading, merging, shipped
from tests.support.adapted import CPU, answers, settings

def now(peak=False):
    line = next(l for l in open("/proc/self/status") if l.startswith("VmHWM" if peak else "VmRSS"))
    return int(line.split()[1]) * 1024

def begin():
    give_back()
    open("/proc/self/clear_refs", "w").write("5")
    return now()

torch.set_num_threads(1)
small, large = (Checkpoint(Path(folder)) for folder in sys.argv[1:])
def whole_line(checkpoint):  # imports and first calls take memory of their own
    model = adapters.attach(loading.load(checkpoint, settings(), device=CPU, dtype=torch.bfloat16), settings())
    return model
shipped.loss(small, merging.deltas(whole_line(small), small), [answers()], device=CPU)
before = begin()
model = whole_line(large)
loaded = now(peak=True) - before
held = account.of(model, settings())
before = begin()
shipped.loss(large, merging.deltas(model, large), [answers()], device=CPU)
print(loaded, held.total, now(peak=True) - before)
"""


def test_neither_loading_nor_measuring_takes_more_than_the_model_in_four_bits_and_one_layer(tmp_path, project):
    """Peak memory of a process: loading stays below the 4-bit model and one layer in BF16, and measuring the model as
    it would ship adds one layer (in float32, as everything is computed on a CPU) to what is held."""
    wide = {"hidden_size": 512, "moe_intermediate_size": 256, "num_experts": 40, "num_hidden_layers": 2}
    small = source(tmp_path / "small", "qwen3_moe").folder
    large = _drawn(tmp_path / "large", wide)
    layer = 40 * 3 * 512 * 256 * 2
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, small, large], cwd=project, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    loaded, held, measured = map(int, done.stdout.split())
    whole_model = sum(tensor.size for tensor in Checkpoint(large).tensors.values())
    assert held < loaded < held + layer < whole_model
    assert measured < 2 * layer + layer / 2


def _drawn(folder: Path, changes: dict[str, int]) -> Path:
    """As `tiny.make`, drawn by torch: so many numbers would take Python a minute."""
    folder.mkdir()
    config = tiny.config_of("qwen3_moe", **changes)
    tiny.write_json(folder / "config.json", config)
    from registry.families import architecture_of

    specs = architecture_of(config).tensors(fused=False, mtp=False)
    save_file({spec.name: torch.randn(spec.shape).bfloat16() for spec in specs}, folder / "model.safetensors")
    return folder


# ------------------------------------------------------------------------------------------------------ what is refused


def test_quantised_weights_are_not_trained(tmp_path):
    folder = tiny.make(tmp_path, "qwen3_moe", fused=False, block=(128, 128))
    with pytest.raises(UsageError, match="quantised weights are not trained"):
        loading.load(Checkpoint(folder), settings(), device=CPU)


@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe", "glm4_moe_lite"])
def test_a_family_that_is_not_trained_is_refused_by_name(tmp_path, family):
    folder = tiny.make(tmp_path, family, fused=False)
    with pytest.raises(UsageError, match=f"{family} is not trained") as caught:
        loading.load(Checkpoint(folder), settings(), device=CPU)
    assert "qwen3_5_moe, qwen3_5_moe_text, qwen3_moe" in str(caught.value)


EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"
NAN = torch.full((64, 64), torch.nan, dtype=torch.bfloat16)
TOGETHER = "model.layers.1.mlp.experts.gate_up_proj"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors: tensors.pop(EXPERT), "expert 3 of layer 1 has no up_proj"),
        (lambda tensors: tensors.update({EXPERT: torch.ones(1, 1)}), "the shape is"),
        (lambda tensors: tensors.update({EXPERT: NAN}), "holds NaN or infinity"),
        (lambda tensors: tensors.update({EXPERT.replace(".3.", ".8."): torch.ones(64, 64)}), "states fewer experts"),
        (lambda tensors: tensors.update({TOGETHER: torch.ones(8, 128, 64)}), "both one by one and together"),
        (lambda tensors: tensors.pop("model.layers.1.mlp.gate.weight"), "gate.weight"),
        (lambda tensors: tensors.pop("model.norm.weight"), "model.norm.weight"),
        (lambda tensors: tensors.pop("lm_head.weight"), "lm_head.weight"),
        (lambda tensors: tensors.update({"model.embed_tokens.weight": torch.ones(5, 64)}), "the shape is"),
    ],
)
def test_a_damaged_checkpoint_is_an_error(tmp_path, damage, message):
    folder = source(tmp_path, "qwen3_moe").folder
    _damage(folder, damage)
    with pytest.raises(IntegrityError, match=message):
        loading.load(Checkpoint(folder), settings(), device=CPU)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors: tensors.pop(TOGETHER), "have no gate_up_proj"),
        (lambda tensors: tensors.update({TOGETHER: torch.ones(7, 128, 64)}), "the shape is"),
    ],
)
def test_damaged_experts_in_one_tensor_are_an_error(tmp_path, damage, message):
    folder = source(tmp_path, "qwen3_moe", fused=True).folder
    _damage(folder, damage)
    with pytest.raises(IntegrityError, match=message):
        loading.load(Checkpoint(folder), settings(), device=CPU)


def _damage(folder: Path, damage: Any) -> None:
    shard = folder / "model.safetensors"
    tensors = load_file(shard)
    damage(tensors)
    shard.unlink()
    save_file(tensors, shard, {"format": "pt"})


# --------------------------------------------------------------------------------------------------------- the adapters


@pytest.mark.parametrize("family", FAMILIES)
def test_adapters_are_the_only_part_that_is_trained_and_change_nothing_at_first(tmp_path, family):
    checkpoint = source(tmp_path, family)
    model = loading.load(checkpoint, settings(), device=CPU)
    before = logits(model, answers())
    model = adapters.attach(model, settings())
    trained = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
    assert all("lora_" in name for name in trained)
    assert {weight.dtype for weight in trained.values()} == {torch.float32}
    assert logits(model, answers()).equal(before)
    layers = len(checkpoint.architecture.expert_layers)
    routers = [name for name in trained if ".mlp.gate." in name]
    assert len(routers) == 2 * layers
    shared = [name for name in trained if ".shared_expert" in name]
    assert len(shared) == (2 * 3 * layers if family in SHARED else 0)
    if family in HYBRID:
        assert {name.split(".linear_attn.")[1].split(".")[0] for name in trained if "linear_attn" in name} == {
            "out_proj", *(("in_proj_qkvz", "in_proj_ba") if family == "qwen3_next" else
                          ("in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b"))
        }  # fmt: skip


def test_adapters_are_drawn_by_the_seed_and_by_nothing_else(one):
    def drawn(seed: int) -> dict[str, torch.Tensor]:
        model = adapters.attach(loading.load(one, settings(), device=CPU), settings(seed=seed))
        return adapters.state(model)

    torch.manual_seed(5)
    first = drawn(0)
    following = torch.rand(1)
    torch.manual_seed(6)
    assert all(tensor.equal(first[name]) for name, tensor in drawn(0).items())
    assert any(not tensor.equal(first[name]) for name, tensor in drawn(1).items())
    torch.manual_seed(5)
    assert torch.rand(1).equal(following)


def test_adapters_are_kept_and_put_back(one):
    model, other = adapted(one, settings(), seed=1), adapted(one, settings(), seed=2)
    kept = adapters.state(model)
    said = logits(model, answers())
    assert not logits(other, answers()).equal(said)
    adapters.load_state(other, kept)
    assert logits(other, answers()).equal(said)
    for spoilt in (
        {name: tensor for name, tensor in kept.items() if "gate" not in name},
        {**kept, "more": torch.ones(1)},
        {name: tensor[:1] for name, tensor in kept.items()},
    ):
        with pytest.raises(IntegrityError, match="the adapters hold"):
            adapters.load_state(other, spoilt)
    assert logits(other, answers()).equal(said)


def test_only_the_targets_that_were_chosen_get_adapters(one):
    for target, inside in (("attention", "self_attn"), ("router", "mlp.gate")):
        chosen = settings(lora={"rank": 2, "targets": [target]})
        model = adapters.attach(loading.load(one, chosen, device=CPU), chosen)
        assert all(inside in name for name in adapters.state(model))
    chosen = settings(lora={"rank": 2, "targets": ["attention", "shared_expert"]})
    with pytest.raises(UsageError, match="no shared_expert to train") as caught:
        adapters.attach(loading.load(one, chosen, device=CPU), chosen)
    assert "it has attention, router" in str(caught.value)


def test_dropout_is_where_it_can_be_and_only_while_training(one):
    chosen = settings(lora={"rank": 4, "dropout": "0.5"})
    model = adapted(one, chosen)
    evaluated = logits(model.eval(), answers())
    assert logits(model.eval(), answers()).equal(evaluated)
    assert not logits(model.train(), answers()).equal(evaluated)
    assert logits(model.eval(), answers()).equal(evaluated)


def test_what_training_takes_is_told_in_json(one):
    record = account.of(adapted(one, settings()), settings()).record()
    assert json.loads(json.dumps(record)) == record
    assert record["total"] == sum(record[part] for part in ("experts", "scales", "adapters", "other"))
