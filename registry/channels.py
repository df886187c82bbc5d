"""What each channel serves. A promotion is a generation: a numbered record, created exclusively: its commit point.

The log's entry and the channel's link follow from the newest generation. Whoever comes next brings them in step if the
process that made it did not get that far.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from gates.errors import IntegrityError, UsageError
from gates.records import Digest, Name, Record
from registry import commits, fs, output
from registry.layout import numbered
from registry.log import signature
from registry.plain import numbers

if TYPE_CHECKING:
    from registry.store import Store

FORMAT: Literal[1] = 1

_LOGGED = ("channel", "candidate", "manifest", "replaces", "policy", "policy_name", "verdict", "override", "reason")


class Generation(Record):
    """One promotion. `verdict` is the one that the candidate had under the policy, Pass or not, if it had one."""

    format: Literal[1] = FORMAT
    number: int = Field(ge=1)
    channel: Name
    candidate: Name
    manifest: Digest
    replaces: Name | None
    """The candidate that was served before."""
    restores: int | None = None
    """The earlier generation that this one, a rollback, serves again."""
    policy: Digest
    policy_name: Name
    verdict: Digest | None
    override: bool
    reason: str | None
    time: str
    user: str
    host: str


def names(store: Store) -> list[str]:
    """The channels, sorted."""
    found = fs.entries(store.layout.root / "generations")
    return [channel for channel in found if numbers(store.layout.generations(channel))]


def generations(store: Store, channel: str) -> list[Generation]:
    """All generations of a channel that are kept, the oldest first.

    Raises:
        IntegrityError: one is damaged.
    """
    return [_read(store, channel, number) for number in numbers(store.layout.generations(channel))]


def current(store: Store, channel: str) -> Generation | None:
    """The newest generation of a channel; None if there is no such channel."""
    newest = max(numbers(store.layout.generations(channel)), default=None)
    return None if newest is None else _read(store, channel, newest)


def newest(store: Store, channel: str) -> Generation | None:
    """As `current`, held against the log: what decides about a channel, or is served from it, is this one.

    Raises:
        IntegrityError: it is not the one that the log names, or that one is missing: an earlier generation must not
            be taken for the newest, nor its number be given to another.
    """
    return _held_against(store, channel, store.log.newest("promotion", channel=channel))


def last_logged(store: Store, channel: str) -> Generation:
    """The newest promotion of a channel as the log has it, for whoever goes on where its generation is lost."""
    logged = store.log.newest("promotion", channel=channel)
    if logged is None:
        raise UsageError(f"the log knows no promotion to {channel}")
    number = {"format": FORMAT, "number": logged["generation"]}
    return Generation.model_validate(number | {key: logged[key] for key in _LOGGED} | signature())


def served(store: Store) -> dict[str, str]:
    """The name of the candidate that each channel serves."""
    newest = {channel: current(store, channel) for channel in names(store)}
    return {channel: generation.candidate for channel, generation in newest.items() if generation}


def shown(store: Store) -> dict[str, str]:
    """As `served`, to be shown: without channels that are damaged, of which opening the registry has spoken."""
    found = {}
    for channel in names(store):
        with contextlib.suppress(IntegrityError):
            if (generation := current(store, channel)) is not None:
                found[channel] = generation.candidate
    return found


def create(store: Store, generation: Generation) -> bool:
    """Whether the number was still free: then the generation is there, durably."""
    folder = store.layout.generations(generation.channel)
    fs.make_folders(folder)
    try:
        fs.write_new(folder / numbered(generation.number), generation.to_bytes())
    except FileExistsError:
        return False
    return True


def settle(store: Store, channel: str) -> bool:
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
        generation = current(store, channel)
        if generation is None:
            return changed
        _write_log(store, generation)
        _restore_candidate(store, generation)
        target = store.layout.channel_target(generation.candidate)
        if _target(link) != target:
            fs.replace_link(link, target)
            changed = True
        if current(store, channel) == generation and _target(link) == target:
            return changed


def verify(store: Store) -> None:
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
        if _read(store, channel, number).identity() != entry.about["record"]:
            path = store.layout.generations(channel) / numbered(number)
            raise IntegrityError(f"this generation is not the one that log entry {entry.seq} names", where=str(path))
    for channel in last:
        generation = newest(store, channel)
        if generation is not None:
            store.read(generation.policy)


def repair(store: Store) -> None:
    """Settles every channel. Damage is said and left: it must not keep anybody from the other channels.

    A channel whose newest generation is lost stays as it is: its link leads to what was promoted last.
    """
    for channel in names(store):
        try:
            if settle(store, channel):
                output.hint(f"an interrupted promotion is finished: {channel} → {served(store)[channel]}")
        except IntegrityError as error:
            output.hint(f"the channel {channel} is damaged: {error}")
        except OSError as error:
            output.hint(
                f"the channel {channel} cannot be settled: {error.strerror}: {error.filename2 or error.filename}"
            )


def _restore_candidate(store: Store, generation: Generation) -> None:
    """A name that a channel serves keeps its manifest.

    Only a replacement at the same moment where locks do not work, or somebody's own hands, can have changed it.
    """
    try:
        intact = store.candidate(generation.candidate).digest == generation.manifest
    except (IntegrityError, UsageError):
        intact = False
    if not intact:
        commits.restore(store, generation.candidate, generation.manifest)


def _held_against(store: Store, channel: str, logged: dict[str, Any] | None) -> Generation | None:
    """The newest generation; `logged`, read before it, must not know a later one or another of its number."""
    generation = current(store, channel)
    if logged is None:
        return generation
    number = int(logged["generation"])
    path = store.layout.generations(channel) / numbered(number)
    if generation is None or generation.number < number:
        raise IntegrityError(
            f"the newest generation of {channel}, number {number} by the log, is missing",
            where=str(path),
            remedy="restore this file from a backup; or go on without it: "
            f'registry promote NAME --channel {channel} --override --reason "…"',
        )
    if generation.number == number and generation.identity() != logged["record"]:
        raise IntegrityError(
            "this generation is not the one that the log names", where=str(path), remedy="restore it from a backup"
        )
    return generation


def _write_log(store: Store, newest: Generation) -> None:
    """Adds the log's entries about the channel's generations up to `newest` that are missing."""

    def following(logged: dict[str, Any] | None) -> dict[str, Any] | None:
        _held_against(store, newest.channel, logged)
        done = logged["generation"] if logged else 0
        missing = [number for number in numbers(folder) if done < number <= newest.number]
        if not missing:
            return None
        record = _read(store, newest.channel, missing[0])
        about = record.model_dump(mode="json", exclude={"format", "number", "channel", "time", "user", "host"})
        return about | {"generation": record.number, "record": record.identity()}

    folder = store.layout.generations(newest.channel)
    store.log.follow("promotion", {"channel": newest.channel}, following)


def _target(link: Path) -> str | None:
    try:
        return str(link.readlink())
    except OSError:
        return None


def _read(store: Store, channel: str, number: int) -> Generation:
    path = store.layout.generations(channel) / numbered(number)
    generation = Generation.from_bytes(fs.read(path, f"generation {number}"), where=str(path))
    if (generation.channel, generation.number) != (channel, number):
        remedy = "restore it from a backup, or move it out of the registry"
        raise IntegrityError("this generation lies where it does not belong", where=str(path), remedy=remedy)
    return generation
