"""Checkpoints of any family as transformers loads and runs them, whole and in float32: what layers must equal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer

from stages.common import calibration
from tests.support.tiny_configs import CONFIGS, MTP_KEYS

FAMILIES = tuple(CONFIGS)
WITH_MTP = tuple(MTP_KEYS)
LAYOUTS = {"per expert": False, "fused": True}
_ALIKE = {"qwen2_moe": "per expert", "qwen3_next": "fused", "deepseek_v2": "per expert", "glm4_moe_lite": "fused"}
"""Families whose experts lie and are called as another's: one layout is enough."""
MODELS = tuple(
    f"{family}, {layout}" for family in FAMILIES for layout in LAYOUTS if _ALIKE.get(family, layout) == layout
)


def load(folder: Path) -> Any:
    """The whole model; every tensor of the checkpoint is in it but those of multi-token prediction."""
    config = json.loads((folder / "config.json").read_bytes())
    kind = AutoModelForImageTextToText if "vision_config" in config else AutoModelForCausalLM
    model, said = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not said["missing_keys"]
    assert not said["mismatched_keys"]
    return model.eval()


def chats(*lengths: int) -> bytes:
    rows = ({"messages": [{"role": "user", "content": chr(97 + n) * length}]} for n, length in enumerate(lengths))
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def batches_of(
    folder: Path, lengths: Sequence[int] = (5, 60, 3, 90, 17, 40, 280), *, batch_tokens: int = 300
) -> list[calibration.Batch]:
    """Rows of different lengths in batches of up to 300 tokens: some padded, some not."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return calibration.batches(calibration.tokenized(chats(*lengths), tokenizer), 256, batch_tokens=batch_tokens)


@torch.no_grad()
def states(model: Any, batches: list[calibration.Batch]) -> list[list[torch.Tensor]]:
    """For each layer, what it puts out for each batch."""
    layers = model.get_decoder().layers
    found: list[list[torch.Tensor]] = [[] for _ in layers]
    hooks = [
        layer.register_forward_hook(lambda _module, _arguments, output, put=put: put.append(output))
        for layer, put in zip(layers, found, strict=True)
    ]
    for batch in batches:
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    for hook in hooks:
        hook.remove()
    return found


def with_mtp_as_a_layer(folder: Path, target: Path) -> Path:
    """The checkpoint with its multi-token-prediction layer renamed to one behind the last, for transformers to load.

    The tensors around that layer (its norms, the projection) are left out.
    """
    target.mkdir()
    config = json.loads((folder / "config.json").read_bytes())
    text = config.get("text_config", config)
    last = text["num_hidden_layers"]
    text["num_hidden_layers"] = last + 1
    if "layer_types" in text:
        text["layer_types"] = [*text["layer_types"], "full_attention"]
    root = "model.language_model" if "text_config" in config else "model"
    kept = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        new = name.replace("mtp.layers.0.", f"{root}.layers.{last}.")
        around = (".enorm", ".hnorm", ".eh_proj", ".shared_head", f".{last}.embed_tokens")
        if not new.startswith("mtp.") and not any(part in new for part in around):
            kept[new] = tensor
    save_file(kept, target / "model.safetensors", {"format": "pt"})
    (target / "config.json").write_text(json.dumps(config))
    return target


@torch.no_grad()
def mtp_input(folder: Path, model: Any, batch: calibration.Batch, last: torch.Tensor) -> torch.Tensor:
    """What vLLM gives to a multi-token-prediction layer, token by token as it is defined.

    Args:
        last: what the last layer put out, [rows, tokens, H].
    """
    tensors = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    decoder = model.get_decoder()
    qwen = "mtp.fc.weight" in tensors
    prefix = "mtp." if qwen else f"model.layers.{len(decoder.layers) - 1}."
    names = ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "fc") if qwen else ("enorm", "hnorm", "eh_proj")
    embedding_norm, hidden_norm, projection = (tensors[f"{prefix}{name}.weight"] for name in names)
    own = tensors.get(f"{prefix}embed_tokens.weight")
    embedding = decoder.embed_tokens.weight if own is None else own

    def normed(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        x = x * torch.rsqrt(x.pow(2).mean() + decoder.config.rms_norm_eps)
        return x * (1 + weight) if qwen else x * weight

    rows, tokens = batch.input_ids.shape
    made = torch.zeros(rows, tokens, last.shape[-1])
    for row in range(rows):
        for token in range(tokens):
            following = int(batch.input_ids[row, token + 1]) if token + 1 < tokens else 0
            embedded = embedding[following]
            if token == 0 and not qwen:
                embedded = torch.zeros_like(embedded)
            hidden = decoder.norm(last[row, token])
            both = torch.cat([normed(embedded, embedding_norm), normed(hidden, hidden_norm)])
            made[row, token] = projection @ both
    return made


def replace_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Puts `tensors` in the place of those that the checkpoint's only shard has under their names."""
    shard = folder / "model.safetensors"
    found = load_file(shard) | tensors
    shard.unlink()
    save_file(found, shard, {"format": "pt"})
