"""Run a causal language model with one decoder layer in memory at a time, exactly as the whole model would run.

    stream = LayerStream(checkpoint)
    states = stream.embed(batches)
    for layer in range(stream.layers):
        with stream.loaded(layer) as block:
            states = block.run(states)

The model is built without weights. Its own forward pass is started once for every batch over the embedding, and every
decoder layer notes the arguments that it is called with (mask, positions, rotary tables) instead of computing; so each
layer is later called with exactly what the model gives it, whatever the family. Experts are computed by a function of
ours that transformers calls in place of its own: routed tokens only, with the same products in the same order as
transformers' `grouped_mm`, and an observer that sees how tokens were routed and how large each expert's answer was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from gates.errors import IntegrityError
from stages.common.calibration import Batch
from stages.common.checkpoint import Checkpoint


@dataclass(frozen=True, slots=True)
class Routing:
    """How the T tokens of one batch (rows x length, padding included) went to the top K of one layer's E experts.

    `norms` holds ‖f_j(x)‖₂, the size of the answer of expert `index[t, k]` to token t, before the router's weight.
    """

    index: torch.Tensor
    """[T, K] int64: the experts that a token was routed to."""
    weights: torch.Tensor
    """[T, K]: the router's final weights, as the forward pass uses them."""
    logits: torch.Tensor
    """[T, E]: the router's logits."""
    norms: torch.Tensor
    """[T, K]"""


Observer = Callable[[int, Routing], None]
"""Called with the number of the batch and its routing."""


class LayerStream:
    """A model whose layers are in memory one at a time, in float32 on the CPU.

    Raises:
        IntegrityError: the checkpoint's tensors are not those that the model has.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        ALL_EXPERTS_FUNCTIONS.register(_EXPERTS, _routed_experts)
        config = AutoConfig.from_pretrained(checkpoint.folder)
        with init_empty_weights(include_buffers=False):
            self._model = AutoModelForCausalLM.from_config(
                config, dtype=torch.float32, experts_implementation=_EXPERTS
            ).eval()
        self._decoder_layers: nn.ModuleList = self._model.get_decoder().layers
        self._prefix = _name_of(self._model, self._decoder_layers)
        self._calls: list[list[_Call]] = []

    @property
    def layers(self) -> int:
        return len(self._decoder_layers)

    @torch.no_grad()
    def embed(self, batches: Sequence[Batch]) -> list[torch.Tensor]:
        """What the first layer is given: hidden states [rows, tokens, hidden] of each batch.

        Every layer's other arguments are noted on the way, for `loaded`.
        """
        embedding = self._model.get_input_embeddings()
        name = f"{_name_of(self._model, embedding)}.weight"
        _assign(
            embedding, {"weight": self._checkpoint.tensor(name).float()}, where=f"{self._checkpoint.folder}, {name}"
        )
        states = []
        self._calls = []
        for batch in batches:
            with _noting(self._decoder_layers) as noted, suppress(_AllNoted):
                self._model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
            states.append(noted[0][0])
            self._calls.append([call for _, call in noted])
        embedding.to("meta")
        return states

    @contextmanager
    def loaded(self, layer: int) -> Iterator[Block]:
        """Layer number `layer`, with its weights in memory for as long as the context lasts.

        Once pruned (`Block.keep`), a layer is not loaded again.

        Raises:
            IntegrityError: a tensor of the layer is missing, too much or of another shape.
        """
        module = self._decoder_layers[layer]
        prefix = f"{self._prefix}.{layer}."
        weights, parts = _layer_weights(self._checkpoint, prefix, module)
        _assign(module, weights, where=f"{self._checkpoint.folder}, layer {layer}")
        del weights
        try:
            yield Block(module, parts, [calls[layer] for calls in self._calls])
        finally:
            module.to("meta")


@dataclass(frozen=True, slots=True)
class Block:
    """A decoder layer in memory. `parts` is None for a layer without experts."""

    module: nn.Module
    parts: Parts | None
    calls: list[_Call]

    @property
    def experts(self) -> int:
        """How many experts the layer has; 0 in a dense layer."""
        return self.parts.experts.num_experts if self.parts else 0

    @torch.no_grad()
    def run(self, states: Sequence[torch.Tensor], observe: Observer | None = None) -> list[torch.Tensor]:
        """The layer's output for each batch's hidden states."""
        outputs = []
        for batch, (state, call) in enumerate(zip(states, self.calls, strict=True)):
            with _observed(self.parts, batch, observe):
                output = self.module(state, *call.arguments, **call.keywords)
            outputs.append(output[0] if isinstance(output, tuple) else output)
        return outputs

    def keep(self, kept: Sequence[int]) -> None:
        """Removes all experts but `kept` (ascending) from the layer in memory, and their rows from the router."""
        assert self.parts is not None
        index = torch.tensor(kept)
        for part in (self.parts.experts, self.parts.router):
            for name, parameter in list(part.named_parameters(recurse=False)):
                # The expert axis comes first in every family.
                setattr(part, name, nn.Parameter(parameter.index_select(0, index), requires_grad=False))
            part.num_experts = len(kept)


@dataclass(frozen=True, slots=True)
class Parts:
    """The modules of a layer that pruning changes."""

    experts: nn.Module
    router: nn.Module


@dataclass(frozen=True, slots=True)
class _Call:
    """The arguments of a decoder layer after the hidden states."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


_EXPERTS = "sluice"


class _AllNoted(Exception):
    """The way out of a forward pass that has served its purpose."""


@contextmanager
def _noting(layers: nn.ModuleList) -> Iterator[list[tuple[torch.Tensor, _Call]]]:
    """Lets every layer note what it is called with and pass the hidden states on as they came; the last ends the pass.

    The replacement sits on the instances: other models of the class are not touched.
    """
    noted: list[tuple[torch.Tensor, _Call]] = []

    def note(hidden_states: torch.Tensor, *arguments: Any, **keywords: Any) -> torch.Tensor:
        noted.append((hidden_states, _Call(arguments, keywords)))
        if len(noted) == len(layers):
            raise _AllNoted
        return hidden_states

    for layer in layers:
        layer.forward = note
    try:
        yield noted
    finally:
        for layer in layers:
            del layer.forward


def _layer_weights(
    checkpoint: Checkpoint, prefix: str, module: nn.Module
) -> tuple[dict[str, torch.Tensor], Parts | None]:
    """The weights of the layer whose tensors begin with `prefix`, by their names in memory, and the layer's parts."""
    family = checkpoint.family
    weights: dict[str, torch.Tensor] = {}
    found: list[re.Match[str]] = []
    router = None
    for name in checkpoint.tensors:
        if not name.startswith(prefix):
            continue
        match = family.expert.fullmatch(name)
        if match is not None:
            found.append(match)
            continue
        weights[name.removeprefix(prefix)] = checkpoint.tensor(name).float()
        if family.router.fullmatch(name):
            router = name.removeprefix(prefix).rpartition(".")[0]
    if not found or router is None:
        return weights, None
    path = found[0].string[len(prefix) : found[0].start("expert") - 1]
    parts = Parts(module.get_submodule(path), module.get_submodule(router))
    stacked = _stacked(checkpoint, family.projections, found, parts.experts)
    return weights | {f"{path}.{name}": tensor for name, tensor in stacked.items()}, parts


def _stacked(
    checkpoint: Checkpoint, projections: tuple[str, ...], found: list[re.Match[str]], experts: nn.Module
) -> dict[str, torch.Tensor]:
    """The matrices of all experts, one by one on disk, as they are in memory.

    That is gate_up_proj [E, 2·I, H], the gate's rows first, and down_proj [E, H, I].
    """
    stacked = {name: torch.empty(parameter.shape) for name, parameter in experts.named_parameters()}
    gate, up, down = projections
    half = stacked["gate_up_proj"].shape[1] // 2
    places = {
        gate: stacked["gate_up_proj"][:, :half],
        up: stacked["gate_up_proj"][:, half:],
        down: stacked["down_proj"],
    }
    names = {(match["projection"], int(match["expert"])): match.string for match in found}
    for projection, place in places.items():
        for expert in range(len(place)):
            name = names.pop((projection, expert), None)
            if name is None:
                raise IntegrityError(
                    f"expert {expert} has no {projection}", where=f"{checkpoint.folder}, beside {found[0].string}"
                )
            _copy(checkpoint.tensor(name), place[expert], where=f"{checkpoint.folder}, {name}")
    for name in names.values():
        raise IntegrityError("config.json states fewer experts", where=f"{checkpoint.folder}, {name}")
    return stacked


def _copy(tensor: torch.Tensor, place: torch.Tensor, *, where: str) -> None:
    if tensor.shape != place.shape:
        raise IntegrityError(f"the shape is {list(tensor.shape)}, but the model's is {list(place.shape)}", where=where)
    place.copy_(tensor)


def _assign(module: nn.Module, weights: dict[str, torch.Tensor], *, where: str) -> None:
    """Gives `module` its weights: exactly those that it has, in their shapes."""
    wanted = {name: list(tensor.shape) for name, tensor in module.state_dict().items()}
    given = {name: list(tensor.shape) for name, tensor in weights.items()}
    for name in sorted(wanted.keys() | given.keys()):
        if wanted.get(name) != given.get(name):
            raise IntegrityError(
                f"the checkpoint holds {given.get(name, 'no')} {name}, the model {wanted.get(name, 'none')}",
                where=where,
            )
    module.load_state_dict(weights, assign=True)


def _name_of(model: nn.Module, part: nn.Module) -> str:
    return next(name for name, module in model.named_modules() if module is part)


@contextmanager
def _observed(parts: Parts | None, batch: int, observe: Observer | None) -> Iterator[None]:
    """Lets `observe` see what the experts do, for as long as the context lasts."""
    if parts is None or observe is None:
        yield
        return
    logits: list[torch.Tensor] = []
    hook = parts.router.register_forward_hook(lambda _module, _input, output: logits.append(output[0]))

    def see(index: torch.Tensor, weights: torch.Tensor, norms: torch.Tensor) -> None:
        observe(batch, Routing(index, weights, logits.pop(), norms))

    parts.experts.see = see
    try:
        yield
    finally:
        del parts.experts.see
        hook.remove()


def _routed_experts(
    experts: nn.Module, states: torch.Tensor, index: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The forward pass of an experts module, over the tokens that are routed to each expert and no others.

    Args:
        experts: a transformers experts module, of any family without biases.
        states: [T, H].
        index, weights: [T, K], from the router.
    """
    tokens, top_k = index.shape
    chosen = index.reshape(-1)
    by_expert = torch.argsort(chosen, stable=True).split(torch.bincount(chosen, minlength=experts.num_experts).tolist())
    answers = states.new_empty(tokens * top_k, states.shape[-1])
    for expert, pairs in enumerate(by_expert):
        if len(pairs):
            gate_up = nn.functional.linear(states[pairs // top_k], experts.gate_up_proj[expert])
            answers[pairs] = nn.functional.linear(experts._apply_gate(gate_up), experts.down_proj[expert])
    answers = answers.view(tokens, top_k, -1)
    see = getattr(experts, "see", None)
    if see is not None:
        see(index, weights, torch.linalg.vector_norm(answers, dim=-1))
    # Weighted, then summed over K: the order that transformers' grouped_mm has, so the bits agree.
    return (answers * weights.unsqueeze(-1)).sum(dim=1).to(states.dtype)
