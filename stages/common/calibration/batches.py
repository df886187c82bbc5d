"""From rows to batches of tokens, as the model reads them."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from gates.errors import UsageError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

BATCH_TOKENS = 8192
"""Rows of similar length share a batch until it holds this many tokens, padding included."""


_TOGETHER = 64
"""Rows that are tokenised at a time, each on a core."""

Tokens: TypeAlias = "array[int]"
"""The ids of a row, four bytes each: as Python's numbers, 16 million tokens would take 0.6 GB."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Chats as tokens, padded on the right, where causal attention never looks back from.

    Both tensors are [rows, tokens] of int64; `attention_mask` is 1 for tokens and 0 for padding.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor


def tokenized(rows: bytes, tokenizer: PreTrainedTokenizerBase, *, sample: str = "the mix's sample") -> Iterator[Tokens]:
    """The rows of `take` as the model reads them, whole: by its own chat template, tools and reasoning included.

    Args:
        sample: what the rows are called in a message.

    Raises:
        UsageError: the tokenizer has no chat template, or the template refuses a row.
    """
    refuse_without_template(tokenizer)
    lines = rows.splitlines()
    for first in range(0, len(lines), _TOGETHER):
        some = lines[first : first + _TOGETHER]
        texts = [
            rendered(json.loads(line), tokenizer, where=f"row {first + n} of {sample}: {excerpt(line)}")
            for n, line in enumerate(some, 1)
        ]
        # whatever a tokenizer is set to: it might cut off the beginning
        found = tokenizer(texts, add_special_tokens=False, truncation=False, padding=False, verbose=False)["input_ids"]
        for n, (ids, line) in enumerate(zip(found, some, strict=True), 1):
            if not ids:
                raise UsageError(
                    "the model's chat template makes nothing of the row",
                    where=f"row {first + n} of {sample}: {excerpt(line)}",
                )
            yield array("i", ids)


def batches(
    tokens: Iterable[Tokens], sequence_length: int, *, packing: bool = False, batch_tokens: int = BATCH_TOKENS
) -> list[Batch]:
    """
    Args:
        tokens: of each row.
        sequence_length: the most tokens of a sequence; what is beyond in a row is cut off.
        packing: whether whole rows share a sequence, one after the other as they come, as long as they fit. A row then
            sees those before it, as in REAP's own calibration; nothing is split and nothing lost.
        batch_tokens: the most tokens of a batch, padding included (a single longer sequence is a batch of its own).
    """
    import torch

    found = (ids[:sequence_length] for ids in tokens)
    sequences = sorted(_packed(found, sequence_length) if packing else found, key=len)
    made = []
    for group in _groups(sequences, batch_tokens):
        # Any id will do for padding that the model has (a tokenizer's own may be beyond): the mask hides it.
        input_ids = torch.zeros(len(group), max(map(len, group)), dtype=torch.int64)
        attention_mask = torch.zeros_like(input_ids)
        for row, ids in enumerate(group):
            input_ids[row, : len(ids)] = torch.frombuffer(ids, dtype=torch.int32)
            attention_mask[row, : len(ids)] = 1
        made.append(Batch(input_ids, attention_mask))
    return made


def refuse_without_template(tokenizer: PreTrainedTokenizerBase) -> None:
    """
    Raises:
        UsageError: the tokenizer has no chat template.
    """
    if not tokenizer.chat_template:
        raise UsageError(
            "the model has no chat template, so chats cannot be shown to it",
            where=str(tokenizer.name_or_path),
            remedy="add chat_template.jinja to the model's folder",
        )


def rendered(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, *, where: str, **options: bool) -> str:
    """A chat as the model's own chat template writes it, tools and reasoning included.

    Args:
        options: for the template, such as add_generation_prompt.

    Raises:
        UsageError: the template refuses it.
    """
    from jinja2 import TemplateError

    tools = row.get("tools") or None
    try:
        return str(tokenizer.apply_chat_template(row["messages"], tools=tools, tokenize=False, **options))
    except (TemplateError, TypeError, KeyError, ValueError) as error:
        raise UsageError(f"the model's chat template refuses the row: {error}", where=where) from None


def excerpt(line: bytes) -> str:
    """The beginning of a row, for messages."""
    text = line.decode()
    return text if len(text) <= 80 else text[:79] + "…"


def _packed(sequences: Iterable[Tokens], longest: int) -> Iterator[Tokens]:
    """Sequences joined in their order, as many as fit into `longest` tokens."""
    together: Tokens = array("i")
    for ids in sequences:
        if together and len(together) + len(ids) > longest:
            yield together
            together = array("i")
        together = together + ids
    if together:
        yield together


def _groups(sequences: Sequence[Tokens], batch_tokens: int) -> Iterator[list[Tokens]]:
    """`sequences`, shortest first, in groups of at most `batch_tokens` when padded to the group's longest."""
    group: list[Tokens] = []
    for ids in sequences:
        if group and (len(group) + 1) * len(ids) > batch_tokens:
            yield group
            group = []
        group.append(ids)
    if group:
        yield group
