"""Fenced code blocks in a text, as models write them."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Block:
    """What stands in a fence, without the fence's own indentation; `language` is what the fence says, in lower case."""

    language: str
    code: str


def parts(text: str) -> list[str | Block]:
    """`text` cut into what stands outside of fences and the blocks within, in order.

    A fence is three or more backticks or tildes on a line of their own, a language perhaps behind them; one that is
    never closed reaches to the end.
    """
    found: list[str | Block] = []
    outside: list[str] = []
    inside: list[str] = []
    fence: re.Match[str] | None = None
    for line in text.split("\n"):
        if fence is None:
            fence = _OPENS.match(line)
            if fence is None:
                outside.append(line)
                continue
            found.append("\n".join(outside))
            outside, inside = [], []
        elif _closes(line, fence["marks"]):
            found.append(_block(fence, inside))
            fence = None
        else:
            inside.append(line)
    found.append("\n".join(outside) if fence is None else _block(fence, inside))
    return [part for part in found if part != ""]


def blocks(text: str) -> list[Block]:
    """The fenced blocks of `text`, in order."""
    return [part for part in parts(text) if isinstance(part, Block)]


_OPENS = re.compile(r"(?P<indent>[ \t]*)(?P<marks>`{3,}|~{3,})[ \t]*(?P<language>[\w+#.-]*)[^`]*$")


def _closes(line: str, marks: str) -> bool:
    line = line.strip()
    return len(line) >= len(marks) and set(line) == {marks[0]}


def _block(fence: re.Match[str], lines: list[str]) -> Block:
    indent = fence["indent"]
    return Block(fence["language"].lower(), "\n".join(line.removeprefix(indent) for line in lines))
