"""Load a checkpoint to be trained: frozen, its experts in four bits, and never the whole of it in BF16 at any place.

The model is built without weights and filled layer by layer from the files. Of the experts one matrix is in memory in
BF16 at a time, so what is held while loading is the 4-bit model so far and that matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from gates.errors import UsageError
from registry.families import families
from registry.recipes import Train
from stages.common import loading, mtp
from stages.common.checkpoint import Checkpoint
from stages.common.memory import give_back
from stages.common.streaming import dtype_of
from stages.train.experts4bit import Experts4bit

_ALIGNED = 16
"""Bytes, of which a row of a matrix has to be a multiple where torch multiplies experts all at once (grouped_mm)."""


def load(
    checkpoint: Checkpoint,
    settings: Train,
    *,
    device: torch.device,
    dtype: torch.dtype | None = None,
    advance: Callable[[float], object] = lambda _: None,
) -> Any:
    """The causal language model of `checkpoint`, all of it frozen. Neither a vision tower nor multi-token prediction is
    loaded: neither is trained.

    Args:
        dtype: in what it is computed, and what is not in four bits is held; None is as elsewhere, float32 on a CPU and
            BF16 on a CUDA device.
        advance: is told of each layer.

    Raises:
        UsageError: as `refuse`.
        IntegrityError: a tensor is missing, too much or of another shape, or holds NaN or infinity.
    """
    refuse(checkpoint)
    dtype = dtype or dtype_of(device)
    config = AutoConfig.from_pretrained(checkpoint.folder).get_text_config()
    config.tie_word_embeddings = mtp.head_of(checkpoint) == mtp.embedding_of(checkpoint)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    decoder = model.get_decoder()
    if any(row % _ALIGNED for row in _rows_of_experts(decoder)):
        model.set_experts_implementation("eager")
    for number, layer in enumerate(decoder.layers):
        _fill(layer, checkpoint, number, settings, device, dtype)
        give_back()
        advance(1)
    _fill_around(model, checkpoint, device, dtype)
    decoder.rotary_emb.to(device)
    return model.requires_grad_(False)


def refuse(checkpoint: Checkpoint) -> None:
    """
    Raises:
        UsageError: the checkpoint is quantised, or of a family that is not trained.
    """
    where = str(checkpoint.folder)
    small = [name for name, tensor in checkpoint.tensors.items() if tensor.dtype not in ("BF16", "F16", "F32")]
    if small or any("quantization_config" in each for each in (checkpoint.config, checkpoint.architecture.text)):
        raise UsageError(
            "the checkpoint is quantised, and quantised weights are not trained",
            where=f"{where}, {small[0]}" if small else where,
            remedy="start from the candidate that it was quantised from: fine-tune first, then quantise",
        )
    family = checkpoint.architecture.family
    if not family.trainable:
        trained = sorted(name for name, each in families().items() if each.trainable)
        raise UsageError(f"{family.model_type} is not trained", where=where, remedy=f"what is: {', '.join(trained)}")


def _rows_of_experts(decoder: Any) -> Iterator[int]:
    """The bytes of the rows of all experts' matrices."""
    for layer in decoder.layers:
        experts = getattr(layer.mlp, "experts", None)
        for weight in () if experts is None else experts.parameters():
            yield weight.shape[-1] * weight.element_size()


def _fill(
    layer: Any, checkpoint: Checkpoint, number: int, settings: Train, device: torch.device, dtype: torch.dtype
) -> None:
    experts = getattr(layer.mlp, "experts", None)
    if experts is None or settings.experts == "bf16":
        loading.load(layer, checkpoint, number, device, dtype)
        return
    layer.mlp.experts = Experts4bit(experts)
    loading.load(layer, checkpoint, number, device, dtype, experts=False)
    layer.mlp.experts.fill(checkpoint, number, device, dtype, double=settings.double_quantization)


def _fill_around(model: Any, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
    """The embedding, the norm behind the last layer, and the head."""

    def fill(module: nn.Module, name: str) -> None:
        weight = loading.checked(checkpoint, name, module.weight.shape).to(device, dtype)  # type: ignore[union-attr]
        loading.assign(module, {"weight": weight}, where=f"{checkpoint.folder}, {name}")

    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    fill(embedding, mtp.embedding_of(checkpoint))
    fill(model.get_decoder().norm, mtp.decoder_norm(checkpoint))
    if model.config.tie_word_embeddings:
        head.weight = embedding.weight
    else:
        fill(head, mtp.head_of(checkpoint))
