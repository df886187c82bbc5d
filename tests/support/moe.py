"""Small Qwen3-MoE models made with transformers, whose activations are large enough for differences to show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

from tests.support import tiny


def write_model(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Writes a random model in BF16, expert by expert, with the tokenizer of `tiny`; returns `folder`.

    Args:
        changes: entries of the configuration, such as num_experts=10.
    """
    config = Qwen3MoeConfig(**{**SMALL, **changes})
    torch.manual_seed(seed)
    model = Qwen3MoeForCausalLM(config).to(torch.bfloat16)
    model.save_pretrained(folder)
    tiny.write_tokenizer(folder)
    written = json.loads((folder / "config.json").read_text())
    # transformers 5 writes the key of another family; published checkpoints have this one.
    written["num_experts"] = written.pop("num_local_experts")
    tiny.write_json(folder / "config.json", written)
    return folder


SMALL = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "num_experts": 8,
    "num_experts_per_tok": 2,
    "norm_topk_prob": True,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "tie_word_embeddings": False,
}
