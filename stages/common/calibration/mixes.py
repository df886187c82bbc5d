"""Which rows a mix takes.

The choice follows from the mix's seed and the rows' own bytes (the smallest salted hashes win). So neither the name of
a file nor the order of its lines matters to it, a larger count takes the same rows and more, and another machine takes
the same. A row that stands twice in a mix, in one dataset or in two, is taken once.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gates import canonical
from gates.errors import UsageError
from registry import frozen
from registry.bulk import hash_file
from registry.manifests import MixUse, Taken
from registry.recipes import Dataset, Mix, read_mix
from stages.common.calibration import adapters
from stages.common.calibration.reading import called, offline, open_dataset, pinned

if TYPE_CHECKING:
    from registry.store import Store

CODE = "mixes-1"
"""Changes whenever the same mix of the same datasets would give other rows."""


def take(mix_path: str | Path, project: Path, *, store: Store | None = None) -> tuple[MixUse, bytes]:
    """The rows of a mix: what to record of them, and their bytes, one JSON value a line.

    Args:
        mix_path: the mix's file. This path and those in the mix are relative to `project`.
        store: where a mix of the Hub's datasets that was frozen, or that some candidate was made with, is found again
            without the Hub.

    Raises:
        UsageError: a dataset cannot be had, a row is not of its schema (dataset, row and field are named), or a dataset
            has fewer rows than the mix takes.
        IntegrityError: the frozen rows are damaged.
    """
    where = str(project / mix_path)
    mix = read_mix(project / mix_path)
    for number, dataset in enumerate(mix.datasets):
        _refuse_unusable(mix, number, dataset, where=where)
    definition = _definition(mix, project)
    there = frozen.frozen(store, definition) if store is not None and definition is not None else None
    if there is not None and store is not None:
        return there, store.read(there.rows)
    places = [f"{where}, datasets[{number}]" for number in range(len(mix.datasets))]
    datasets = [pinned(*each) for each in zip(mix.datasets, places, strict=True)]
    if any(dataset.hub is not None for dataset in datasets):
        for each in zip(datasets, places, strict=True):
            _look(*each, project)
    seen: set[bytes] = set()
    rows, taken = [], []
    for dataset, place in zip(datasets, places, strict=True):
        rows += _sample(dataset, mix.seed, project, seen, place)
        taken.append(Taken(dataset=called(dataset), count=dataset.count))
    data = b"".join(row + b"\n" for row in rows)
    use = MixUse(name=mix.name, rows=canonical.digest(data), datasets=tuple(taken))
    return (use if definition is None else use.model_copy(update={"definition": definition})), data


def _refuse_unusable(mix: Mix, number: int, dataset: Dataset, *, where: str) -> None:
    where = f"{where}, datasets[{number}]"
    if dataset.path is None and dataset.hub is None:
        raise UsageError(
            f"the mix {mix.name} needs a dataset whose id on the Hub is not known for sure",
            where=f"{where}.hub",
            remedy="fill in its id (org/name) and revision, or put path: FILE instead; its comment says what it is",
        )
    if dataset.adapter not in adapters.ADAPTERS:
        raise UsageError(
            f"there is no adapter {dataset.adapter!r}",
            where=f"{where}.adapter",
            remedy=f"there is {', '.join(sorted(adapters.ADAPTERS))}",
        )
    if any(called(dataset) == called(other) for other in mix.datasets[:number]):
        raise UsageError(
            f"{called(dataset)} stands twice, and its rows would be taken twice",
            where=f"{where}.{'path' if dataset.path else 'hub'}",
            remedy="name each dataset once, with the sum of the counts",
        )


def _definition(mix: Mix, project: Path) -> str | None:
    """What a mix's rows follow from; None if all of it is at hand, so that nothing need be found again."""
    if all(dataset.path is not None for dataset in mix.datasets):
        return None
    stated = mix.model_dump(mode="json", exclude={"name"})
    local = {dataset.path: hash_file(project / dataset.path)[0] for dataset in mix.datasets if dataset.path is not None}
    return canonical.digest(canonical.dumps({"code": CODE, "mix": stated, "local": local}))


def _look(dataset: Dataset, where: str, project: Path) -> None:
    """Reads the first row: what is wrong with the last dataset is said before gigabytes of the first are fetched."""
    if dataset.hub is not None and offline():
        return  # the Hub's client has it all, or none
    next(_rows(dataset.model_copy(update={"pool": 1}), project, where), None)


def _sample(dataset: Dataset, seed: int, project: Path, seen: set[bytes], where: str) -> list[bytes]:
    """The chosen rows of one dataset, in the order in which they stand there; no more than these are kept in memory."""
    salt = f"{seed}\n".encode()
    chosen: list[tuple[int, int, bytes]] = []  # a heap whose first is the one that goes next: the largest hash
    found = twice = 0
    for number, row in _rows(dataset, project, where):
        digest = hashlib.sha256(salt + row).digest()
        found += 1
        if digest in seen:
            twice += 1
            continue
        seen.add(digest)
        entry = (-int.from_bytes(digest), -number, row)
        if len(chosen) < dataset.count:
            heapq.heappush(chosen, entry)
        else:
            heapq.heappushpop(chosen, entry)
    if len(chosen) < dataset.count:
        some = f" ({twice} more stand in the mix twice)" if twice else ""
        raise UsageError(
            f"the mix takes {dataset.count} rows of {called(dataset)}, which has {found - twice}{some}",
            where=f"{where}.count",
            remedy=f"take at most {found - twice}, or add rows",
        )
    return [row for _, _, row in sorted(chosen, key=lambda entry: -entry[1])]


def _rows(dataset: Dataset, project: Path, where: str) -> Iterator[tuple[int, bytes]]:
    """Every row of a dataset as a chat, in the one form in which rows are recorded, with its number there."""
    adapter = adapters.ADAPTERS[dataset.adapter]
    skipped = set(dataset.skip)
    for number, name, row in open_dataset(dataset, project, where):
        if number not in skipped:
            yield number, adapters.written(row, adapter, where=name)
