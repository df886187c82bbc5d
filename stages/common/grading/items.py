"""What a grader is given, and what it says: the shape that the items of all packs share, and points."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from typing import Annotated, Any

from pydantic import Field, model_validator

from gates.records import Outcome
from gates.strict_yaml import Strict

Text = Annotated[str, Field(min_length=1)]
Json = dict[str, Any]


class Item(Strict):
    """One item of a pack. A grader's own Item adds `expected`, and whatever else it needs; unknown keys are refused."""

    id: Text
    category: Text
    messages: Annotated[list[Json], Field(min_length=1)]
    tools: Annotated[list[Json], Field(min_length=1)] | None = None

    @property
    def of(self) -> float:
        """The points that it is worth."""
        return 1.0

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, value: Any) -> Any:
        """YAML's exact decimals as the numbers of JSON, which is what a model is sent and answers with."""
        return plain(value)


@dataclass(frozen=True, slots=True)
class Grade:
    """`points` out of the item's `of`; `detail` says in a few words what was lost, for people."""

    points: float
    outcome: Outcome = "scored"
    detail: str = ""


def plain(value: Any) -> Any:
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list):
        return [plain(each) for each in value]
    return value
