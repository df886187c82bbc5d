"""A tiny checkpoint in block FP8, written by hand without torch. Its numbers are random; its structure is right."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

from registry.families import architecture_of, scale_shape
from registry.families.parts import SCALE_SUFFIX
from tests.support import tiny

BLOCK = (128, 128)


def write_fp8_checkpoint(folder: Path, *, hidden: int = 16, intermediate: int = 16, shards: int = 1) -> Path:
    """Writes the checkpoint to `folder` and returns it. Blocks are partial unless 128 divides the sizes."""
    folder.mkdir(parents=True)
    config, weights = fp8_checkpoint(hidden=hidden, intermediate=intermediate)
    tiny.write_json(folder / "config.json", config)
    tiny.write_weights(folder, weights, shards=shards)
    tiny.write_tokenizer(folder)
    return folder


def fp8_checkpoint(*, hidden: int = 16, intermediate: int = 16) -> tuple[dict[str, Any], dict[str, tiny.Tensor]]:
    """config.json and every tensor: experts and projections in E4M3 with scales of 1, the rest in BF16."""
    config = tiny.configuration(layers=2, experts=4, hidden=hidden, intermediate=intermediate, top_k=2)
    architecture = architecture_of(config)
    draw = random.Random(0)
    weights, kept = {}, []
    for name, tensor in tiny.tensors(config).items():
        part = architecture.part(name)
        if part and part.quantized:
            data = bytes(byte & 0xBF for byte in draw.randbytes(len(tensor.data) // 2))  # below 2: no NaN among them
            weights[name] = tiny.Tensor("F8_E4M3", tensor.shape, data)
            grid = scale_shape(tensor.shape, BLOCK)
            weights[name + SCALE_SUFFIX] = tiny.Tensor("F32", grid, struct.pack("<f", 1.0) * (grid[0] * grid[1]))
        else:
            weights[name] = tensor
            if len(tensor.shape) == 2:
                kept.append(name.removesuffix(".weight"))
    config["quantization_config"] = {
        "quant_method": "fp8",
        "fmt": "e4m3",
        "activation_scheme": "dynamic",
        "weight_block_size": list(BLOCK),
        "modules_to_not_convert": kept,
    }
    return config, weights


WHOLE_BLOCKS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {"head_dim": 32, "num_key_value_heads": 4, "intermediate_size": 128, "moe_intermediate_size": 128},
    "qwen3_5_moe": {},
    "qwen3_5_moe_text": {},
    "qwen3_next": {},
    "qwen2_moe": {
        "num_key_value_heads": 4,
        "intermediate_size": 128,
        "moe_intermediate_size": 128,
        "shared_expert_intermediate_size": 128,
    },
    "mixtral": {"num_key_value_heads": 4, "intermediate_size": 128},
    "olmoe": {"num_key_value_heads": 4, "intermediate_size": 128},
    "deepseek_v3": {
        "intermediate_size": 256,
        "moe_intermediate_size": 128,
        "q_lora_rank": 128,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 64,
        "v_head_dim": 32,
    },
    "deepseek_v2": {
        "intermediate_size": 256,
        "moe_intermediate_size": 128,
        "kv_lora_rank": 128,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 64,
        "v_head_dim": 32,
    },
    "glm4_moe": {"head_dim": 32, "num_key_value_heads": 4, "intermediate_size": 256, "moe_intermediate_size": 128},
}
"""Numbers for `tiny.make` by family, with which every matrix that is quantised consists of whole blocks; but for
kv_a_proj_with_mqa, 192 rows, whose last block is partial in DeepSeek-V3 too."""

_QWEN3_5 = {
    "head_dim": 64,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "moe_intermediate_size": 128,
    "shared_expert_intermediate_size": 128,
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "mrope_interleaved": True,
        "mrope_section": [4, 2, 2],
    },
}
WHOLE_BLOCKS["glm4_moe_lite"] = WHOLE_BLOCKS["deepseek_v3"]
for _family in WHOLE_BLOCKS:
    WHOLE_BLOCKS[_family] = {
        "hidden_size": 128,
        **(_QWEN3_5 if _family.startswith(("qwen3_5", "qwen3_next")) else WHOLE_BLOCKS[_family]),
    }
