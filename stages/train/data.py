"""From the rows of a mix to what a model is trained on: tokens, and which of them an assistant says.

An assistant's turn is what the chat template writes between the prompt that asks for it and its end, the token that
ends it included. It is learnt in the form in which it is generated: a template that leaves out the thoughts of earlier
turns shows an earlier turn in another form than it had, so that turn is learnt from a text that ends with it.
"""

from __future__ import annotations

import json
import random
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from math import ceil
from typing import TYPE_CHECKING, Any

import torch

from gates.errors import UsageError
from stages.common import calibration
from stages.common.preflight import Amount, Share
from stages.train.answers import IGNORED, Answers

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

    from registry.manifests import MixUse
    from registry.recipes import Train
    from stages.common.calibration import Tokens

_TOGETHER = 64
"""Texts that are tokenised at a time, each on a core."""
_MEASURED_TOKENS = 8192
"""The most tokens of a batch on which a model is measured, padding included."""
_COUNTED = 1 << 20
"""Sequences whose padding is counted one by one."""
_MOST = 1 << 53
"""Sequences that are too many to be meant."""


@dataclass(frozen=True, slots=True)
class Chat:
    """A text as tokens, and its labels (`Answers.labels`)."""

    ids: Tokens
    labels: Tokens


def read(
    mix: MixUse,
    rows: bytes,
    tokenizer: PreTrainedTokenizerBase,
    *,
    sequence_length: int,
    vocabulary: int | None,
    positions: int | None = None,
) -> tuple[tuple[Share, ...], list[Chat]]:
    """The chats of a mix, cut at `sequence_length` tokens, and what each dataset gives.

    Args:
        vocabulary: how many tokens the model knows, where config.json says it.
        positions: how many of a text it is made for, where config.json says it.

    Raises:
        UsageError: the chat template refuses a row, a row has no answer of an assistant, nothing of any answer is left
            when rows are cut, a row is longer than the model is made for, or the tokenizer gives a token that the model
            does not know.
    """
    lines = iter(rows.splitlines())
    shares, chats = [], []
    for taken in mix.datasets:
        some, sample = list(islice(lines, taken.count)), f"the sample from {taken.dataset}"
        found = [chat for row in _read(some, tokenizer, sample) for chat in row]
        lost = [len(chat.ids) - sequence_length for chat in found if len(chat.ids) > sequence_length]
        tokens = sum(len(chat.ids) for chat in found) - sum(lost)
        shares.append(
            Share(dataset=taken.dataset, rows=taken.count, tokens=tokens, cut_rows=len(lost), cut_tokens=sum(lost))
        )
        cut = (Chat(chat.ids[:sequence_length], chat.labels[:sequence_length]) for chat in found)
        chats += [chat for chat in cut if any(label != IGNORED for label in chat.labels[1:])]
    if not chats:
        raise UsageError(
            f"of the mix {mix.name} no answer begins within {sequence_length} tokens, so there is nothing to learn",
            remedy="set a larger sequence_length",
        )
    longest = max(len(chat.ids) for chat in chats)
    if positions is not None and longest > positions:
        raise UsageError(
            f"a row of the mix {mix.name} has {longest} tokens, and the model is made for texts of {positions}",
            where="sequence_length",
            remedy=f"set sequence_length: {positions}, or less: longer rows are cut there",
        )
    largest = max(max(chat.ids) for chat in chats)
    if vocabulary is not None and largest >= vocabulary:
        raise UsageError(
            f"the tokenizer gives the token {largest}, but the model knows only {vocabulary}",
            remedy="leave out of the mix what needs that token, or take the model in with its own tokenizer",
        )
    return tuple(shares), chats


def sequences(chats: Sequence[Chat], *, longest: int, packing: bool) -> Dataset:
    """Chats as they go through the model, with input_ids and labels: each by itself or, packed, as many together as fit
    into `longest` tokens (then with seq_lengths); none sees another."""
    from datasets import Dataset
    from datasets.utils.logging import disable_progress_bar
    from trl.data_utils import pack_dataset

    disable_progress_bar()
    columns = {
        "input_ids": [chat.ids.tolist() for chat in chats],
        "labels": [chat.labels.tolist() for chat in chats],
    }
    found = Dataset.from_dict(columns)
    return pack_dataset(found, longest, "bfd") if packing else found


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which of `count` sequences is trained on when: a new order each epoch, `length` in all. Follows from the seed
    alone, so that a run that goes on knows what it has seen."""

    seed: int
    count: int
    length: int

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[int]:
        draw = random.Random(f"order {self.seed}")
        for begun in range(0, self.length, self.count):
            yield from draw.sample(range(self.count), self.count)[: self.length - begun]


def schedule(settings: Train, count: int) -> Schedule:
    """The order of `count` sequences up to the last step.

    Raises:
        UsageError: there would be more than anybody can count.
    """
    a_step = settings.batch_size * settings.gradient_accumulation
    length = settings.max_steps * a_step if settings.max_steps else ceil(settings.epochs * count)
    if length >= _MOST:
        stated = "epochs" if settings.max_steps is None else "max_steps"
        raise UsageError(f"{length} sequences would be trained on", where=stated, remedy=f"set fewer {stated}")
    return Schedule(settings.seed, count, length)


def amount(lengths: Sequence[int], order: Schedule, size: int) -> Amount:
    """What goes through the model in batches of `size`. Of more than a million sequences the padding is that of the
    first million."""
    counted = padded = 0
    drawn = iter(islice(order, _COUNTED))
    while some := [lengths[each] for each in islice(drawn, size)]:
        counted += len(some)
        padded += len(some) * max(some)
    return Amount(
        sequences=len(order),
        batches=-(-len(order) // size),
        padded=padded * len(order) // counted,
        largest=max(lengths) * min(size, len(order)),
    )


def steps_of(settings: Train, scheduled: int) -> int:
    """How many steps so many `scheduled` sequences come to; the last may have fewer batches."""
    return -(-scheduled // (settings.batch_size * settings.gradient_accumulation))


def measured_on(chats: Sequence[Chat]) -> list[Answers]:
    """Chats in batches, those of like length together: what a model is measured on."""
    groups: list[list[Chat]] = []
    for chat in sorted(chats, key=lambda each: len(each.ids)):
        if not groups or (len(groups[-1]) + 1) * len(chat.ids) > _MEASURED_TOKENS:
            groups.append([])
        groups[-1].append(chat)
    return [_padded(group) for group in groups]


def _padded(chats: Sequence[Chat]) -> Answers:
    shape = len(chats), max(len(chat.ids) for chat in chats)
    # Any id will do for padding that the model has: the mask hides it.
    made = Answers(
        torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64), torch.full(shape, IGNORED)
    )
    for row, chat in enumerate(chats):
        made.input_ids[row, : len(chat.ids)] = torch.frombuffer(chat.ids, dtype=torch.int32)
        made.attention_mask[row, : len(chat.ids)] = 1
        made.labels[row, : len(chat.ids)] = torch.frombuffer(chat.labels, dtype=torch.int32)
    made.labels[:, 0] = IGNORED  # nothing comes before it that it could be judged by
    return made


def _read(lines: Sequence[bytes], tokenizer: PreTrainedTokenizerBase, sample: str) -> Iterator[list[Chat]]:
    """Every row of a sample as one chat or, where its turns are learnt from several texts, as several."""
    calibration.refuse_without_template(tokenizer)
    if not tokenizer.is_fast:
        raise UsageError(
            "the model's tokenizer does not tell where in a text its tokens stand, so nobody knows which of them an "
            "assistant says",
            where=str(tokenizer.name_or_path),
            remedy="take the model in with a tokenizer.json",
        )
    for first in range(0, len(lines), _TOGETHER):
        named = [(f"row {n} of {sample}: {calibration.excerpt(line)}", line) for n, line in _numbered(lines, first)]
        texts = [_texts(json.loads(line), tokenizer, where) for where, line in named]
        found = tokenizer(
            [text for row in texts for text, _ in row],
            add_special_tokens=False,
            truncation=False,
            padding=False,
            verbose=False,
            return_offsets_mapping=True,
        )
        encoded = zip(found["input_ids"], found["offset_mapping"], strict=True)
        for (where, _), row in zip(named, texts, strict=True):
            chats = [_labelled(*next(encoded), spans) for _, spans in row]
            if all(label == IGNORED for chat in chats for label in chat.labels):
                raise UsageError("the tokenizer makes nothing of the row's answers", where=where)
            yield chats


def _numbered(lines: Sequence[bytes], first: int) -> Iterator[tuple[int, bytes]]:
    return enumerate(lines[first : first + _TOGETHER], first + 1)


Span = tuple[int, int]
"""Of a text, the characters from the first up to the second."""


def _texts(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, where: str) -> list[tuple[str, list[Span]]]:
    """The texts from which the turns of a row's assistants are learnt, and where in each of them those turns stand."""
    messages = row["messages"]
    # An answer to nothing is nobody's to learn: it stands before any question.
    turns = [n for n, message in enumerate(messages) if n and message["role"] == "assistant"]
    if not turns:
        raise UsageError(
            "the row has no answer of an assistant, so there is nothing to learn from it",
            where=where,
            remedy="leave the dataset out: it can calibrate a prune, and teaches no answer",
        )
    texts: list[tuple[str, list[Span]]] = []
    for turn in reversed(turns):
        whole = calibration.rendered(row | {"messages": messages[: turn + 1]}, tokenizer, where=where).rstrip()
        asking = row | {"messages": messages[:turn]}
        prompt = calibration.rendered(asking, tokenizer, where=where, add_generation_prompt=True)
        if not whole.startswith(prompt):
            raise UsageError(
                f"the chat template writes message {turn + 1} in another way than it asks for it, so nobody knows what "
                "an assistant has to say",
                where=where,
                remedy="mend chat_template.jinja: a text must begin with the prompt that asked for its last turn",
            )
        within = next((spans for text, spans in texts if text.startswith(whole)), None)
        if within is None:
            texts.append((whole, within := []))
        within.append((len(prompt), len(whole)))
    return texts


def _labelled(ids: list[int], offsets: list[Span], spans: Sequence[Span]) -> Chat:
    """A text's tokens with their labels.

    A token belongs to the turn that it ends in. (Where a token begins, byte-level tokenizers do not say: most leave a
    leading space out.)
    """
    waiting = sorted(spans, reverse=True)
    labels: Tokens = array("i")
    for token, (_, end) in zip(ids, offsets, strict=True):
        while waiting and end > waiting[-1][1]:
            waiting.pop()
        labels.append(token if waiting and waiting[-1][0] < end else IGNORED)
    return Chat(array("i", ids), labels)
