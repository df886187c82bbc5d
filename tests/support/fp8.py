"""A tiny checkpoint in block FP8, written by hand without torch. Its numbers are random; its structure is right."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

from registry.completeness import SCALE_SUFFIX, quantized, scale_shape
from registry.families import family_of
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
    family = family_of(config)
    draw = random.Random(0)
    weights, kept = {}, []
    for name, tensor in tiny.tensors(config).items():
        if quantized(family, name):
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
