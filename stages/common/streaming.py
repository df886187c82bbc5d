"""Run a causal language model with one decoder layer in memory at a time, exactly as the whole model would run.

    stream = LayerStream(checkpoint)
    with stream.embedding() as embed:
        states = [embed(batch) for batch in batches]
    for layer in range(stream.layers):
        with stream.loaded(layer) as block:
            states = [block.run(batch, state) for batch, state in zip(batches, states)]

The model is built without weights. Where a layer's arguments (mask, positions, rotary tables) are needed, the model's
own forward pass is started over the hidden states, and the layer notes what it is called with instead of computing; so
each layer is called with exactly what the model gives it, whatever the family, and nothing of it is kept.

A layer runs in two halves, `Block.attend` and `Block.answer`, because pruning changes only the second: hidden states
between them are kept while the experts are looked at (`Block.routing`), and attention is not run twice.

A multi-token-prediction layer is numbered from `layers` up. It is a decoder layer too, whose input is made of the
hidden states before it and of the embedding of a later token (`stages.common.mtp`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModel

from stages.common import experts, loading, mtp
from stages.common.calibration import Batch
from stages.common.checkpoint import Checkpoint
from stages.common.experts import Routing

__all__ = ["Block", "LayerStream", "Routing", "dtype_of"]


def dtype_of(device: torch.device) -> torch.dtype:
    """In what a model is computed: in float32 on the CPU, in BF16 elsewhere."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


class LayerStream:
    """A model whose layers are in memory one at a time.

    Raises:
        IntegrityError: the checkpoint lacks tensors of a multi-token-prediction layer that it has others of.
    """

    def __init__(self, checkpoint: Checkpoint, device: torch.device | None = None) -> None:
        self.checkpoint = checkpoint
        self.device = device or torch.device("cpu")
        self.dtype = dtype_of(self.device)
        self.layers = checkpoint.architecture.layers
        self.mtp_layers = mtp.layers(checkpoint)
        """The numbers of the multi-token-prediction layers whose tensors are there."""
        config = _with_mtp(AutoConfig.from_pretrained(checkpoint.folder).get_text_config(), len(self.mtp_layers))
        with init_empty_weights(include_buffers=False):
            self._decoder = AutoModel.from_config(
                config, dtype=self.dtype, experts_implementation=experts.register()
            ).eval()
        self._decoder.rotary_emb.to(self.device)
        for number, layer in enumerate(self._decoder.layers):
            _prepare(layer, number)

    @contextmanager
    def embedding(self) -> Iterator[Callable[[Batch], torch.Tensor]]:
        """What gives the first layer's input, hidden states [rows, tokens, H], for a batch.

        The table is in memory, in the checkpoint's own dtype, for as long as the context lasts.

        Raises:
            IntegrityError: it is missing or of another shape.
        """
        shape = self._decoder.get_input_embeddings().weight.shape
        table = loading.checked(self.checkpoint, mtp.embedding_of(self.checkpoint), shape)
        yield lambda batch: nn.functional.embedding(batch.input_ids, table).to(self.device, self.dtype)

    @contextmanager
    def head(self) -> Iterator[Callable[[torch.Tensor], torch.Tensor]]:
        """What gives logits [..., V] for hidden states [..., H] behind the last layer.

        The last norm and the head are in memory for as long as the context lasts.

        Raises:
            IntegrityError: one is missing or of another shape.
        """
        norm, name = self._decoder.norm, mtp.decoder_norm(self.checkpoint)
        weight = loading.checked(self.checkpoint, name, norm.weight.shape)
        loading.assign(norm, {"weight": weight.to(self.device, self.dtype)}, where=f"{self.checkpoint.folder}, {name}")
        shape = self._decoder.get_input_embeddings().weight.shape
        head = loading.checked(self.checkpoint, mtp.head_of(self.checkpoint), shape).to(self.device, self.dtype)
        with torch.no_grad():
            yield lambda states: nn.functional.linear(norm(states.to(self.device)), head)
        norm.to("meta")  # not in a `finally`: see `loaded`

    @contextmanager
    def loaded(self, layer: int) -> Iterator[Block]:
        """Layer number `layer`, with its weights in memory for as long as the context lasts.

        Raises:
            IntegrityError: a tensor of the layer is missing, too much or of another shape.
        """
        module = self._decoder.layers[layer]
        loading.load(module, self.checkpoint, layer, self.device, self.dtype)
        entry = None
        if layer >= self.layers:
            entry = mtp.Entry(self.checkpoint, layer, self._decoder, self.device, self.dtype)
        yield Block(module, layer, entry, self)
        # Not in a `finally`: an interruption may leave a thread at work, and a product with a weight on "meta" is no
        # error on a CPU but whatever lies in memory.
        module.to("meta")

    def arguments(self, layer: int, batch: Batch, state: torch.Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """(arguments, keywords) that the model calls its layer `layer` with for this batch, after the hidden states."""
        asked = _asked.set(layer)
        try:
            mask = batch.attention_mask.to(self.device)
            self._decoder(inputs_embeds=state, attention_mask=mask, use_cache=False)
        except _Called as called:
            return called.arguments, called.keywords
        finally:
            _asked.reset(asked)
        raise AssertionError(f"the model does not call its layer {layer}")


@dataclass(frozen=True, slots=True)
class Block:
    """A decoder layer in memory. Any number of threads may run batches through it."""

    module: nn.Module
    layer: int
    entry: mtp.Entry | None
    stream: LayerStream

    @property
    def experts(self) -> int:
        """How many experts the layer has; 0 in a dense layer."""
        part = getattr(self.module.mlp, "experts", None)
        return int(part.num_experts) if part is not None else 0

    def run(self, batch: Batch, state: torch.Tensor) -> torch.Tensor:
        """The layer's output [rows, tokens, H] for the hidden states before it."""
        return self.answer(self.attend(batch, state))

    @torch.no_grad()
    def attend(self, batch: Batch, state: torch.Tensor) -> torch.Tensor:
        """The first half: the hidden states [rows, tokens, H] with what attention adds to them."""
        state = state.to(self.stream.device)
        if self.entry is not None:
            state = self.entry(batch, state)
        arguments, keywords = self.stream.arguments(self.layer, batch, state)
        halfway = _halfway.set(True)
        try:
            type(self.module).forward(self.module, state, *arguments, **keywords)
        except _Attended as attended:
            return attended.states
        finally:
            _halfway.reset(halfway)
        raise AssertionError(f"layer {self.layer} has no norm between its halves")

    @torch.no_grad()
    def answer(self, attended: torch.Tensor) -> torch.Tensor:
        """The second half: what `attend` gave, with what the experts (or the dense network) add to it."""
        attended = attended.to(self.stream.device)
        added = self.module.mlp(self.module.post_attention_layernorm(attended))
        return attended + (added[0] if isinstance(added, tuple) else added)

    @torch.no_grad()
    def routing(self, attended: torch.Tensor) -> Routing:
        """How the tokens of what `attend` gave go to the experts, and how large the experts' answers are."""
        states = self.module.post_attention_layernorm(attended.to(self.stream.device))
        return experts.routing(self.module.mlp.gate, self.module.mlp.experts, states.flatten(0, 1))

    def real(self, batch: Batch) -> torch.Tensor:
        """[rows, tokens] bool: False is padding, or a token without the later one that this layer is given."""
        real = batch.attention_mask.bool()
        return mtp.shifted(real, self.entry.ahead) if self.entry is not None else real

    def keep(self, kept: Sequence[int]) -> None:
        """Removes all experts but `kept` (ascending) from the layer in memory, and their rows from the router."""
        index = torch.tensor(kept, device=self.stream.device)
        for part in (self.module.mlp.experts, self.module.mlp.gate):
            # The expert axis comes first in every family.
            for name, parameter in list(part.named_parameters(recurse=False)):
                setattr(part, name, nn.Parameter(parameter.index_select(0, index), requires_grad=False))
            for name, buffer in list(part.named_buffers(recurse=False)):
                setattr(part, name, buffer.index_select(0, index))
            part.num_experts = len(kept)


class _Called(Exception):
    """The layer was called that was asked for: the way out of the model's forward pass."""

    def __init__(self, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        super().__init__()
        self.arguments = arguments
        self.keywords = keywords


class _Attended(Exception):
    """The layer is halfway through: the way out of its forward pass."""

    def __init__(self, states: torch.Tensor) -> None:
        super().__init__()
        self.states = states


# Each thread has values of its own.
_asked: ContextVar[int | None] = ContextVar("the layer whose arguments are wanted", default=None)
_halfway: ContextVar[bool] = ContextVar("whether the forward pass of a layer ends halfway", default=False)


def _prepare(layer: nn.Module, number: int) -> None:
    """Lets the model's forward pass find what it calls `layer` with, and the layer's own end halfway.

    What is replaced is the instance's forward, which only the model calls: other models of the class are not touched.
    """

    def note(states: torch.Tensor, *arguments: Any, **keywords: Any) -> torch.Tensor:
        if number == _asked.get():
            raise _Called(arguments, keywords)
        return states

    def end_halfway(_norm: nn.Module, arguments: tuple[torch.Tensor]) -> None:
        if _halfway.get():
            raise _Attended(arguments[0])

    layer.forward = note  # type: ignore[method-assign]
    layer.post_attention_layernorm.register_forward_pre_hook(end_halfway)


def _with_mtp(config: Any, count: int) -> Any:
    """`config`, with so many layers more: a multi-token-prediction layer has full attention and experts."""
    config = copy.deepcopy(config)
    config.num_hidden_layers += count
    for key, kind in (("layer_types", "full_attention"), ("mlp_layer_types", "sparse")):
        if count and getattr(config, key, None):
            setattr(config, key, [*getattr(config, key), *[kind] * count])
    return config
