"""Multi-token prediction: a decoder layer behind the last, which guesses one token further.

Its input at a position is made of the hidden states of the model there, after its last norm, and of the embedding of
the next token, each with a norm of its own, side by side through one projection (DeepSeek-V3, section 2.2,
https://arxiv.org/abs/2412.19437, in the form that vLLM runs). A second such layer continues the first, with the token
after next.

transformers leaves these tensors out when it loads a model, so what lies around the layer is put together here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from gates.errors import IntegrityError
from stages.common.checkpoint import Checkpoint
from stages.common.loading import assign, checked

if TYPE_CHECKING:
    from stages.common.calibration import Batch

_QWEN: Mapping[str, str] = MappingProxyType(
    {
        "embedding norm": "mtp.pre_fc_norm_embedding.weight",
        "hidden norm": "mtp.pre_fc_norm_hidden.weight",
        "projection": "mtp.fc.weight",
        "output norm": "mtp.norm.weight",
    }
)
"""The names in Qwen3.5 and 3.6, whose layers are mtp.layers.0, mtp.layers.1, …"""

_DEEPSEEK: Mapping[str, str] = MappingProxyType(
    {
        "embedding norm": "enorm.weight",
        "hidden norm": "hnorm.weight",
        "projection": "eh_proj.weight",
        "output norm": "shared_head.norm.weight",
    }
)
"""The names in DeepSeek-V3 and GLM, below those of the layer, which is numbered as the last layer's successor."""

_HEAD = "lm_head.weight"


def layers(checkpoint: Checkpoint) -> list[int]:
    """The multi-token-prediction layers whose tensors are there, numbered from num_hidden_layers up.

    Raises:
        IntegrityError: config.json states several, and only some are there.
    """
    stated = checkpoint.architecture.mtp_layers
    prefixes = {layer: checkpoint.architecture.layer_prefix(layer) for layer in stated}
    there = [layer for layer, prefix in prefixes.items() if any(name.startswith(prefix) for name in checkpoint.tensors)]
    if there and there != list(stated):
        raise IntegrityError(
            f"config.json states {len(stated)} multi-token-prediction layers, and {len(there)} are there",
            where=str(checkpoint.folder),
        )
    return there


def embedding_of(checkpoint: Checkpoint, layer: int | None = None) -> str:
    """The name of the embedding that `layer` sees: its own, if it has one, or the model's."""
    own = f"{checkpoint.architecture.layer_prefix(layer)}embed_tokens.weight" if layer is not None else ""
    if own in checkpoint.tensors:
        return own
    root = checkpoint.architecture.layer_prefix(0).rpartition("layers.")[0]
    return f"{root}embed_tokens.weight"


def shifted(tensor: torch.Tensor, ahead: int) -> torch.Tensor:
    """`tensor` [rows, tokens] with each token's `ahead`-th successor in its place, and zeros where there is none."""
    return nn.functional.pad(tensor[:, ahead:], (0, min(ahead, tensor.shape[1])))


class Entry:
    """What stands before a multi-token-prediction layer: (batch, hidden states) to its input, all [rows, tokens, H].

    Args:
        layer: numbered from `layers` up; the first sees the next token (`ahead` is 1), the second the one after.
        decoder: the model without weights, for the kind of its norms.

    Raises:
        IntegrityError: a tensor is missing or of another shape.
    """

    def __init__(
        self, checkpoint: Checkpoint, layer: int, decoder: Any, device: torch.device, dtype: torch.dtype
    ) -> None:

        self.ahead = layer - checkpoint.architecture.layers + 1
        hidden = decoder.config.hidden_size
        self._device, self._dtype = device, dtype

        def norm(name: str) -> nn.Module:
            made: nn.Module = type(decoder.norm)(hidden, eps=decoder.config.rms_norm_eps)
            weight = checked(checkpoint, name, (hidden,)).to(device, dtype)
            assign(made, {"weight": weight}, where=f"{checkpoint.folder}, {name}")
            return made

        prefix = checkpoint.architecture.layer_prefix(layer)
        names = _names(prefix)
        before = decoder_norm(checkpoint) if self.ahead == 1 else _names(_previous(checkpoint, layer))["output norm"]
        self._last_norm = norm(before)
        self._embedding_norm = norm(names["embedding norm"])
        self._hidden_norm = norm(names["hidden norm"])
        self._projection = checked(checkpoint, names["projection"], (hidden, 2 * hidden)).to(device, dtype)
        self._zero_first = names is not _QWEN
        table = decoder.get_input_embeddings().weight.shape
        self._table = checked(checkpoint, embedding_of(checkpoint, layer), table)

    @torch.no_grad()
    def __call__(self, batch: Batch, states: torch.Tensor) -> torch.Tensor:
        ids = shifted(batch.input_ids, self.ahead)
        embedded = nn.functional.embedding(ids, self._table).to(self._device, self._dtype)
        if self._zero_first:
            embedded[:, 0] = 0  # as vLLM's deepseek_mtp and glm4_moe_mtp do
        both = (self._embedding_norm(embedded), self._hidden_norm(self._last_norm(states)))
        return nn.functional.linear(torch.cat(both, dim=-1), self._projection)


def decoder_norm(checkpoint: Checkpoint) -> str:
    """The name of the norm behind the last layer."""
    return embedding_of(checkpoint).replace("embed_tokens", "norm")


def head_of(checkpoint: Checkpoint) -> str:
    """The name of what makes logits of hidden states: the embedding, where config.json ties the two."""
    part = checkpoint.architecture.part(_HEAD)
    tied = part is not None and part.need == "rare"  # a copy that loaders pass over
    return embedding_of(checkpoint) if tied else _HEAD


def _previous(checkpoint: Checkpoint, layer: int) -> str:
    return checkpoint.architecture.layer_prefix(layer - 1)


def _names(prefix: str) -> Mapping[str, str]:
    """The names of what lies around the layer whose tensors begin with `prefix`."""
    if prefix.startswith("mtp."):
        return _QWEN
    return {what: prefix + name for what, name in _DEEPSEEK.items()}
