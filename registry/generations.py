"""Which generations a channel has, and so what it serves: read, and held against the log. Nothing here changes any."""

from __future__ import annotations

import contextlib
import shlex
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from gates.errors import IntegrityError, UsageError
from gates.records import Digest, Name, Record
from registry import fs
from registry.layout import Layout, numbered
from registry.log import Log, signature
from registry.plain import numbers

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


def channels(layout: Layout) -> list[str]:
    """The channels, sorted."""
    found = fs.entries(layout.root / "generations")
    return [channel for channel in found if numbers(layout.generations(channel))]


def kept(layout: Layout, channel: str) -> list[Generation]:
    """All generations of a channel that are kept, the oldest first.

    Raises:
        IntegrityError: one is damaged.
    """
    return [read(layout, channel, number) for number in numbers(layout.generations(channel))]


def current(layout: Layout, channel: str) -> Generation | None:
    """The newest generation of a channel; None if there is no such channel."""
    newest = max(numbers(layout.generations(channel)), default=None)
    return None if newest is None else read(layout, channel, newest)


def newest(layout: Layout, channel: str) -> Generation | None:
    """As `current`, held against the log: what decides about a channel, or is served from it, is this one.

    Raises:
        IntegrityError: it is not the one that the log names, or that one is missing: an earlier generation must not
            be taken for the newest, nor its number be given to another.
    """
    return held_against(layout, channel, Log(layout.log).newest("promotion", channel=channel))


def last_logged(layout: Layout, channel: str) -> Generation:
    """The newest promotion of a channel as the log has it, for whoever goes on where its generation is lost."""
    logged = Log(layout.log).newest("promotion", channel=channel)
    if logged is None:
        raise UsageError(f"the log knows no promotion to {channel}")
    number = {"format": FORMAT, "number": logged["generation"]}
    return Generation.model_validate(number | {key: logged[key] for key in _LOGGED} | signature())


def served(layout: Layout) -> dict[str, str]:
    """The name of the candidate that each channel serves."""
    newest = {channel: current(layout, channel) for channel in channels(layout)}
    return {channel: generation.candidate for channel, generation in newest.items() if generation}


def shown(layout: Layout) -> dict[str, str]:
    """As `served`, to be shown: without channels that are damaged, of which opening the registry has spoken."""
    found = {}
    for channel in channels(layout):
        with contextlib.suppress(IntegrityError):
            if (generation := current(layout, channel)) is not None:
                found[channel] = generation.candidate
    return found


def held_against(layout: Layout, channel: str, logged: dict[str, Any] | None) -> Generation | None:
    """The newest generation; `logged`, read before it, must not know a later one or another of its number."""
    generation = current(layout, channel)
    if logged is None:
        return generation
    number = int(logged["generation"])
    path = layout.generations(channel) / numbered(number)
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


def read(layout: Layout, channel: str, number: int) -> Generation:
    path = layout.generations(channel) / numbered(number)
    try:
        generation = Generation.from_bytes(fs.read(path, f"generation {number}"), where=str(path))
    except IntegrityError as error:
        raise _unreadable(channel, number, path, error.what) from None
    if (generation.channel, generation.number) != (channel, number):
        raise _unreadable(channel, number, path, "it lies where it does not belong")
    return generation


def _unreadable(channel: str, number: int, path: Path, why: str) -> IntegrityError:
    return IntegrityError(
        f"generation {number} of {channel} cannot be read: {why}",
        where=str(path),
        remedy=f"restore it from a backup; or go on without it: mv {shlex.quote(str(path))} /somewhere/else, and if it "
        f'was the newest, registry promote NAME --channel {channel} --override --reason "…"',
    )
