"""MMLU: a question, four choices, a subject, and which choice is right.

As cais/mmlu has it on the Hub, {question, subject, choices, answer}, or with a row's cells apart,
{subject, row, cells: {question, choice0 … choice3, answer}}. The answer is an index from 0, or a letter.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from registry.published import Json, of_split, text

LETTERS = "ABCD"
ASKED = (
    "Think it through as far as you need. End with one line that names the letter of your choice: The answer is (…)."
)


def chosen(names: Iterable[str], config: str | None, split: str) -> list[str]:
    return [name for name in names if of_split(name, config, split)]


def joined(files: Mapping[str, list[Json]]) -> list[Json]:
    """Where the publisher gives rows no number, they are numbered within their subject."""
    counts: dict[str, int] = {}
    rows: list[Json] = []
    for row in (row for rows in files.values() for row in rows):
        subject = text(row, "subject")
        number = counts[subject] = counts.get(subject, -1) + 1
        rows.append(row if "row" in row else {**row, "row": number})
    return rows


def item(row: Json, number: int) -> Json:  # noqa: ARG001 - rows have numbers of their own
    cells = row.get("cells", row)
    choices = cells["choices"] if "choices" in cells else [cells[f"choice{index}"] for index in range(len(LETTERS))]
    if len(choices) != len(LETTERS) or not all(isinstance(choice, str) for choice in choices):
        raise ValueError("choices are not four texts")
    subject, place = text(row, "subject"), row["row"]
    if type(place) is not int:
        raise ValueError("row is no whole number")
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True))
    return {
        "id": f"{subject}-{place:04d}",
        "category": subject,
        "messages": [{"role": "user", "content": f"{text(cells, 'question').strip()}\n\n{listed}\n\n{ASKED}"}],
        "expected": {"letter": _letter(cells["answer"])},
    }


def _letter(answer: Any) -> str:
    for index, letter in enumerate(LETTERS):
        if type(answer) in (int, str) and answer in (index, str(index), letter):
            return letter
    raise ValueError(f"the answer {answer!r} is none of the choices")
