"""cais/mmlu: a question with four choices, and the number of the right one. {question, subject, choices, answer}"""

from __future__ import annotations

from stages.common.calibration.adapters.fields import Drift, Row, asked, listed, present, text

_LETTERS = "ABCD"


def to_chat(row: Row) -> Row:
    choices = listed(row, "choices")
    if len(choices) != len(_LETTERS):
        raise Drift("choices", f"must be {len(_LETTERS)}, and are {len(choices)}")
    for number, choice in enumerate(choices):
        if not isinstance(choice, str):
            raise Drift(f"choices[{number}]", "must be text")
    answer = present(row, "answer")
    if type(answer) is not int or not 0 <= answer < len(_LETTERS):
        raise Drift("answer", "must be a number from 0 to 3")
    listed_choices = "\n".join(f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices, strict=True))
    return asked(f"{text(row, 'question')}\n\n{listed_choices}", f"{_LETTERS[answer]}. {choices[answer]}")
