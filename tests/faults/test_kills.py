"""kill -9 before and after every change to the disk: the work is done or not begun, and running it again converges."""

from __future__ import annotations

import shutil
from typing import Literal

import pytest

from registry import fs, syscalls
from tests.faults import looking
from tests.faults.scenarios import SCENARIOS, Scenario, each_scenario
from tests.support import faults, invariants
from tests.support.processes import KILLED, dying_at, end, start


@pytest.mark.parametrize("when", ["before", "after"])
@each_scenario
def test_work_killed_anywhere_is_done_or_not_begun_and_converges(
    memory_path, some, scenario: Scenario, when: Literal["before", "after"]
):
    _killed_everywhere(memory_path, some, scenario, when)


def test_a_replacement_where_folders_cannot_be_exchanged_converges_too(memory_path, some, monkeypatch):
    """Three renames do it there; a name may be missing between them, and the next run puts it back."""

    def refuse(*_: object) -> None:
        raise OSError(fs.errno.ENOSYS, "no such call")

    monkeypatch.setattr(syscalls, "exchange", refuse)
    (scenario,) = (each for each in SCENARIOS if each.name == "replace")
    _killed_everywhere(memory_path, some, scenario, "before", may_miss={"v7b"})


def _killed_everywhere(folder, some, scenario: Scenario, when, *, may_miss: frozenset[str] | set[str] = frozenset()):
    template, root = folder / "template", folder / "root"
    scenario.prepare(template)
    before = looking.names(template)
    goal, calls = looking.uninterrupted(template, root, scenario)
    total = len(calls)
    for number in some(total, 12):
        looking.copied(template, root)
        status = end(start(dying_at(number, lambda: scenario.work(root), when=when)))
        assert status in (0, KILLED)
        faults.count_fault()
        if (root / "format.json").exists():
            invariants.check(root)
            assert before - looking.names(root) <= scenario.may_lose | may_miss
        scenario.work(root)
        invariants.check(root)
        assert looking.state(root, scenario) == goal, f"killed {when} change {number} of {total}"
        shutil.rmtree(root)
