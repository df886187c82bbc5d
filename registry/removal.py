"""Taking a name off a candidate. Its bytes stay until gc finds that nothing needs them and the grace is over."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gates.errors import IntegrityError, UsageError
from registry import commits, fs, generations, holding, reachable
from registry.layout import checked_name

if TYPE_CHECKING:
    from registry.store import Store


@dataclass(frozen=True, slots=True)
class Removed:
    """`manifest` is None where the candidate was too damaged to tell."""

    name: str
    manifest: str | None
    size: int | None
    """Bytes of the model, some of which other candidates may share."""


def remove(store: Store, name: str, *, keep_generations: int | None = None) -> Removed:
    """Takes the name off a candidate; another may have it from then on. A removal that was interrupted is finished.

    Args:
        keep_generations: how many of each channel's generations one must be able to roll back to; None: all.

    Raises:
        UsageError: there is no such candidate, or something depends on it: every dependent is named.
        BusyError: another process has been working on the name for a minute.
    """
    if not os.path.lexists(store.layout.candidate(checked_name(name))):
        return _finished(store, name)
    busy = f"another process works on the name {name}"
    with store.locked(f"candidate-{name}", wait=commits.LOCK_WAIT, busy=busy):
        removed = _look(store, name)
        _refuse(name, dependents(store, name, removed.manifest, keep_generations=keep_generations))
        aside = fs.beside(store.layout.staging / name)
        try:
            fs.rename_folder(store.layout.candidate(name), aside)
        except FileNotFoundError:  # removed at the same moment, where locks do not work
            return _finished(store, name)
        if late := _serving(store, name):  # promoted at the same moment, where locks do not work
            _give_back(aside, store.layout.candidate(name))
            _refuse(name, late)
        _log(store, name)
        fs.remove_tree(aside)
    return removed


def dependents(store: Store, name: str, manifest: str | None, *, keep_generations: int | None = None) -> list[str]:
    """What would break if the name were gone, in sentences."""
    found = _serving(store, name)
    if manifest is None:
        return found
    for generation in reachable.kept_generations(store, keep_generations):
        if (generation.candidate, generation.manifest) == (name, manifest):
            sentence = (
                f"generation {generation.number} of {generation.channel} served it and could not be rolled back to"
            )
            found += [sentence] if generation != generations.current(store.layout, generation.channel) else []
    others = {other: candidate for other, candidate in store.sound().items() if other != name}
    if any(other.digest == manifest for other in others.values()):
        return found  # which stays, under its other name
    for other in others.values():
        if other.manifest.inputs.parent == manifest:
            found.append(f"{other.name} is made from it")
        for verdict in store.verdicts(other.digest).values():
            if verdict.baseline == manifest and holding.rests_on_all(store.layout, verdict):
                found.append(f"{other.name} was judged against it: {verdict.verdict} under {verdict.policy_name}")
    return list(dict.fromkeys(found))


def _look(store: Store, name: str) -> Removed:
    try:
        there = store.candidate(name)
    except IntegrityError:
        return Removed(name, reachable.last_names(store).get(name), None)
    return Removed(name, there.digest, there.manifest.size)


def _give_back(aside: Path, folder: Path) -> None:
    try:
        fs.rename_folder(aside, folder)
    except FileExistsError:  # the promotion has restored it, without the attachments
        fs.exchange(aside, folder)
        fs.remove_tree(aside)


def _refuse(name: str, reasons: list[str]) -> None:
    if reasons:
        raise UsageError(
            f"{name} is needed:" + "".join(f"\n  {reason}" for reason in reasons),
            remedy="promote another candidate, or remove first what depends on it; "
            "--keep-generations N lets go of generations before the newest N",
        )


def _serving(store: Store, name: str) -> list[str]:
    found = generations.served(store.layout)
    return [f"the channel {channel} serves it" for channel, served in found.items() if served == name]


def _finished(store: Store, name: str) -> Removed:
    """What a removal that was killed before its entry in the log left to do."""
    manifest = reachable.last_names(store).get(name)
    if manifest is None:
        generation = generations.current(store.layout, name)
        if generation is not None:
            raise UsageError(f"{name} is a channel, which serves {generation.candidate}", remedy="name a candidate")
        raise UsageError(f"there is no candidate {name!r}", where=str(store.layout.root), remedy="registry ls")
    _log(store, name)
    return Removed(name, manifest, None)


def _log(store: Store, name: str) -> None:
    def following(newest: dict[str, Any] | None) -> dict[str, Any] | None:
        before = newest["manifest"] if newest else None
        if before is None or os.path.lexists(store.layout.candidate(name)):
            return None
        return {"manifest": None, "op": "rm", "replaced": before}

    store.log.follow("candidate", {"name": name}, following)
