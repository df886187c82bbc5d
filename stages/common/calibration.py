"""Calibration: from a mix to rows, from rows to batches of tokens.

A mix names JSONL files of chats and how many rows to take from each:

    {"messages": [{"role": "user", "content": "…"}, …], "tools": [{"type": "function", …}]}

Which rows are taken follows from the mix's seed and the rows' own bytes (the smallest salted hashes win). So neither
the name of a file nor the order of its lines matters to the choice, and a larger count takes the same rows and more.
Rows keep the order of their keys, because a chat template writes tool arguments in that order and the model reads it.

`take` needs neither torch nor transformers; `batches` needs both.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gates import canonical
from gates.errors import IntegrityError, UsageError
from registry.manifests import MixUse, Taken
from registry.recipes import Dataset, Mix, read_mix

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

BATCH_TOKENS = 8192
"""Rows of similar length share a batch until it holds this many tokens, padding included."""

_ROLES = ("system", "developer", "user", "assistant", "tool")


def take(mix_path: str | Path, project: Path) -> tuple[MixUse, bytes]:
    """The rows of a mix: what to record of them, and their bytes, one JSON value a line.

    Args:
        mix_path: the mix's file. This path and those in the mix are relative to `project`.

    Raises:
        UsageError: a file is missing, a row is not a chat (file, line and field are named), or a dataset has fewer rows
            than the mix takes.
    """
    mix_file = project / mix_path
    mix = read_mix(mix_file)
    _refuse_repeated(mix, where=str(mix_file))
    rows = [row for number in range(len(mix.datasets)) for row in _sample(mix, number, project, str(mix_file))]
    data = b"".join(row + b"\n" for row in rows)
    taken = tuple(Taken(dataset=dataset.path, count=dataset.count) for dataset in mix.datasets)
    return MixUse(name=mix.name, rows=canonical.digest(data), datasets=taken), data


@dataclass(frozen=True, slots=True)
class Batch:
    """Chats as tokens, padded on the right, where causal attention never looks back from.

    Both tensors are [rows, tokens] of int64; `attention_mask` is 1 for tokens and 0 for padding.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor


def batches(
    rows: bytes, tokenizer: PreTrainedTokenizerBase, sequence_length: int, *, batch_tokens: int = BATCH_TOKENS
) -> list[Batch]:
    """The rows of `take` as the model reads them: by its own chat template, tools and reasoning included.

    Args:
        sequence_length: the most tokens of a row; what is beyond is cut off.
        batch_tokens: the most tokens of a batch, padding included (a single longer row is a batch of its own).

    Raises:
        UsageError: the tokenizer has no chat template, or the template refuses a row.
    """
    import torch

    sequences = sorted(_tokens(rows, tokenizer, sequence_length), key=len)
    # Any id will do that the model has (a tokenizer's own for padding may be beyond): the mask hides it.
    padding = 0
    made = []
    for group in _groups(sequences, batch_tokens):
        lengths = torch.tensor([len(ids) for ids in group])
        width = int(lengths.max())
        input_ids = torch.tensor([ids + [padding] * (width - len(ids)) for ids in group])
        made.append(Batch(input_ids, (torch.arange(width) < lengths[:, None]).long()))
    return made


def _refuse_repeated(mix: Mix, *, where: str) -> None:
    paths = [dataset.path for dataset in mix.datasets]
    for number, path in enumerate(paths):
        if path in paths[:number]:
            raise UsageError(
                f"datasets[{number}].path: {path} stands twice, and its rows would be taken twice",
                where=where,
                remedy="name each dataset once, with the sum of the counts",
            )


def _sample(mix: Mix, number: int, project: Path, mix_file: str) -> list[bytes]:
    """The chosen rows of one dataset, in the order in which they stand in its file."""
    dataset = mix.datasets[number]
    rows = list(_read(project / dataset.path, f"{mix_file}, datasets[{number}].path"))
    _refuse_short(dataset, len(rows), f"{mix_file}, datasets[{number}].count")
    salt = f"{mix.seed}\n".encode()
    ranked = sorted(range(len(rows)), key=lambda line: (hashlib.sha256(salt + rows[line]).digest(), line))
    return [rows[line] for line in sorted(ranked[: dataset.count])]


def _refuse_short(dataset: Dataset, rows: int, where: str) -> None:
    if rows < dataset.count:
        raise UsageError(
            f"the mix takes {dataset.count} rows of {dataset.path}, which has {rows}",
            where=where,
            remedy=f"take at most {rows}, or add rows",
        )


def _read(path: Path, where: str) -> Iterator[bytes]:
    """Each row of a JSONL file, checked, in the one form in which rows are recorded. Blank lines are passed over."""
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UsageError(
            f"the dataset {path} cannot be read: {error.strerror}",
            where=where,
            remedy="paths in a mix are relative to the project's folder",
        ) from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            yield _row(line, f"{path}, line {number}")


def _row(line: bytes, where: str) -> bytes:
    try:
        row = canonical.loads(line)
        written = json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (IntegrityError, UnicodeEncodeError) as error:
        raise UsageError(f"not a JSON value in UTF-8: {error}", where=where) from None
    for field, what in _faults(row):
        raise UsageError(f"{field}: {what}", where=where, remedy='a row is {"messages": […], "tools": […]}')
    return written


def _faults(row: Any) -> Iterator[tuple[str, str]]:
    """What keeps a row from being a chat, as (field, what is wrong).

    An unknown key is a fault: tools under another name would be left out without a word, and the experts that serve
    them would be removed.
    """
    if not isinstance(row, dict):
        yield "the row", "not an object"
        return
    for key in sorted(row.keys() - {"messages", "tools"}):
        yield key, "unknown key"
    messages = row.get("messages")
    if not isinstance(messages, list) or not messages:
        yield "messages", "must be a list of at least one message"
        return
    for number, message in enumerate(messages):
        yield from _message_faults(message, f"messages[{number}]")
    tools = row.get("tools")
    if tools is not None and not isinstance(tools, list):
        yield "tools", "must be a list"
    for number, tool in enumerate(tools or []):
        if not isinstance(tool, dict):
            yield f"tools[{number}]", "not an object"


def _message_faults(message: Any, field: str) -> Iterator[tuple[str, str]]:
    if not isinstance(message, dict):
        yield field, "not an object"
        return
    if message.get("role") not in _ROLES:
        yield f"{field}.role", f"must be one of {', '.join(_ROLES)}"
    for key in ("content", "reasoning_content"):
        if not isinstance(message.get(key), str | None):
            yield f"{field}.{key}", "must be text"
    calls = message.get("tool_calls")
    if calls is not None and (not isinstance(calls, list) or not all(isinstance(call, dict) for call in calls)):
        yield f"{field}.tool_calls", "must be a list of objects"
    if message.get("content") is None and not calls:
        yield f"{field}.content", "missing, and there is no tool call in its place"


def _tokens(rows: bytes, tokenizer: PreTrainedTokenizerBase, sequence_length: int) -> Iterator[list[int]]:
    from jinja2 import TemplateError

    if not tokenizer.chat_template:
        raise UsageError(
            "the model has no chat template, so chats cannot be shown to it",
            where=str(tokenizer.name_or_path),
            remedy="add chat_template.jinja to the model's folder",
        )
    for number, line in enumerate(rows.splitlines(), 1):
        row = json.loads(line)
        try:
            text = tokenizer.apply_chat_template(row["messages"], tools=row.get("tools") or None, tokenize=False)
        except (TemplateError, TypeError, KeyError, ValueError) as error:
            raise UsageError(
                f"the model's chat template refuses the row: {error}",
                where=f"row {number} of the mix's sample: {_excerpt(line)}",
            ) from None
        # cut here, because a tokenizer may be set to cut off the beginning
        ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"][:sequence_length]
        if not ids:
            raise UsageError(
                "the model's chat template makes nothing of the row", where=f"row {number}: {_excerpt(line)}"
            )
        yield ids


def _excerpt(line: bytes) -> str:
    text = line.decode()
    return text if len(text) <= 80 else text[:79] + "…"


def _groups(sequences: Sequence[list[int]], batch_tokens: int) -> Iterator[list[list[int]]]:
    """`sequences`, shortest first, in groups of at most `batch_tokens` when padded to the group's longest."""
    group: list[list[int]] = []
    for ids in sequences:
        if group and (len(group) + 1) * len(ids) > batch_tokens:
            yield group
            group = []
        group.append(ids)
    if group:
        yield group
