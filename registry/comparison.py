"""Two candidates side by side: what was done differently, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass

from registry import lineage, overview
from registry.lineage import Difference
from registry.store import Candidate, Store


@dataclass(frozen=True, slots=True)
class Comparison:
    left: str
    right: str
    differences: list[Difference]
    scores: dict[str, tuple[tuple[float, ...], tuple[float, ...]]]
    """By pack: the scores of the left and of the right candidate, one for each set of conditions."""

    @property
    def conclusion(self) -> str:
        """What a difference in scores can be put down to."""
        fields = [difference.field for difference in self.differences]
        if not fields:
            return "the same work: nothing that made them differs"
        if len(fields) == 1:
            return f"isolates {fields[0]}: nothing else differs"
        return f"confounded: {len(fields)} settings differ, so no difference in scores can be put down to one of them"


def of(store: Store, left: Candidate, right: Candidate) -> Comparison:
    ours, theirs = (overview.scores(store.evidence(each.digest)) for each in (left, right))
    packs = sorted(ours.keys() | theirs.keys())
    scores = {pack: (ours.get(pack, ()), theirs.get(pack, ())) for pack in packs}
    return Comparison(left.name, right.name, lineage.compare(store, left, right), scores)


def render(found: Comparison) -> str:
    rows: list[tuple[str, ...]] = [("", found.left, found.right)]
    rows += [(each.field, _text(each.left), _text(each.right)) for each in found.differences]
    rows += [(pack, *map(overview.scores_text, pair)) for pack, pair in found.scores.items()]
    return "\n".join([*overview.columns(rows), found.conclusion])


def _text(value: object) -> str:
    return "-" if value is None else str(value)
