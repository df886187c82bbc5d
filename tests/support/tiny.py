"""Tiny checkpoints with random weights, of every family, written by hand: no torch, and the same bytes each time.

They load in transformers, and their tokenizer works on any text (one token a byte); their answers mean nothing.

    make(folder, "glm4_moe", fused=False, mtp=True)      any family; activations large enough for differences to show
    write_checkpoint(folder)                             a Qwen3-MoE of a few kilobytes, for tests that need only files
"""

from __future__ import annotations

import json
import math
import random
import struct
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry.families import Spec, architecture_of
from tests.support.tiny_configs import CONFIGS, MTP_KEYS, VOCABULARY

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<think>", "</think>", "<tool_call>", "</tool_call>")
assert len(SPECIAL) + 256 == VOCABULARY

CHAT_TEMPLATE = """\
{%- for message in messages %}<|im_start|>{{ message.role }}
{{ message.content }}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor as a safetensors file holds it: `data` is little-endian, in C order."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes


def make(
    folder: Path,
    family: str,
    *,
    fused: bool,
    mtp: bool = False,
    mtp_fused: bool | None = None,
    block: tuple[int, int] | None = None,
    shards: int = 1,
    seed: int = 0,
    **changes: Any,
) -> Path:
    """Writes a checkpoint of `family` to `folder` (made if need be) and returns it.

    Args:
        family: its model_type.
        fused: whether the experts of a layer lie in 3D tensors, or every matrix by itself.
        mtp: whether it has an MTP head; config.json says the same.
        mtp_fused: as `fused`, for the MTP head alone.
        block: of block FP8, if it is to be quantised; the sizes must then suit.
        shards: how many safetensors files; with more than one there is an index.
        seed: of the weights.
        changes: numbers of the text model that differ from `tiny_configs.CONFIGS`, such as num_experts=8.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = config_of(family, mtp=mtp, block=block, **changes)
    write_json(folder / "config.json", config)
    specs = architecture_of(config).tensors(fused=fused, mtp=mtp, mtp_fused=mtp_fused, block=block)
    draw = random.Random(seed)
    write_weights(folder, {spec.name: _drawn(draw, spec) for spec in specs}, shards=shards)
    write_json(folder / "generation_config.json", {"do_sample": False, "eos_token_id": 2, "pad_token_id": 0})
    write_tokenizer(folder)
    return folder


def config_of(
    family: str, *, mtp: bool = False, block: tuple[int, int] | None = None, **changes: Any
) -> dict[str, Any]:
    """The config.json of `make`."""
    config = json.loads(json.dumps(CONFIGS[family]))
    text = config.get("text_config", config)
    if family in MTP_KEYS:
        text[MTP_KEYS[family]] = int(mtp)
    text |= changes
    if "vision_config" in config:
        config["vision_config"]["out_hidden_size"] = text["hidden_size"]
    if "layer_types" in text and len(text["layer_types"]) != text["num_hidden_layers"]:
        del text["layer_types"]
    if block:
        specs = architecture_of(config).tensors(fused=False, mtp=mtp)
        listed = [spec.name.removesuffix(".weight") for spec in specs if spec.part and spec.part.listed]
        config["quantization_config"] = {
            "quant_method": "fp8",
            "fmt": "e4m3",
            "activation_scheme": "dynamic",
            "weight_block_size": list(block),
            "modules_to_not_convert": sorted({*listed, "lm_head"}),
        }
    return config


def write_checkpoint(
    folder: Path,
    *,
    layers: int = 2,
    experts: int = 4,
    hidden: int = 16,
    intermediate: int = 16,
    top_k: int = 2,
    shards: int = 1,
    seed: int = 0,
    tied: bool = False,
) -> Path:
    """Writes the checkpoint to `folder` (made if need be) and returns it.

    Args:
        hidden: width of the model; a multiple of 4.
        shards: how many safetensors files; with more than one there is an index.
        seed: of the weights.
        tied: whether the output layer is the embedding, as in small models.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = configuration(
        layers=layers, experts=experts, hidden=hidden, intermediate=intermediate, top_k=top_k, tied=tied
    )
    write_json(folder / "config.json", config)
    write_weights(folder, tensors(config, seed=seed), shards=shards)
    write_json(folder / "generation_config.json", {"do_sample": False, "eos_token_id": 2, "pad_token_id": 0})
    write_tokenizer(folder)
    return folder


def configuration(
    *, layers: int, experts: int, hidden: int, intermediate: int, top_k: int, tied: bool = False
) -> dict[str, Any]:
    """What config.json says; transformers takes its defaults for the rest."""
    return {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "torch_dtype": "bfloat16",
        "vocab_size": VOCABULARY,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": hidden // 2,
        "intermediate_size": intermediate,
        "moe_intermediate_size": intermediate,
        "num_experts": experts,
        "num_experts_per_tok": top_k,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": tied,
        "eos_token_id": 2,
        "pad_token_id": 0,
    }


def tensors(config: dict[str, Any], *, seed: int = 0) -> dict[str, Tensor]:
    """Every tensor of a checkpoint with this `config`, by name: BF16, norms 1, the rest small and random."""
    draw = random.Random(seed)
    hidden, width, head = config["hidden_size"], config["moe_intermediate_size"], config["head_dim"]
    queries, keys = config["num_attention_heads"] * head, config["num_key_value_heads"] * head
    found = {
        "model.embed_tokens.weight": _small(draw, config["vocab_size"], hidden),
        "model.norm.weight": _ones(hidden),
    }
    if not config["tie_word_embeddings"]:
        found["lm_head.weight"] = _small(draw, config["vocab_size"], hidden)
    for layer in range(config["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        for norm, size in (("input", hidden), ("post_attention", hidden)):
            found[f"{prefix}.{norm}_layernorm.weight"] = _ones(size)
        for name, shape in (
            ("q", (queries, hidden)),
            ("k", (keys, hidden)),
            ("v", (keys, hidden)),
            ("o", (hidden, queries)),
        ):
            found[f"{prefix}.self_attn.{name}_proj.weight"] = _small(draw, *shape)
        for name in "qk":
            found[f"{prefix}.self_attn.{name}_norm.weight"] = _ones(head)
        found[f"{prefix}.mlp.gate.weight"] = _small(draw, config["num_experts"], hidden)
        for expert in range(config["num_experts"]):
            for name, shape in (("gate", (width, hidden)), ("up", (width, hidden)), ("down", (hidden, width))):
                found[f"{prefix}.mlp.experts.{expert}.{name}_proj.weight"] = _small(draw, *shape)
    return found


def write_weights(folder: Path, weights: dict[str, Tensor], *, shards: int = 1) -> None:
    """Writes `weights` to model.safetensors, or to so many shards and their index."""
    if shards == 1:
        write_safetensors(folder / "model.safetensors", weights)
        return
    names = sorted(weights)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05d}-of-{shards:05d}.safetensors"
        part = {name: weights[name] for name in names[number::shards]}
        write_safetensors(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    total = sum(len(tensor.data) for tensor in weights.values())
    write_json(
        folder / "model.safetensors.index.json",
        {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
    )


def write_safetensors(path: Path, weights: dict[str, Tensor]) -> None:
    """One safetensors file: the header's length (8 bytes), the header (JSON, padded to 8 bytes), the data."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, tensor in weights.items():
        end = offset + len(tensor.data)
        header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [offset, end]}
        offset = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensor.data for tensor in weights.values()))


def write_tokenizer(folder: Path) -> None:
    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *_byte_letters()))}
    added = [
        {
            "id": number,
            "content": token,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": number < 3,
        }
        for number, token in enumerate(SPECIAL)
    ]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    write_json(
        folder / "tokenizer.json",
        {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": added,
            "normalizer": None,
            "pre_tokenizer": byte_level,
            "post_processor": None,
            "decoder": byte_level,
            "model": {
                "type": "BPE",
                "dropout": None,
                "unk_token": None,
                "continuing_subword_prefix": None,
                "end_of_word_suffix": None,
                "fuse_unk": False,
                "byte_fallback": False,
                "ignore_merges": False,
                "vocab": vocabulary,
                "merges": [],
            },
        },
    )
    write_json(
        folder / "tokenizer_config.json",
        {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": SPECIAL[2], "pad_token": SPECIAL[0]},
    )
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def tokenizer(folder: Path, template: str) -> Any:
    """The tokenizer as transformers loads it, with the chat template `template`. Its files are written to `folder`."""
    from transformers import AutoTokenizer

    write_json(folder / "config.json", configuration(layers=1, experts=4, hidden=16, intermediate=16, top_k=2))
    write_tokenizer(folder)
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    return AutoTokenizer.from_pretrained(folder)


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _drawn(draw: random.Random, spec: Spec) -> Tensor:
    """Random numbers that give activations of about 1: norms near 1, matrices by their width, biases small."""
    count = math.prod(spec.shape)
    if spec.dtype == "F8_E4M3":
        return Tensor(spec.dtype, spec.shape, bytes(byte & 0xBF for byte in draw.randbytes(count)))  # below 2: no NaN
    last = spec.name.rpartition(".")[2]
    if last.endswith("_scale_inv"):
        mean, spread = 0.1, 0.0
    elif "norm" in spec.name:
        mean, spread = 1.0, 0.1
    elif len(spec.shape) > 1 and "embed" not in spec.name:
        mean, spread = 0.0, 1.5 / math.sqrt(spec.shape[-1])
    else:
        mean, spread = 0.0, 0.3
    data = array("f", (draw.gauss(mean, spread) for _ in range(count))).tobytes()
    if spec.dtype == "F32":
        return Tensor("F32", spec.shape, data)
    short = bytearray(2 * count)
    short[0::2], short[1::2] = data[2::4], data[3::4]
    return Tensor("BF16", spec.shape, bytes(short))


def _small(draw: random.Random, *shape: int) -> Tensor:
    """Random BF16 numbers of about ±0.01 to ±0.03: the high byte is sign and exponent, the low one the mantissa."""
    count = math.prod(shape)
    data = bytearray(2 * count)
    data[0::2] = draw.randbytes(count)
    data[1::2] = bytes(0x3C | byte & 0x80 for byte in draw.randbytes(count))
    return Tensor("BF16", shape, bytes(data))


def _ones(size: int) -> Tensor:
    return Tensor("BF16", (size,), b"\x80\x3f" * size)


def _byte_letters() -> list[str]:
    """The letter that byte-level tokenizers write for each byte (GPT-2's table)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]
