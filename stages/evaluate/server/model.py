"""A checkpoint, loaded to answer many prompts at once.

On a CPU it computes in float32, so that an answer at temperature 0 does not depend on what else is in the batch (but
for ties within rounding); on a GPU in bfloat16, where it can. Sampling draws from a generator per request: the same
seed gives the same answer in any company.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    FineGrainedFP8Config,
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Prompt:
    """What is to be continued, and how: at temperature 0 by the likeliest token."""

    ids: list[int]
    max_tokens: int
    temperature: float
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """The tokens written, end-of-turn included; `stopped` tells whether the model ended by itself."""

    ids: list[int]
    stopped: bool


class LoadError(Exception):
    """The checkpoint and the model's code do not fit."""


class Generator:
    """A model and its tokenizer.

    Raises:
        LoadError: the checkpoint cannot be read, or a tensor is missing, left over or of the wrong shape.
    """

    def __init__(self, folder: Path, *, device: str, dtype: str) -> None:
        if (os.cpu_count() or 1) <= 2:
            torch.set_num_threads(1)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.model = _load(folder, DTYPES[dtype]).to(device).eval()
        text = self.model.config.get_text_config()
        self.max_length: int = text.max_position_embeddings
        self.ends = _ends(self.model.generation_config.eos_token_id, text.eos_token_id, self.tokenizer.eos_token_id)
        self.pad = self.tokenizer.pad_token_id if self.tokenizer.pad_token_id is not None else self.ends[0]
        # Nothing of the checkpoint's own sampling defaults: a request says how it is sampled.
        self.model.generation_config = GenerationConfig(eos_token_id=self.ends, pad_token_id=self.pad, do_sample=False)

    def render(self, messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None, **options: Any) -> list[int]:
        """The tokens of a chat in the candidate's own template, ready for the assistant's turn."""
        text = self.tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, **{"add_generation_prompt": True} | options
        )
        return self.encode(text)

    def encode(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: list[int], *, skip_special: bool) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=skip_special)

    @torch.inference_mode()
    def complete(self, prompts: list[Prompt]) -> list[Completion]:
        """One completion for each prompt, in order."""
        width = max(len(prompt.ids) for prompt in prompts)
        ids = torch.full((len(prompts), width), self.pad)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, width - len(prompt.ids) :] = torch.tensor(prompt.ids)
            mask[row, width - len(prompt.ids) :] = 1
        written = self.model.generate(
            input_ids=ids.to(self.model.device),
            attention_mask=mask.to(self.model.device),
            max_new_tokens=max(prompt.max_tokens for prompt in prompts),
            logits_processor=LogitsProcessorList([_Sampling(prompts)]),
            stopping_criteria=StoppingCriteriaList([_Limits(prompts, width, self.model.device)]),
        )
        return [
            self._cut(row[width:].tolist(), prompt.max_tokens) for row, prompt in zip(written, prompts, strict=True)
        ]

    def _cut(self, ids: list[int], limit: int) -> Completion:
        """A row without what follows its end: `generate` fills a finished row with padding."""
        for position, token in enumerate(ids[:limit]):
            if token in self.ends:
                return Completion(ids[: position + 1], stopped=True)
        return Completion(ids[:limit], stopped=False)


def _load(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    # Quantised weights are given back their full width: a CPU has no FP8 arithmetic, and the kernels for a GPU are
    # fetched from a network that this process does not have. The values are those that FP8 holds.
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    quantized = getattr(config, "quantization_config", None)
    options: dict[str, Any] = {}
    if quantized is not None:
        _refuse_partial_blocks(folder)
        options["quantization_config"] = FineGrainedFP8Config(dequantize=True)
    try:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, config=config, dtype=dtype, local_files_only=True, output_loading_info=True, **options
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise LoadError(f"the checkpoint cannot be loaded: {error}") from error
    # transformers would only warn, and fill what is missing with random numbers. It knows no MTP head; where that is a
    # layer behind the last, it passes over those of the published models alone, by their numbers.
    layers = config.get_text_config().num_hidden_layers
    info["unexpected_keys"] = {name for name in info["unexpected_keys"] if _layer(name) < layers}
    wrong = {kind: sorted(map(str, names)) for kind, names in info.items() if names}
    if wrong:
        kinds = "; ".join(f"{kind.replace('_', ' ')}: {', '.join(names[:3])}" for kind, names in wrong.items())
        raise LoadError(f"the checkpoint does not fit its model: {kinds}")
    for parameter in model.parameters() if quantized is not None else ():
        # beside quantised weights transformers leaves what it renames, as Mixtral's routers, in the checkpoint's dtype
        if parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.to(dtype)
    return model


def _layer(name: str) -> int:
    """The number of the decoder layer that a tensor is of; -1 elsewhere."""
    match = re.match(r"model\.layers\.(\d+)\.", name)
    return int(match[1]) if match else -1


def _refuse_partial_blocks(folder: Path) -> None:
    """transformers takes blocks to be the rows split evenly among the scales: partial ones give it other numbers."""
    shapes: dict[str, list[int]] = {}
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "pt") as shard:
            names: list[str] = shard.keys()
            shapes |= {name: shard.get_slice(name).get_shape() for name in names}
    for name, scales in shapes.items():
        weight = shapes.get(name.removesuffix("_scale_inv"))
        if name.endswith("_scale_inv") and weight and scales[-2] > 1 and weight[-2] % 128:
            raise LoadError(f"{name}: this engine reads FP8 in whole blocks of 128 x 128; vLLM reads partial ones too")


def _ends(*found: int | list[int] | None) -> list[int]:
    """The end-of-turn tokens that the generation config, the config and the tokenizer name."""
    ids = [each for value in found if value is not None for each in (value if isinstance(value, list) else [value])]
    return list(dict.fromkeys(ids))


class _Sampling(LogitsProcessor):
    """Sampling as a change of logits: the largest of logit / temperature + Gumbel noise is a draw from the softmax.

    So one batch can hold requests of different temperatures and seeds. (E. J. Gumbel 1954; Maddison et al., "A*
    Sampling", 2014.)
    """

    def __init__(self, prompts: list[Prompt]) -> None:
        self._rows = [
            (row, prompt.temperature, torch.Generator().manual_seed(prompt.seed))
            for row, prompt in enumerate(prompts)
            if prompt.temperature > 0
        ]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        for row, temperature, source in self._rows:
            noise = -torch.empty(scores.shape[1]).exponential_(generator=source).log()
            scores[row] = scores[row] / temperature + noise.to(scores)
        return scores


class _Limits(StoppingCriteria):
    """Each row ends at its own limit."""

    def __init__(self, prompts: list[Prompt], width: int, device: torch.device) -> None:
        self._ends = torch.tensor([width + prompt.max_tokens for prompt in prompts], device=device)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:  # noqa: ARG002
        return input_ids.shape[1] >= self._ends
