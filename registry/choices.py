"""How far two prunes of one parent kept the same experts, from the scores that each left beside its model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gates import canonical
from gates.errors import IntegrityError
from registry import lineage
from registry.manifests import Manifest
from registry.store import Candidate, Store

SCORES = "scores.json"
"""What a prune calls its scores, among the attachments of the candidate that it makes."""


@dataclass(frozen=True, slots=True)
class Shared:
    """How many experts stay on the left, on the right and on both sides, of how many there were."""

    layer: int | None
    """None for all layers together."""
    left: int
    right: int
    both: int
    of: int

    @property
    def share(self) -> float:
        """The part of the smaller choice that the other holds too: 1 where one contains the other."""
        return self.both / min(self.left, self.right)

    @property
    def by_chance(self) -> float:
        """The share that two choices would have that know nothing of each other: the larger one's part of all."""
        return max(self.left, self.right) / self.of


@dataclass(frozen=True, slots=True)
class Overlap:
    """Every layer whose experts both candidates chose from, in order. At least one."""

    layers: tuple[Shared, ...]

    @property
    def whole(self) -> Shared:
        """All layers together."""
        left, right, both, of = (
            sum(getattr(each, field) for each in self.layers) for field in ("left", "right", "both", "of")
        )
        return Shared(None, left, right, both, of)

    @property
    def sentence(self) -> str:
        whole, least = self.whole, min(self.layers, key=lambda each: each.share)
        return (
            f"{whole.both} of {min(whole.left, whole.right)} kept experts are the same ({100 * whole.share:.0f} %; "
            f"by chance {100 * whole.by_chance:.0f} %), fewest in layer {least.layer} "
            f"({least.both} of {min(least.left, least.right)})"
        )


def overlap(store: Store, left: Candidate, right: Candidate) -> Overlap | None:
    """How far the newest prunes in two candidates' ancestries agree.

    None where they cannot be held against each other: one has none, they began from other weights (whose experts are
    not the same), or the scores went with a candidate that was removed.

    Raises:
        IntegrityError: a file of scores is damaged.
    """
    sides = [_newest_prune(store, candidate) for candidate in (left, right)]
    if sides[0] is None or sides[1] is None or sides[0][1] != sides[1][1]:
        return None
    ours, theirs = (_kept(store, side[0]) for side in sides if side)
    return between(ours, theirs) if ours and theirs else None


@dataclass(frozen=True, slots=True)
class Kept:
    """The experts of one layer that stay, of how many."""

    experts: frozenset[int]
    of: int


def between(left: Mapping[int, Kept], right: Mapping[int, Kept]) -> Overlap | None:
    """How far two choices agree, by layer, where both chose; None if there is no such layer."""
    layers = tuple(
        Shared(
            layer,
            len(left[layer].experts),
            len(right[layer].experts),
            len(left[layer].experts & right[layer].experts),
            left[layer].of,
        )
        for layer in sorted(left.keys() & right.keys())
    )
    return Overlap(layers) if layers else None


def _newest_prune(store: Store, candidate: Candidate) -> tuple[str, str | None] | None:
    """The digest of the newest pruned model that `candidate` is or was made from, and that of the weights pruned."""
    chain = list(lineage.ancestry(store, candidate.digest))
    for number, (digest, manifest) in enumerate(chain):
        if manifest.inputs.op == "prune":
            return digest, _weights(chain[number + 1 :])
    return None


def _weights(chain: list[tuple[str, Manifest]]) -> str | None:
    """The newest that has weights of its own: a derived candidate has those of its parent."""
    return next((digest for digest, manifest in chain if manifest.inputs.op != "derive"), None)


def _kept(store: Store, digest: str) -> dict[int, Kept] | None:
    """What stayed in each layer of the pruned model `digest`, if a candidate has it and its scores still."""
    for name, candidate in store.sound().items():
        link = store.layout.candidate(name) / "attachments" / SCORES
        if candidate.digest == digest and link.is_symlink():
            return _read(store.read(link.readlink().name), where=str(link))
    return None


def _read(data: bytes, *, where: str) -> dict[int, Kept]:
    try:
        return {
            int(each["layer"]): Kept(frozenset(map(int, each["kept"])), len(each["scores"]))
            for each in canonical.loads(data, where=where)["layers"]
            if each["kept"]
        }
    except (KeyError, TypeError, ValueError):
        raise IntegrityError("this is no file of a prune's scores", where=where) from None
