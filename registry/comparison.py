"""Two candidates side by side: what was done differently, what came of it, and what would tell why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gates import pooling
from gates.errors import SluiceError
from gates.evidence import incomparable, pools, run
from gates.records import Evidence
from registry import choices, history, lineage, overview, retractions
from registry.choices import Overlap
from registry.controls import Control, Side, controls
from registry.history import Difference
from registry.recipes import read_mix
from registry.store import Candidate, Store


@dataclass(frozen=True, slots=True)
class Comparison:
    left: str
    right: str
    differences: list[Difference]
    conclusion: str
    """What a difference in scores can be put down to."""
    controls: list[Control]
    """What stands between the two, or would: nothing where the conclusion needs no control."""
    scores: dict[str, tuple[tuple[float, ...], tuple[float, ...]]]
    """By pack: the scores of the left and of the right candidate, one for each set of conditions."""
    notes: list[str]
    """What else must be known before the scores are read."""
    overlap: Overlap | None
    """How many of the experts that stay are the same, where both are prunes of one parent."""


def of(store: Store, left: Candidate, right: Candidate, *, project: Path = Path()) -> Comparison:
    """
    Args:
        project: where mixes are looked for, so that a control's recipe names the file.

    Raises:
        IntegrityError: something that one of them was made from is missing or damaged.
    """
    one, other = (Side(each.name, lineage.chain(store, each)) for each in (left, right))
    found = history.differences(history.settings(one.chain), history.settings(other.chain))
    evidence = retractions.standing(store, left.digest), retractions.standing(store, right.digest)
    ours, theirs = (pooling.scores({digest: run(each) for digest, each in known.items()}) for known in evidence)
    packs = sorted(ours.keys() & theirs.keys())
    between: list[Control] = []
    if len(found) > 1:
        between = controls(one, other, _all(store), packs=packs, mixes=_mixes(project))
    return Comparison(
        left=left.name,
        right=right.name,
        differences=found,
        conclusion=history.conclusion(found),
        controls=between,
        scores={pack: (ours.get(pack, ()), theirs.get(pack, ())) for pack in sorted(ours.keys() | theirs.keys())},
        notes=[*_same(left, right, found), *_stacked(one, other), *_conditions(*evidence)],
        overlap=choices.overlap(store, left, right),
    )


def render(found: Comparison) -> str:
    rows: list[tuple[str, ...]] = [("", found.left, found.right)]
    rows += [row for each in found.differences for row in _rows(each)]
    rows += [(pack, *map(overview.scores_text, pair)) for pack, pair in found.scores.items()]
    kept = [found.overlap.sentence] if found.overlap else []
    lines = [*overview.columns(rows), *kept, *found.notes, found.conclusion]
    for control in found.controls:
        lines += _control(control)
    return "\n".join(lines)


def _rows(difference: Difference) -> Iterator[tuple[str, ...]]:
    """A row for each part of a setting, or setting of a step, that is not the same."""
    left, right = (history.flat(difference.field, side) for side in (difference.left, difference.right))
    for field in dict.fromkeys((*left, *right)):
        if left.get(field) != right.get(field):
            yield field, left.get(field, "-"), right.get(field, "-")


def _control(control: Control) -> list[str]:
    name = control.name or "it"
    told = [f"  {side} and {name}: {what}" for side, what in control.tells.items()]
    if control.name is not None:
        return [f"the control is there: {control.name} ({control.takes})", *told]
    recipe = [f"    {line}" for line in (control.recipe or "").splitlines()]
    return [f"the control is missing: {control.takes}", *told, "  this recipe makes it:", *recipe]


def _all(store: Store) -> list[Side]:
    """Every candidate whose history can be read."""
    found = []
    for name, candidate in store.sound().items():
        with suppress(SluiceError):  # `verify` says what is wrong with it; it is no help here
            found.append(Side(name, lineage.chain(store, candidate)))
    return found


def _mixes(project: Path) -> dict[str, str]:
    """The files of the project's mixes, by the names that they give themselves."""
    found: dict[str, str] = {}
    for path in sorted((project / "mixes").rglob("*.yaml")):
        try:
            found.setdefault(read_mix(path).name, path.relative_to(project).as_posix())
        except SluiceError:
            continue
    return found


def _same(left: Candidate, right: Candidate, found: Sequence[Difference]) -> list[str]:
    if found and left.manifest.files == right.manifest.files:
        return [f"{left.name} and {right.name} have the same files, byte for byte: what differs has changed nothing"]
    return []


def _stacked(*sides: Side) -> list[str]:
    return [
        f"{side.name} is a prune of a pruned model: what its first mix had removed, no later mix brings back"
        for side in sides
        if history.is_stacked(side.chain)
    ]


def _conditions(left: Mapping[str, Evidence], right: Mapping[str, Evidence]) -> list[str]:
    """The packs whose scores may not be held against each other, and why."""
    ours, theirs = pools(left), pools(right)
    notes = []
    for pack in sorted(ours.keys() & theirs.keys()):
        if ours[pack].keys() & theirs[pack].keys():
            continue
        apart = [
            incomparable(mine.conditions, other.conditions, totals_alone=mine.totals_alone and other.totals_alone)
            for mine in ours[pack].values()
            for other in theirs[pack].values()
        ]
        nearest = sorted(apart, key=len)[0]
        notes.append(f"{pack}: taken under different conditions ({', '.join(nearest)}), so not comparable")
    return notes
