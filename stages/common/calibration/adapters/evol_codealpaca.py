"""theblackcat102/evol-codealpaca-v1: {instruction, output}."""

from __future__ import annotations

from stages.common.calibration.adapters.fields import Row, asked, text


def to_chat(row: Row) -> Row:
    return asked(text(row, "instruction"), text(row, "output"))
