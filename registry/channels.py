"""Channels change by generations: numbered records, created exclusively, each the commit point of one promotion.

The log's entry and the channel's link follow from the newest generation. Whoever comes next brings them in step if the
process that made it did not get that far.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gates.errors import IntegrityError, UsageError
from registry import fs, generations, naming, output
from registry.generations import Generation
from registry.layout import numbered
from registry.objects import Objects
from registry.plain import numbers


def create(store: Objects, generation: Generation) -> bool:
    """Whether the number was still free: then the generation is there, durably."""
    folder = store.layout.generations(generation.channel)
    fs.make_folders(folder)
    try:
        fs.write_new(folder / numbered(generation.number), generation.to_bytes())
    except FileExistsError:
        return False
    return True


def settle(store: Objects, channel: str) -> bool:
    """Brings what follows from the newest generation in step with it: log, candidate, link, in this order.

    The newest generation is read again after the link is set: a slower process may have set an older one meanwhile.

    Returns:
        whether the link had to be changed.

    Raises:
        IntegrityError: the generation is damaged or not the newest that there was, or its candidate cannot be restored.
    """
    changed = False
    link = store.layout.channel(channel)
    while True:
        generation = generations.current(store.layout, channel)
        if generation is None:
            return changed
        _write_log(store, generation)
        _restore_candidate(store, generation)
        target = store.layout.channel_target(generation.candidate)
        if _target(link) != target:
            fs.replace_link(link, target)
            changed = True
        if generations.current(store.layout, channel) == generation and _target(link) == target:
            return changed


def verify(store: Objects) -> None:
    """Holds the generations against the log, which has the digest of each.

    Raises:
        IntegrityError: the first one that was changed, or the newest of a channel, or its policy, if it is missing.
    """
    last: dict[str, int] = {}
    for entry in store.log.entries():
        if entry.event != "promotion":
            continue
        channel, number = str(entry.about["channel"]), int(entry.about["generation"])
        last[channel] = number
        if number not in numbers(store.layout.generations(channel)):
            continue
        if generations.read(store.layout, channel, number).identity() != entry.about["record"]:
            path = store.layout.generations(channel) / numbered(number)
            raise IntegrityError(f"this generation is not the one that log entry {entry.seq} names", where=str(path))
    for channel in last:
        generation = generations.newest(store.layout, channel)
        if generation is not None:
            store.read(generation.policy)


def repair(store: Objects) -> None:
    """Settles every channel. Damage is said and left: it must not keep anybody from the other channels.

    A channel whose newest generation is lost stays as it is: its link leads to what was promoted last.
    """
    for channel in generations.channels(store.layout):
        try:
            if settle(store, channel):
                served = generations.served(store.layout)[channel]
                output.hint(f"an interrupted promotion is finished: {channel} → {served}")
        except IntegrityError as error:
            output.hint(f"the channel {channel} is damaged: {error}")
        except OSError as error:
            output.hint(
                f"the channel {channel} cannot be settled: {error.strerror}: {error.filename2 or error.filename}"
            )


def _restore_candidate(store: Objects, generation: Generation) -> None:
    """A name that a channel serves keeps its manifest.

    Only a replacement at the same moment where locks do not work, or somebody's own hands, can have changed it.
    """
    try:
        intact = store.candidate(generation.candidate).digest == generation.manifest
    except (IntegrityError, UsageError):
        intact = False
    if not intact:
        naming.restore(store, generation.candidate, generation.manifest)


def _write_log(store: Objects, newest: Generation) -> None:
    """Adds the log's entries about the channel's generations up to `newest` that are missing."""

    def following(logged: dict[str, Any] | None) -> dict[str, Any] | None:
        generations.held_against(store.layout, newest.channel, logged)
        done = logged["generation"] if logged else 0
        missing = [number for number in numbers(folder) if done < number <= newest.number]
        if not missing:
            return None
        record = generations.read(store.layout, newest.channel, missing[0])
        about = record.model_dump(mode="json", exclude={"format", "number", "channel", "time", "user", "host"})
        return about | {"generation": record.number, "record": record.identity()}

    folder = store.layout.generations(newest.channel)
    store.log.follow("promotion", {"channel": newest.channel}, following)


def _target(link: Path) -> str | None:
    try:
        return str(link.readlink())
    except OSError:
        return None
