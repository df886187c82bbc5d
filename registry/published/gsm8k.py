"""GSM8K: {question, answer}, the number that is wanted behind #### at the end of the answer.

As openai/gsm8k has it on the Hub, and openai/grade-school-math in test.jsonl.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from registry.published import Json, of_split, text

_WANTED = re.compile(r"####\s*(-?[\d,]*\.?\d+)\s*$")

ASKED = "Work it out step by step. Then give the number alone on the last line, behind four number signs."


def chosen(names: Iterable[str], config: str | None, split: str) -> list[str]:
    return [name for name in names if of_split(name, config, split)]


def joined(files: Mapping[str, list[Json]]) -> list[Json]:
    return [row for rows in files.values() for row in rows]


def item(row: Json, number: int) -> Json:
    match = _WANTED.search(text(row, "answer").strip())
    if match is None:
        raise ValueError("the answer does not end with #### and a number")
    return {
        "id": f"gsm8k-{number:04d}",
        "category": "gsm8k",
        "messages": [{"role": "user", "content": f"{text(row, 'question').strip()}\n\n{ASKED}"}],
        "expected": {"number": match[1].replace(",", "")},
    }
