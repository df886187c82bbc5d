"""What a family's table says of a config.json is what transformers writes for it: every name and every shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from registry.checkpoint import inspect
from registry.families import architecture_of
from registry.tensors import read_header
from tests.support import tiny
from tests.support.tiny_configs import CONFIGS, MTP_KEYS

_few = st.integers(1, 3)


def _eights(most: int = 4) -> st.SearchStrategy[int]:
    return st.integers(1, most).map(lambda n: 8 * n)


WIDTHS: dict[str, dict[str, st.SearchStrategy[Any]]] = {
    "qwen3_moe": {
        "num_hidden_layers": _few,
        "head_dim": _eights(),
        "hidden_size": _eights(),
        "intermediate_size": _eights(),
        "moe_intermediate_size": _eights(),
        "num_experts": st.integers(2, 5),
        "attention_bias": st.booleans(),
        "tie_word_embeddings": st.booleans(),
        "mlp_only_layers": st.lists(st.integers(0, 2), max_size=2, unique=True),
        "decoder_sparse_step": st.integers(1, 2),
    },
    "qwen2_moe": {
        "num_hidden_layers": _few,
        "hidden_size": _eights(),
        "num_key_value_heads": st.sampled_from([1, 2, 4]),
        "intermediate_size": _eights(),
        "moe_intermediate_size": _eights(),
        "shared_expert_intermediate_size": _eights(),
        "num_experts": st.integers(2, 5),
        "qkv_bias": st.booleans(),
        "tie_word_embeddings": st.booleans(),
        "mlp_only_layers": st.lists(st.integers(0, 2), max_size=2, unique=True),
        "decoder_sparse_step": st.integers(1, 2),
    },
    "olmoe": {
        "num_hidden_layers": _few,
        "hidden_size": _eights(),
        "intermediate_size": _eights(),
        "num_key_value_heads": st.sampled_from([1, 2, 4]),
        "attention_bias": st.booleans(),
        "tie_word_embeddings": st.booleans(),
        "num_experts": st.integers(2, 5),
    },
    "mixtral": {
        "num_hidden_layers": _few,
        "hidden_size": _eights(),
        "head_dim": st.none() | _eights(),
        "intermediate_size": _eights(),
        "tie_word_embeddings": st.booleans(),
        "num_local_experts": st.integers(2, 5),
    },
    "deepseek_v3": {
        "num_hidden_layers": _few,
        "hidden_size": _eights(),
        "intermediate_size": _eights(),
        "moe_intermediate_size": _eights(),
        "first_k_dense_replace": st.integers(0, 3),
        "n_routed_experts": st.sampled_from([4, 8]),
        "n_shared_experts": st.integers(1, 2),
        "q_lora_rank": st.none() | _eights(),
        "kv_lora_rank": _eights(),
        "qk_nope_head_dim": _eights(),
        "qk_rope_head_dim": _eights(),
        "v_head_dim": _eights(),
        "attention_bias": st.booleans(),
    },
    "glm4_moe": {
        "num_hidden_layers": _few,
        "hidden_size": _eights(),
        "head_dim": _eights(),
        "intermediate_size": _eights(),
        "moe_intermediate_size": _eights(),
        "first_k_dense_replace": st.integers(0, 3),
        "n_routed_experts": st.integers(2, 5),
        "n_shared_experts": st.integers(1, 2),
        "attention_bias": st.booleans(),
        "use_qk_norm": st.booleans(),
        "tie_word_embeddings": st.booleans(),
    },
    "qwen3_5_moe": {
        "num_hidden_layers": st.integers(1, 5),
        "hidden_size": _eights(),
        "head_dim": _eights(),
        "attention_bias": st.booleans(),
        "moe_intermediate_size": _eights(),
        "shared_expert_intermediate_size": _eights(),
        "num_experts": st.integers(2, 5),
        "linear_num_key_heads": st.integers(1, 2),
        "linear_key_head_dim": _eights(),
        "linear_value_head_dim": _eights(),
        "linear_conv_kernel_dim": st.integers(2, 5),
    },
}
WIDTHS["qwen3_5_moe_text"] = WIDTHS["qwen3_5_moe"]
WIDTHS["qwen3_next"] = WIDTHS["qwen3_5_moe"] | {
    "intermediate_size": _eights(),
    "mlp_only_layers": st.lists(st.integers(0, 2), max_size=2, unique=True),
    "decoder_sparse_step": st.integers(1, 2),
}
WIDTHS["deepseek_v2"] = WIDTHS["deepseek_v3"]
WIDTHS["glm4_moe_lite"] = WIDTHS["deepseek_v3"] | {"first_k_dense_replace": st.just(1)}


@pytest.mark.parametrize("family", sorted(CONFIGS))
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_the_expected_tensors_are_those_that_transformers_writes(tmp_path_factory, family, data):
    config = tiny.config_of(family, **data.draw(st.fixed_dictionaries(WIDTHS[family])))
    folder = tmp_path_factory.mktemp("model")
    tiny.write_json(folder / "config.json", config)
    loaded = transformers.AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        empty = _class(config)(loaded)
    model = empty.to(torch.bfloat16).to_empty(device="cpu")
    model.tie_weights()
    model.save_pretrained(folder)
    written = {name: tensor.shape for name, tensor in _headers(folder).items()}
    specs = architecture_of(config).tensors(fused=False, mtp=False)
    assert {spec.name: spec.shape for spec in specs} == written
    # the config.json that transformers writes says the same
    rewritten = json.loads((folder / "config.json").read_bytes())
    specs = architecture_of(rewritten).tensors(fused=False, mtp=False)
    assert {spec.name: spec.shape for spec in specs} == written
    inspect(folder)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("family", sorted(CONFIGS))
def test_a_tiny_checkpoint_loads_whole_and_is_written_again_in_its_layout(tmp_path: Path, family: str, fused: bool):
    folder = tiny.make(tmp_path / "model", family, fused=fused, mtp=family in MTP_KEYS, shards=2)
    inspect(folder)
    config = json.loads((folder / "config.json").read_bytes())
    model, notes = _class(config).from_pretrained(folder, output_loading_info=True)
    assert not notes["missing_keys"]
    assert not notes["mismatched_keys"]
    architecture = architecture_of(config)
    assert all(architecture.part(name).mtp for name in notes["unexpected_keys"])
    model.save_pretrained(tmp_path / "again")
    again = {name: tensor.shape for name, tensor in _headers(tmp_path / "again").items()}
    assert again == {spec.name: spec.shape for spec in architecture.tensors(fused=fused, mtp=False)}
    inspect(tmp_path / "again")


def _class(config: dict[str, Any]) -> Any:
    return getattr(transformers, config["architectures"][0])


def _headers(folder: Path) -> dict[str, Any]:
    return {name: one for path in folder.glob("*.safetensors") for name, one in read_header(path).items()}
