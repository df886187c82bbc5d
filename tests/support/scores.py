"""Evidence for tests: from rows, under conditions that are all known, or from totals alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from gates import canonical
from gates.evidence import check, totals
from gates.records import Conditions, Evidence, Row, Score, Totals

CANDIDATE, BASELINE = "c" * 64, "b" * 64

KNOWN: dict[str, Any] = {
    "engine": "embedded",
    "engine_version": "1",
    "server_flags": {"dtype": "bfloat16"},
    "reasoning_parser": "qwen3",
    "tool_parser": "hermes",
    "chat_template": "1" * 64,
    "tokenizer": "2" * 64,
    "sampling": {"temperature": 0},
    "thinking": "on",
    "pack": "3" * 64,
    "grader": "4" * 64,
    "dataset": "5" * 64,
    "max_tokens": 256,
    "max_length": 1024,
}


def conditions(**changes: Any) -> Conditions:
    return Conditions(**KNOWN | changes)


def asked(points: Iterable[float | None], *, category: str = "all", of: float = 1, repeat: int = 0) -> list[Row]:
    """A row for each number of points; None is an answer that never came."""
    return [
        Row(item=f"item-{number:03d}", repeat=repeat, category=category, of=of, outcome="infra")
        if got is None
        else Row(item=f"item-{number:03d}", repeat=repeat, category=category, of=of, outcome="scored", points=got)
        for number, got in enumerate(points)
    ]


def right(count: int, of: int, *, category: str = "all") -> list[Row]:
    """`of` items, of which the first `count` were answered right."""
    return asked([1] * count + [0] * (of - count), category=category)


def written(rows: Iterable[Row]) -> bytes:
    return b"".join(row.to_bytes() + b"\n" for row in rows)


def header(rows: list[Row], *, pack: str, candidate: str = CANDIDATE, repeats: int = 1, **changes: Any) -> Evidence:
    """The evidence that these rows are. `changes` are to its conditions."""
    return Evidence(
        format=1,
        candidate=candidate,
        pack=pack,
        repeats=repeats,
        conditions=conditions(**changes),
        totals=totals(rows),
        rows=canonical.digest(written(rows)),
        responses="6" * 64,
    )


def complaints_of(evidence: Evidence, rows: bytes | None) -> list[str]:
    return list(check(evidence, rows).complaints)


def totals_alone(scores: Mapping[str, float], *, candidate: str = CANDIDATE, **known: Any) -> dict[str, Evidence]:
    """Evidence from a published table: percentages by pack, 15 items each, and no more conditions than `known`."""
    return by_digest(
        Evidence(
            format=1,
            candidate=candidate,
            pack=pack,
            repeats=1,
            conditions=Conditions(**known),
            totals=Totals(overall=Score(points=points, of=100, items=15), categories={}, missing=0),
        )
        for pack, points in scores.items()
    )


def by_digest(evidence: Iterable[Evidence]) -> dict[str, Evidence]:
    return {each.identity(): each for each in evidence}
