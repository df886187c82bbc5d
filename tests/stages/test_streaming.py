"""One layer at a time gives what the whole model gives, to the last bit."""

from __future__ import annotations

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from gates.errors import IntegrityError
from stages.common import calibration
from stages.common import experts as experts_module
from stages.common.checkpoint import Checkpoint
from stages.common.streaming import LayerStream
from tests.support import tiny, whole
from tests.support.moe import write_model
from tests.support.whole import batches_of

SHAPES = {
    "top 2 of 8": {},
    "top 3 of 10, unnormalised": {"num_experts": 10, "num_experts_per_tok": 3, "norm_topk_prob": False},
    "top 1 of 9": {"num_experts": 9, "num_experts_per_tok": 1},
    "a dense layer between": {"mlp_only_layers": [1]},
    "every second layer sparse": {"decoder_sparse_step": 2},
    "tied embeddings": {"tie_word_embeddings": True},
    "sliding window": {"use_sliding_window": True, "sliding_window": 4},
}


MODELS = [*SHAPES, *whole.MODELS]


@pytest.fixture(scope="module", params=MODELS)
def folder(request, tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("model")
    if request.param in SHAPES:
        return write_model(made, **SHAPES[request.param])
    family, layout = request.param.split(", ")
    return tiny.make(made, family, fused=whole.LAYOUTS[layout])


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("one"))


def embedded(stream: LayerStream, batches: list[calibration.Batch]) -> list[torch.Tensor]:
    with stream.embedding() as embed:
        return [embed(batch) for batch in batches]


def test_each_layers_states_are_those_of_the_whole_model(folder):
    batches = batches_of(folder)
    assert any((batch.attention_mask == 0).any() for batch in batches)
    assert any((batch.attention_mask == 1).all() for batch in batches)
    expected = whole.states(whole.load(folder), batches)
    stream = LayerStream(Checkpoint(folder))
    states = embedded(stream, batches)
    for layer in range(stream.layers):
        with stream.loaded(layer) as block:
            states = [block.run(batch, state) for batch, state in zip(batches, states, strict=True)]
        for state, reference in zip(states, expected[layer], strict=True):
            assert (state - reference).abs().max() == 0.0
            assert reference.abs().max() > 0.1


def test_no_more_than_one_layer_is_in_memory(one):
    stream = LayerStream(Checkpoint(one))
    batch = batches_of(one)[0]
    state = embedded(stream, [batch])[0]

    def in_memory() -> set[str]:
        return {name for name, tensor in stream._decoder.named_parameters() if tensor.device.type != "meta"}

    assert in_memory() == set()
    for layer in range(stream.layers):
        with stream.loaded(layer) as block:
            state = block.run(batch, state)
            assert {name.split(".")[1] for name in in_memory()} == {str(layer)}
            assert not any(parameter.is_meta for parameter in block.module.parameters())
        assert in_memory() == set()


def test_looking_on_changes_nothing_and_sees_the_router_and_every_answer(one):
    batch = batches_of(one)[0]
    stream = LayerStream(Checkpoint(one))
    with stream.loaded(0) as block:
        attended = block.attend(batch, embedded(stream, [batch])[0])
        before = block.answer(attended)
        routing = block.routing(attended)
        assert block.answer(attended).equal(before)
        moe = block.module.mlp
        x = block.module.post_attention_layernorm(attended).flatten(0, 1)
        tokens = batch.input_ids.numel()
        assert routing.index.shape == routing.weights.shape == routing.norms.shape == (tokens, 2)
        assert routing.logits.equal(x @ moe.gate.weight.T)
        assert routing.logits.softmax(-1).topk(2).indices.equal(routing.index)
        for token in (0, tokens - 1):
            for place, expert in enumerate(routing.index[token].tolist()):
                gate, up = (moe.experts.gate_up_proj[expert] @ x[token]).chunk(2)
                answer = moe.experts.down_proj[expert] @ (torch.nn.functional.silu(gate) * up)
                torch.testing.assert_close(routing.norms[token, place], answer.norm())


def test_long_rows_are_answered_in_pieces_with_the_same_result(one, monkeypatch):
    batch = max(batches_of(one), key=lambda batch: batch.input_ids.shape[1])
    stream = LayerStream(Checkpoint(one))
    with stream.loaded(0) as block:
        attended = block.attend(batch, embedded(stream, [batch])[0])
        at_once, seen = block.answer(attended), block.routing(attended)
        monkeypatch.setattr(experts_module, "ANSWER_BYTES", 7 * 2 * 32 * 4)  # seven tokens at a time
        torch.testing.assert_close(block.answer(attended), at_once)
        torch.testing.assert_close(block.routing(attended).norms, seen.norms)


def test_threads_may_share_a_layer(one):
    """More threads than cores, over batches of different shapes: what one asks for is never another's."""
    batches = batches_of(one) * 6
    stream = LayerStream(Checkpoint(one))
    states = embedded(stream, batches)
    with stream.loaded(1) as block:
        alone = [block.run(batch, state) for batch, state in zip(batches, states, strict=True)]
        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(block.run, batches, states))
    assert all(a.equal(b) for a, b in zip(alone, together, strict=True))


def test_a_thread_at_work_computes_on_with_its_weights_when_the_layer_is_left_by_an_interruption(one):
    """A product with weights that were taken away meanwhile is no error: it is whatever lay in memory."""
    batch = batches_of(one, (60,))[0]
    stream = LayerStream(Checkpoint(one))
    routed, left = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        routed.set()
        left.wait(10)

    with ThreadPoolExecutor(1) as pool:
        with suppress(KeyboardInterrupt), stream.loaded(0) as block:
            attended = block.attend(batch, embedded(stream, [batch])[0])
            expected = block.answer(attended)
            block.module.mlp.gate.register_forward_hook(wait)
            answer = pool.submit(block.answer, attended)
            routed.wait(10)
            raise KeyboardInterrupt
        left.set()
        assert answer.result().equal(expected)


def test_the_layer_computes_with_the_experts_that_are_left(one):
    """Removing experts that no token was routed to changes nothing; the others' places are filled in order."""
    batch = batches_of(one, (3,))[0]
    stream = LayerStream(Checkpoint(one))
    with stream.loaded(0) as block:
        assert block.experts == 8
        attended = block.attend(batch, embedded(stream, [batch])[0])
        before = block.answer(attended)
        asked = set(block.routing(attended).index.flatten().tolist())
        weights = block.module.mlp.experts.down_proj.clone()
        kept = sorted({*asked, 7})
        assert len(asked) > 1
        assert len(kept) < 8
        block.keep(kept)
        assert block.experts == len(kept)
        assert block.module.mlp.experts.down_proj.equal(weights[kept])
        after = block.answer(attended)
    # The weights are renormalised over the top-k, so the experts that are gone leave nothing behind but rounding.
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)


# ------------------------------------------------------------------------------------- checkpoints that are not whole


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tensors: tensors.pop("model.layers.1.mlp.experts.3.up_proj.weight"), "expert 3 has no up_proj"),
        (lambda tensors: tensors.pop("model.layers.1.self_attn.q_proj.weight"), "q_proj.weight"),
        (lambda tensors: tensors.pop("model.layers.1.mlp.gate.weight"), "mlp"),
        (lambda tensors: tensors.update({"model.layers.1.mlp.extra.weight": torch.ones(2)}), "extra.weight"),
        (
            lambda tensors: tensors.update({"model.layers.1.mlp.experts.8.up_proj.weight": torch.ones(24, 32)}),
            "config.json states fewer experts",
        ),
        (
            lambda tensors: tensors.update({"model.layers.1.mlp.experts.3.up_proj.weight": torch.ones(1, 1)}),
            "the shape is",
        ),
    ],
)
def test_a_tensor_missing_or_too_much_or_of_another_shape_is_an_error(one, tmp_path, damage, message):
    folder = tmp_path / "damaged"
    shutil.copytree(one, folder)
    tensors = load_file(folder / "model.safetensors")
    damage(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    stream = LayerStream(Checkpoint(folder))
    with pytest.raises(IntegrityError, match=message), stream.loaded(1):
        pass


def test_an_embedding_of_another_shape_is_an_error(one, tmp_path):
    folder = tmp_path / "damaged"
    shutil.copytree(one, folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"] = torch.ones(5, 32)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(IntegrityError, match=r"the shape is \[5, 32\]"):
        embedded(LayerStream(Checkpoint(folder)), batches_of(one))
