"""What was trained is folded into the checkpoint: the sum that was trained, in the names and bytes that were there."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gates.errors import IntegrityError
from registry.manifests import Inputs
from registry.store import Store
from registry.tensors import read_header
from registry.verify import verify
from stages.common.checkpoint import Checkpoint
from stages.quantize import write_fp8
from stages.train import adapters, loading, merging, shipped
from stages.train.answers import IGNORED, Answers
from tests.support import adapted, whole
from tests.support.adapted import CPU, FAMILIES, HYBRID, MODEL_NAMES, MODELS, SHARED, answers, logits, source


def merged(checkpoint: Checkpoint, model: object, target: Path) -> Checkpoint:
    merging.merge(checkpoint, merging.deltas(model, checkpoint), target)
    return Checkpoint(target)


_CALM = {
    "width": 128,
    "head_dim": 64,
    "shared_expert_intermediate_size": 128,
    "full_attention_interval": 2,
    "linear_key_head_dim": 64,
    "linear_value_head_dim": 32,
}
"""Of the hybrid families: as tiny as the others are, their linear attention turns 1e-7 into 1e-4. And all of it can be
quantised."""


@pytest.mark.parametrize(("family", "fused"), MODELS, ids=MODEL_NAMES)
def test_the_merged_model_answers_as_the_adapters_did(tmp_path, family, fused):
    """To 1e-5 of the largest logit, in float32: with experts as they are on disk, as transformers loads them, and over
    experts in four bits."""
    changes = {"num_hidden_layers": 2} | (_CALM if family in HYBRID else {})
    checkpoint = source(tmp_path / "source", family, fused=fused, float32=True, **changes)
    for experts in ("bf16", "nf4"):
        chosen = adapted.settings(experts=experts)
        model = adapted.adapted(checkpoint, chosen)
        made = merged(checkpoint, model, tmp_path / experts)
        with model.disable_adapter():
            before = logits(model, answers())
        after = logits(model, answers())
        assert (after - before).abs().max() > 0.1
        again = whole.load(made.folder) if experts == "bf16" else loading.load(made, chosen, device=CPU)
        assert (logits(again, answers()) - after).abs().max() <= 1e-5 * after.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_each_module_answers_as_it_did_with_its_adapter(tmp_path, family):
    """To 1e-5 in float32, whatever the layers behind it make of the difference."""
    from peft.tuners.lora.layer import LoraLayer

    checkpoint = source(tmp_path, family, float32=True)
    model = adapted.adapted(checkpoint, adapted.settings())
    folded = merging.Merged(checkpoint, merging.deltas(model, checkpoint))
    modules = {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}
    assert len(modules) == len(folded.deltas) > 0
    generator = torch.Generator().manual_seed(0)
    for (name, module), on_disk in zip(modules.items(), folded.deltas, strict=True):
        states = torch.randn(5, module.in_features, generator=generator)
        expected = torch.nn.functional.linear(states, folded.tensor(on_disk), getattr(module, "bias", None))
        with torch.no_grad():
            found = module(states)
        if isinstance(found, tuple):  # a router: logits, the weights of the chosen, and which they are
            expected_weights = expected.softmax(-1).gather(-1, found[2])
            text = checkpoint.architecture.text
            norm = expected_weights.sum(-1, keepdim=True) if text.get("norm_topk_prob", True) else 1
            factor = text.get("routed_scaling_factor", 1)
            torch.testing.assert_close(found[1], factor * expected_weights / norm, rtol=0, atol=1e-5)
            found = found[0]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize(("family", "fused"), MODELS, ids=MODEL_NAMES)
def test_every_other_tensor_keeps_its_bytes_and_all_keep_their_places(tmp_path, family, fused):
    checkpoint = source(tmp_path / "source", family, fused=fused, shards=3)
    model = adapted.adapted(checkpoint, adapted.settings())
    deltas = merging.deltas(model, checkpoint)
    made = merged(checkpoint, model, tmp_path / "made")
    assert list(made.tensors) == list(checkpoint.tensors)
    assert made.weight_map == checkpoint.weight_map
    for name, entry in checkpoint.tensors.items():
        same = made.tensor(name).view(torch.uint8).equal(checkpoint.tensor(name).view(torch.uint8))
        assert same == (name not in deltas), name
        assert (entry.dtype, entry.shape) == (made.tensors[name].dtype, made.tensors[name].shape)
    adapters_on = {checkpoint.architecture.part(name).role for name in deltas}
    assert adapters_on == {"attention", "router"} | ({"shared experts"} if family in SHARED else set())
    assert not any(checkpoint.architecture.part(name).mtp for name in deltas)
    for name, path in checkpoint.files.items():
        if not name.endswith(".safetensors"):
            assert made.files[name].read_bytes() == path.read_bytes(), name


def test_a_tensor_is_summed_in_float32_and_rounded_once(tmp_path):
    checkpoint = source(tmp_path / "source", "qwen3_moe")
    model = adapted.adapted(checkpoint, adapted.settings(), spread=0.01)
    made = merged(checkpoint, model, tmp_path / "made")
    for name, delta in merging.deltas(model, checkpoint).items():
        exact = checkpoint.tensor(name).double() + delta.scale * (delta.b.double() @ delta.a.double())
        found = made.tensor(name)
        assert found.dtype == torch.bfloat16
        # half a unit in the last of BF16's eight places, and float32's own rounding
        assert ((found.double() - exact).abs() <= exact.abs() * 2**-8 * (1 + 2**-10)).all()
        assert (found == exact.bfloat16()).float().mean() > 0.999


def test_nothing_trained_is_nothing_changed(tmp_path):
    checkpoint = source(tmp_path / "source", "qwen3_5_moe")
    chosen = adapted.settings()
    model = adapters.attach(loading.load(checkpoint, chosen, device=CPU), chosen)
    made = merged(checkpoint, model, tmp_path / "made")
    for name in checkpoint.tensors:
        assert made.tensor(name).equal(checkpoint.tensor(name)), name


@settings(max_examples=60)
@given(
    out=st.integers(1, 9),
    into=st.integers(1, 9),
    rank=st.integers(1, 4),
    scale=st.floats(0.01, 4),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
    seed=st.integers(0, 99),
)
def test_what_is_added_can_be_taken_away_up_to_rounding(out, into, rank, scale, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(out, into, generator=generator).to(dtype)
    a, b = torch.randn(rank, into, generator=generator), torch.randn(out, rank, generator=generator)
    there = merging.Delta(a, b, scale).added_to(matrix)
    assert there.dtype == dtype
    back = merging.Delta(a, b, -scale).added_to(there)
    rounded = torch.finfo(dtype).eps * (there.float().abs() + back.float().abs())
    summed = torch.finfo(torch.float32).eps * (rank + 2) * (matrix.float().abs() + scale * (b.abs() @ a.abs()))
    assert ((back.float() - matrix.float()).abs() <= rounded + 2 * summed).all()


def test_what_was_read_from_the_adapters_does_not_change_with_them(tmp_path):
    checkpoint = source(tmp_path, "qwen3_moe")
    model = adapted.adapted(checkpoint, adapted.settings())
    deltas = merging.deltas(model, checkpoint)
    kept = {name: (delta.a.clone(), delta.b.clone()) for name, delta in deltas.items()}
    adapters.load_state(model, {name: tensor + 1 for name, tensor in adapters.state(model).items()})
    assert all(delta.a.equal(kept[name][0]) and delta.b.equal(kept[name][1]) for name, delta in deltas.items())


# ----------------------------------------------------------------------------------------------------- as it would ship


@pytest.mark.parametrize(("family", "fused"), MODELS, ids=MODEL_NAMES)
def test_what_would_ship_is_measured_as_it_ships(tmp_path, family, fused):
    """To the last bit what transformers says of the merged checkpoint, which was not written for it."""
    checkpoint = source(tmp_path / "source", family, fused=fused)
    model = adapted.adapted(checkpoint, adapted.settings())
    batches = [answers(), answers(rows=1, tokens=9, seed=1)]
    deltas = merging.deltas(model, checkpoint)
    found = shipped.loss(checkpoint, deltas, batches, device=CPU)
    merging.merge(checkpoint, deltas, tmp_path / "made")
    expected = [_losses(whole.load(tmp_path / "made"), batch) for batch in batches]
    assert found.losses.equal(torch.cat([losses for losses, _ in expected]))
    assert found.exact.equal(torch.cat([exact for _, exact in expected]))
    before = shipped.loss(checkpoint, {}, batches, device=CPU)
    assert before.losses.equal(torch.cat([_losses(whole.load(checkpoint.folder), batch)[0] for batch in batches]))
    assert (before.losses - found.losses).abs().max() > 0.01


def test_a_head_that_is_the_embedding_is_measured_too(tmp_path):
    checkpoint = source(tmp_path, "qwen3_moe", tie_word_embeddings=True)
    found = shipped.loss(checkpoint, {}, [answers()], device=CPU)
    assert found.losses.equal(_losses(whole.load(checkpoint.folder), answers())[0])


def _losses(model: object, batch: Answers) -> tuple[torch.Tensor, torch.Tensor]:
    """Token by token as it is defined."""
    said = logits(model, batch)
    losses, exact = [], []
    for row, labels in enumerate(batch.labels):
        places = [place for place, label in enumerate(labels.tolist()) if label != IGNORED]
        rows = [said[row, place - 1] for place in places]
        losses += [
            -torch.log_softmax(each.float(), -1)[labels[place]] for each, place in zip(rows, places, strict=True)
        ]
        exact.append(all(int(each.argmax()) == labels[place] for each, place in zip(rows, places, strict=True)))
    return torch.stack(losses), torch.tensor(exact)


# --------------------------------------------------------------------------------------------------- what becomes of it


def test_the_merged_candidate_is_taken_in_verified_and_quantised(tmp_path):
    checkpoint = source(tmp_path / "source", "qwen3_5_moe", fused=True, **_CALM)
    made = merged(checkpoint, adapted.adapted(checkpoint, adapted.settings()), tmp_path / "made")
    store = Store.init(tmp_path / "models")
    base = store.add("base", checkpoint.folder)
    inputs = Inputs(op="train", parent=base.digest, settings={}, mix=None, seed=0, code="test")
    with store.step(inputs.identity()) as folder:
        merging.merge(made, {}, folder / "model")
        store.commit("tuned", inputs, folder / "model")
    assert verify(store, "tuned", full=True) == []
    account = write_fp8(store.candidate("tuned").folder, tmp_path / "fp8", what="quantize")
    assert account.before == checkpoint.size
    store.add("quantised", tmp_path / "fp8")
    assert verify(store, "quantised", full=True) == []


def test_a_merge_that_was_interrupted_ends_in_the_same_bytes(tmp_path):
    checkpoint = source(tmp_path / "source", "qwen3_moe", shards=3)
    deltas = merging.deltas(adapted.adapted(checkpoint, adapted.settings()), checkpoint)
    merging.merge(checkpoint, deltas, tmp_path / "made")
    expected = {path.name: path.read_bytes() for path in (tmp_path / "made").iterdir()}

    def stop(_done: float) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merging.merge(checkpoint, deltas, tmp_path / "again", advance=stop)
    merging.merge(checkpoint, deltas, tmp_path / "again")
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == expected


def test_shards_can_be_of_a_size(tmp_path):
    checkpoint = source(tmp_path / "source", "qwen3_moe")
    deltas = merging.deltas(adapted.adapted(checkpoint, adapted.settings()), checkpoint)
    merging.merge(checkpoint, deltas, tmp_path / "made", shard_size=200_000)
    made = Checkpoint(tmp_path / "made")
    assert len(made.shards) > 1
    assert all(sum(each.size for each in read_header(made.files[name]).values()) <= 200_000 for name in made.shards)
    index = json.loads((tmp_path / "made" / "model.safetensors.index.json").read_text())
    assert index["weight_map"] == made.weight_map


# ------------------------------------------------------------------------------------------------------ what is refused


def test_adapters_of_another_model_are_refused_and_nothing_is_written(tmp_path):
    checkpoint = source(tmp_path / "source", "qwen3_moe")
    model = adapted.adapted(checkpoint, adapted.settings())
    deltas = merging.deltas(model, checkpoint)
    wider = source(tmp_path / "wider", "qwen3_moe", num_attention_heads=8)
    with pytest.raises(IntegrityError, match=r"the adapter is of a matrix \[32, 64\], the tensor is \[64, 64\]"):
        merging.merge(wider, deltas, tmp_path / "made")
    shallow = source(tmp_path / "shallow", "qwen3_moe", num_hidden_layers=2)
    with pytest.raises(IntegrityError, match=r"there is no tensor model\.layers\.2"):
        merging.merge(shallow, deltas, tmp_path / "made")
    with pytest.raises(IntegrityError, match="layer 2 was trained, but there are 2"):
        merging.deltas(model, shallow)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("spread", [float("nan"), 1e30])
def test_adapters_that_broke_while_training_are_not_merged(tmp_path, spread):
    checkpoint = source(tmp_path / "source", "qwen3_moe")
    deltas = merging.deltas(adapted.adapted(checkpoint, adapted.settings(), spread=spread), checkpoint)
    with pytest.raises(IntegrityError, match="holds NaN or infinity"):
        merging.merge(checkpoint, deltas, tmp_path / "made")
    with pytest.raises(IntegrityError, match="holds NaN or infinity"):
        shipped.loss(checkpoint, deltas, [answers()], device=CPU)
