"""Chats as a model is trained and measured on them: tokens, and which of them the assistant says.

`judge` is the one measure of answers: the model as it is trained and the model as it would ship are held against each
other by it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch.nn import functional

IGNORED = -100
"""The label of a token that nobody is to learn to say."""
_TOGETHER = 256
"""Tokens whose logits are in memory at a time."""


@dataclass(frozen=True, slots=True)
class Answers:
    """Chats as tokens, padded on the right, where causal attention never looks back from.

    All three are [rows, tokens] of int64. `attention_mask` is 1 for tokens and 0 for padding. `labels` is the token
    itself where an assistant says it, and `IGNORED` elsewhere; it is judged by what the model expects after the token
    before.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor


@dataclass(frozen=True, slots=True)
class Measured:
    """How well a model says given answers, each token told what came before it (teacher forcing)."""

    losses: torch.Tensor
    """[N] float32: of every token of the answers, row by row, -ln of the probability that the model gave it; nats."""
    exact: torch.Tensor
    """[R] bool: whether a row's every token is the one that the model thought likeliest."""

    @classmethod
    def of(cls, parts: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> Measured:
        """What `judge` gave for batch after batch, together."""
        losses, exact = zip(*((losses.cpu(), exact.cpu()) for losses, exact in parts), strict=True)
        return cls(torch.cat(losses), torch.cat(exact))

    @property
    def loss(self) -> float:
        """The mean over all tokens; nats a token."""
        return self.losses.double().mean().item()

    @property
    def match(self) -> float:
        """The part of the rows that are exact, from 0 to 1."""
        return self.exact.double().mean().item()


def judge(
    states: torch.Tensor, labels: torch.Tensor, head: Callable[[torch.Tensor], torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses [N] in float32 and exact matches [rows] of a batch's answers.

    Args:
        states: [rows, tokens, H], what the last norm of the model gives.
        labels: [rows, tokens], as in `Answers`. Each row has one that is not `IGNORED`.
        head: from states [n, H] to logits [n, vocabulary], of any dtype. It is asked for a few hundred tokens at a
            time: with a large vocabulary the logits of a whole batch are gigabytes.
    """
    losses, exact = [], []
    for row, wanted in zip(states[:, :-1], labels[:, 1:].to(states.device), strict=True):
        said = wanted != IGNORED
        right = []
        for some, answer in zip(row[said].split(_TOGETHER), wanted[said].split(_TOGETHER), strict=True):
            expected = head(some).float()
            tokens = answer.to(expected.device)
            losses.append(functional.cross_entropy(expected, tokens, reduction="none"))
            right.append(expected.argmax(-1) == tokens)
        exact.append(torch.cat(right).all())
    return torch.cat(losses), torch.stack(exact)
