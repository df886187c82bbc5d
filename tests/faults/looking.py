"""What a registry holds, for comparison: a change that was interrupted and run again must end where it would have."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from registry import generations
from registry.layout import Layout
from registry.store import Store
from tests.faults.scenarios import Scenario
from tests.support import faults, invariants

_DIFFERS = {"record", "timings"}
"""Fields of log entries that hold times."""


def state(root: Path, scenario: Scenario) -> dict[str, Any]:
    """Everything that a user sees, without times, and what else the scenario is about."""
    store = Store.open(root)
    # a gc that was interrupted counts what the interruption left, or is logged in two parts
    events = [(entry.event, _plain(entry.about)) for entry in store.log.entries() if entry.event != "gc"]
    digests = {name: store.candidate(name).digest for name in store.names()}
    return {
        "candidates": digests,
        "evidence": {name: sorted(store.evidence(digest)) for name, digest in digests.items()},
        "verdicts": {name: sorted(store.verdicts(digest)) for name, digest in digests.items()},
        "channels": {
            name: [(each.number, each.candidate, each.manifest) for each in generations.kept(store.layout, name)]
            for name in generations.channels(store.layout)
        },
        "links": {path.name: str(path.readlink()) for path in _links(store.layout)},
        "log": sorted(events, key=str),
        "more": scenario.sees(root),
    }


def uninterrupted(template: Path, root: Path, scenario: Scenario) -> tuple[dict[str, Any], list[str]]:
    """The state that the work comes to, and the changes that it takes to get there."""
    copied(template, root)
    counting = faults.Counting()
    with faults.around(counting):
        scenario.work(root)
    assert len(counting.names) > 10, "hardly anything to interrupt"
    invariants.check(root)
    goal = state(root, scenario)
    scenario.work(root)
    assert state(root, scenario) == goal, "run again, it changes nothing"
    shutil.rmtree(root)
    return goal, counting.names


def copied(template: Path, root: Path) -> None:
    """A registry to be spoilt; none where the work begins without one."""
    if template.exists():
        shutil.copytree(template, root, symlinks=True)


def names(root: Path) -> set[str]:
    """The candidates, as far as there is a registry at all."""
    return set(Store.open(root).names()) if Layout(root).marker.exists() else set()


def _links(layout: Layout) -> list[Path]:
    return [path for path in sorted(layout.channels.iterdir()) if not path.name.startswith(".")]


def _plain(about: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in about.items() if key not in _DIFFERS}
