"""Models with adapters that hold something, and the checkpoints that they are for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from registry.families import families
from registry.recipes import Train
from stages.common.checkpoint import Checkpoint
from stages.train import adapters, loading
from stages.train.answers import IGNORED, Answers
from tests.support import tiny
from tests.support.tiny_configs import CONFIGS

CPU = torch.device("cpu")
FAMILIES = tuple(family for family in CONFIGS if families()[family].trainable)
HYBRID = ("qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next")
SHARED = (*HYBRID, "qwen2_moe", "deepseek_v2")
MODELS = [
    ("qwen3_moe", False),
    ("qwen3_moe", True),
    ("qwen3_5_moe", True),
    ("qwen3_5_moe_text", False),
    ("qwen3_next", True),
    ("qwen2_moe", False),
    ("olmoe", False),
    ("mixtral", True),
    ("deepseek_v2", False),
]
"""Each family, and whether its experts lie in 3D tensors. Reading is the same code for all of a layout."""
MODEL_NAMES = [f"{family}, {'fused' if fused else 'per expert'}" for family, fused in MODELS]


def settings(**changes: Any) -> Train:
    return Train(**{"mix": "mix.yaml", "reference": "reference.jsonl", "lora": {"rank": 4, "alpha": 8}, **changes})


def source(
    folder: Path, family: str, *, fused: bool = False, float32: bool = False, width: int = 64, **changes: Any
) -> Checkpoint:
    """A tiny checkpoint, with an MTP head where the family has one.

    Args:
        float32: whether its tensors are in float32, which a merge rounds to nothing else; in BF16 otherwise.
        width: of the model and of its experts.
    """
    inner = "intermediate_size" if family in ("olmoe", "mixtral") else "moe_intermediate_size"
    tiny.make(folder, family, fused=fused, mtp=family in HYBRID, **{"hidden_size": width, inner: width, **changes})
    if float32:
        shard = folder / "model.safetensors"
        tensors = {name: tensor.float() for name, tensor in load_file(shard).items()}
        shard.unlink()
        save_file(tensors, shard, {"format": "pt"})
        config = json.loads((folder / "config.json").read_text())
        for section in (config, config.get("text_config", {})):
            section |= {"dtype": "float32"} if "dtype" in section else {}
        tiny.write_json(folder / "config.json", config)
    return Checkpoint(folder)


def adapted(checkpoint: Checkpoint, chosen: Train, *, spread: float = 0.1, seed: int = 1) -> Any:
    """The model to be trained, its adapters as if they had been: of random numbers, none of them 0."""
    model = adapters.attach(loading.load(checkpoint, chosen, device=CPU), chosen)
    generator = torch.Generator().manual_seed(seed)
    drawn = {
        name: torch.randn(tensor.shape, generator=generator) * spread for name, tensor in adapters.state(model).items()
    }
    adapters.load_state(model, drawn)
    return model


def answers(rows: int = 3, tokens: int = 24, *, seed: int = 0) -> Answers:
    """Rows of different lengths, of which all but the first third is to be answered."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(len(tiny.SPECIAL), tiny.VOCABULARY, (rows, tokens), generator=generator)
    lengths = torch.tensor([tokens - 3 * row for row in range(rows)])
    mask = (torch.arange(tokens) < lengths[:, None]).long()
    labels = ids.clone()
    labels[mask == 0] = IGNORED
    labels[:, : tokens // 3] = IGNORED
    return Answers(ids * mask, mask, labels)


@torch.no_grad()
def logits(model: Any, batch: Answers) -> torch.Tensor:
    found: torch.Tensor = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits
    return found
