"""One question with its answer, on which side of the line it lies, and the two forms in which it is written down.

Every single fact is taught; what is held out is COMBINATIONS of facts (which arguments come together in a call, which
sums stand in one question). A scored item is then answered by using what was learnt and never by remembering the item.

The line is a hash: a combination is held out when the first byte of its SHA-256 is below `HELD_OUT_BELOW`. So it needs
no list, cannot drift with a seed, and whoever doubts it can recompute it. A question made of several combinations is
trained on only if none of them is held out, and scored only if all of them are.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

HELD_OUT_BELOW = 32  # of 256: one combination in eight is never trained on
SELECTION, PRECISION, RESTRAINT = "Tool Selection", "Parameter Precision", "Restraint"

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One question with its answer. Either `call` (a tool's name and arguments) or `answer` (plain text) is set."""

    skill: str
    category: str
    combinations: tuple[str, ...]
    question: str
    reasoning: str
    answer: str = ""
    call: tuple[str, Json] | None = None
    tools: tuple[Json, ...] = ()


def held_out(combination: str) -> bool:
    """Whether a combination is kept from training, by its own hash and nothing else."""
    return hashlib.sha256(combination.encode()).digest()[0] < HELD_OUT_BELOW


def row(sample: Sample) -> Json:
    """A sample as a calibration row: an ordinary chat with its answer, keys that are empty left out."""
    reply: Json = {"role": "assistant", "reasoning_content": sample.reasoning}
    if sample.answer:
        reply["content"] = sample.answer
    if sample.call:
        name, arguments = sample.call
        reply["tool_calls"] = [{"type": "function", "function": {"name": name, "arguments": arguments}}]
    chat: Json = {"messages": [{"role": "user", "content": sample.question}, reply]}
    return chat | ({"tools": list(sample.tools)} if sample.tools else {})


def item(sample: Sample, identity: str) -> Json:
    """A sample as a scored item: the question alone, and what is expected of the answer.

    Tool Selection asks for the right tool only, Parameter Precision for the exact arguments too (JSON types
    included), everything else for the exact text and no call.
    """
    expected: Json = {"answer": sample.answer}
    if sample.call:
        name, arguments = sample.call
        expected = {"name": name} if sample.category == SELECTION else {"name": name, "arguments": arguments}
    scored: Json = {
        "id": identity,
        "category": sample.category,
        "messages": [{"role": "user", "content": sample.question}],
    }
    return scored | ({"tools": list(sample.tools)} if sample.tools else {}) | {"expected": expected}
