"""Letting an undecided gate pass: a person's decision, for a reason and a time, where the policy allows it."""

from __future__ import annotations

from datetime import UTC, date, datetime

from gates.errors import UsageError
from gates.policy import Policy
from gates.records import Waiver
from registry import fs
from registry.log import signature
from registry.objects import Candidate, Objects, read_record


def waive(
    store: Objects, candidate: Candidate, policy: Policy, *, gate: str, reason: str, until: str, by: str | None = None
) -> Waiver:
    """Lets `gate` pass for this candidate to the end of the day `until`, where the evidence does not decide it.

    Args:
        until: as 2026-12-31 (UTC).
        by: who decided; None: who runs this.

    Raises:
        UsageError: the policy takes no waivers or has no such gate, there is no reason, or the day is past or no day.
    """
    if policy.inconclusive.means != "waiver":
        raise UsageError(
            f"the policy {policy.name} takes no waivers",
            remedy="inconclusive: {means: waiver} in a policy says that a person may decide",
        )
    gates = [each.name for each in policy.gates]
    if gate not in gates:
        raise UsageError(f"the policy {policy.name} has no gate {gate!r}", remedy=f"its gates are {', '.join(gates)}")
    if not reason.strip():
        raise UsageError("a waiver needs a reason", remedy='give one: --reason "…"')
    if _day(until) < today(store):
        raise UsageError(f"{until} is past", remedy=f"give today, {today(store)}, or a later day")
    waiver = Waiver(
        format=1,
        candidate=candidate.digest,
        policy=policy.identity(),
        gate=gate,
        reason=reason.strip(),
        by=by or signature()["user"],
        expires=until,
    )
    record(store, waiver)
    return waiver


def record(store: Objects, waiver: Waiver) -> None:
    """Keeps a waiver and logs it; one that is there already changes nothing."""
    fs.renew(store.layout.manifest(waiver.candidate))  # gc spares what was renewed a moment ago
    folder = store.layout.waivers(waiver.candidate)
    fs.make_folders(folder)
    fs.write_content(folder / f"{waiver.identity()}.json", waiver.to_bytes())
    about = waiver.model_dump(mode="json", exclude={"format", "candidate", "by"}) | {"manifest": waiver.candidate}
    key = {"waiver": waiver.identity()}
    store.log.follow("waiver", key, lambda newest: None if newest else about | {"waived_by": waiver.by})


def of(store: Objects, manifest: str) -> list[Waiver]:
    """Every waiver that was ever given for a candidate.

    Raises:
        IntegrityError: one is damaged.
    """
    folder = store.layout.waivers(manifest)
    return [read_record(folder / name, Waiver, manifest) for name in fs.entries(folder)]


def today(store: Objects) -> str:
    """The day (UTC). A clock that was set back revives nothing: it is never before the log's newest entry."""
    newest = store.log.last_time()
    return max(datetime.now(UTC).date().isoformat(), newest[:10] if newest else "")


def _day(text: str) -> str:
    try:
        return date.fromisoformat(text).isoformat()
    except ValueError:
        raise UsageError(f"{text!r} is no day", remedy="write it as 2026-12-31") from None
