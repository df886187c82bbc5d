"""One layer at a time gives what the whole model gives, to the last bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from gates.errors import IntegrityError
from stages.common import calibration
from stages.common.checkpoint import Checkpoint
from stages.common.streaming import LayerStream, Routing
from tests.support.moe import whole_model, write_model

SHAPES = {
    "top 2 of 8": {},
    "top 3 of 10, unnormalised": {"num_experts": 10, "num_experts_per_tok": 3, "norm_topk_prob": False},
    "top 1 of 9": {"num_experts": 9, "num_experts_per_tok": 1},
    "a dense layer between": {"mlp_only_layers": [1]},
    "every second layer sparse": {"decoder_sparse_step": 2},
    "tied embeddings": {"tie_word_embeddings": True},
    "sliding window": {"use_sliding_window": True, "sliding_window": 4},
}


@pytest.fixture(scope="module", params=SHAPES.values(), ids=SHAPES.keys())
def folder(request, tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), **request.param)


@pytest.fixture(scope="module")
def one(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("one"))


def batches_of(folder: Path, lengths=(5, 60, 3, 90, 17, 40, 280)) -> list[calibration.Batch]:
    """Rows of different lengths in batches of up to 300 tokens: some padded, some not."""
    chats = ({"messages": [{"role": "user", "content": chr(97 + n) * length}]} for n, length in enumerate(lengths))
    rows = b"".join(json.dumps(chat).encode() + b"\n" for chat in chats)
    return calibration.batches(rows, AutoTokenizer.from_pretrained(folder), 256, batch_tokens=300)


def whole_states(folder: Path, batches: list[calibration.Batch]) -> list[list[torch.Tensor]]:
    """For each layer, what it puts out for each batch, in the whole model as transformers runs it."""
    model = whole_model(folder)
    found: list[list[torch.Tensor]] = [[] for _ in model.model.layers]
    for layer, states in zip(model.model.layers, found, strict=True):
        layer.register_forward_hook(lambda _module, _arguments, output, states=states: states.append(output))
    with torch.no_grad():
        for batch in batches:
            model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    return found


def test_each_layers_states_are_those_of_the_whole_model(folder):
    batches = batches_of(folder)
    assert any((batch.attention_mask == 0).any() for batch in batches)
    assert any((batch.attention_mask == 1).all() for batch in batches)
    expected = whole_states(folder, batches)
    stream = LayerStream(Checkpoint(folder))
    states = stream.embed(batches)
    for layer in range(stream.layers):
        with stream.loaded(layer) as block:
            states = block.run(states)
        for state, whole in zip(states, expected[layer], strict=True):
            assert (state - whole).abs().max() == 0.0
            assert whole.abs().max() > 0.1


def test_no_more_than_one_layer_is_in_memory(one):
    stream = LayerStream(Checkpoint(one))
    stream.embed(batches_of(one))

    def in_memory() -> set[str]:
        return {name for name, tensor in stream._model.named_parameters() if tensor.device.type != "meta"}

    assert in_memory() == set()
    for layer in range(stream.layers):
        with stream.loaded(layer) as block:
            assert {name.split(".")[2] for name in in_memory()} == {str(layer)}
            assert not any(parameter.is_meta for parameter in block.module.parameters())
        assert in_memory() == set()


def test_looking_on_changes_nothing(one):
    batches = batches_of(one)
    stream = LayerStream(Checkpoint(one))
    states = stream.embed(batches)
    seen: list[tuple[int, Routing]] = []
    with stream.loaded(0) as block:
        alone = block.run(states)
        watched = block.run(states, lambda *what: seen.append(what))
        again = block.run(states)
    assert all(a.equal(b) and a.equal(c) for a, b, c in zip(alone, watched, again, strict=True))
    assert [batch for batch, _ in seen] == list(range(len(batches)))
    for batch, routing in seen:
        tokens = batches[batch].input_ids.numel()
        assert routing.index.shape == routing.weights.shape == routing.norms.shape == (tokens, 2)
        assert routing.logits.shape == (tokens, 8)
        assert routing.logits.softmax(-1).topk(2).indices.equal(routing.index)


def test_the_layer_computes_with_the_experts_that_are_left(one):
    """Removing experts that no token was routed to changes nothing; the others' places are filled in order."""
    batches = batches_of(one, (3,))
    stream = LayerStream(Checkpoint(one))
    states = stream.embed(batches)
    asked: set[int] = set()
    with stream.loaded(0) as block:
        assert block.experts == 8
        before = block.run(states, lambda _, routing: asked.update(routing.index.flatten().tolist()))
        weights = block.parts.experts.down_proj.clone()
        kept = sorted({*asked, 7})
        assert len(kept) < 8
        block.keep(kept)
        assert block.experts == len(kept)
        assert block.parts.experts.down_proj.equal(weights[kept])
        after = block.run(states)
    assert len(asked) > 1
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
