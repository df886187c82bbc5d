"""A disk that fails, is full or is somebody else's: a clear error, nothing lost; once it is mended, what was asked."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from registry import output, syscalls
from registry.store import Store
from tests.faults import looking
from tests.faults.scenarios import Scenario, each_scenario
from tests.support import faults, invariants

EXIT_CODES = {2, 5, 6}
"""Bad input (as a system that refuses is), integrity, busy: the exit codes of errors that can follow from a disk's."""


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.EACCES], ids=errno.errorcode.get)
@each_scenario
def test_a_call_that_fails_ends_the_work_with_an_error_and_loses_nothing(
    memory_path, some, capsys, scenario: Scenario, error: int
):
    template, root = memory_path / "template", memory_path / "root"
    scenario.prepare(template)
    goal, calls = looking.uninterrupted(template, root, scenario)
    concerned = faults.CONCERNED[error]
    total = sum(concerned is None or name in concerned for name in calls)
    for for_good in (False, True):
        for number in some(total, 5):
            looking.copied(template, root)
            failing = faults.Failing(number, error, for_good=for_good)
            if _work(scenario, root, failing, capsys) == 0:
                assert looking.state(root, scenario) == goal, "what is said to be done is done"
            _converges(scenario, template, root, goal)


@pytest.mark.parametrize("for_good", [False, True])
@each_scenario
def test_writes_that_take_less_than_they_are_given_are_gone_on_with(
    memory_path, some, capsys, scenario: Scenario, for_good: bool
):
    template, root = memory_path / "template", memory_path / "root"
    scenario.prepare(template)
    goal, calls = looking.uninterrupted(template, root, scenario)
    for number in some(calls.count("write"), 4):
        looking.copied(template, root)
        assert _work(scenario, root, faults.Short(number, for_good=for_good), capsys) == 0
        _converges(scenario, template, root, goal)


def _work(scenario: Scenario, root: Path, fault: faults.Failing | faults.Short, capsys: Any) -> int:
    """Works as the command line does, and gives the exit code; an error that is none of ours comes through."""
    capsys.readouterr()
    with faults.around(fault):
        code = output.end_with(lambda: scenario.work(root) and None)
    assert fault.failed, "the fault was never met"
    for _ in range(fault.failed):
        faults.count_fault()
    said = capsys.readouterr().err
    if code:
        assert code in EXIT_CODES, said
        assert "error: " in said
        assert "Traceback" not in said
    return code


def _converges(scenario: Scenario, template: Path, root: Path, goal: dict[str, Any]) -> None:
    if (root / "format.json").exists():
        invariants.check(root)
        assert looking.names(template) - looking.names(root) <= scenario.may_lose
    scenario.work(root)
    invariants.check(root)
    assert looking.state(root, scenario) == goal
    shutil.rmtree(root)


def test_an_error_of_a_descriptor_names_its_file(memory_path, capsys):
    root = memory_path / "models"
    Store.init(root)

    def full(name: str, arguments: tuple[Any, ...], call: Any) -> Any:
        if name == "write":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return call(*arguments)

    with faults.around(full):
        assert output.end_with(lambda: Store.open(root).put(b"rows") and None) == 2
    assert "No space left on device" in (said := capsys.readouterr().err)
    assert f"where: {root}/blobs/sha256/" in said
    assert syscalls.around is None


@pytest.mark.needs("mounts")
def test_on_a_disk_that_really_is_full_promotion_and_gc_still_work(tmp_path, project):
    """The steps are in tests/faults/full_disk.py, which mounts a small tmpfs where nobody else sees it."""
    alone = ["unshare", "--user", "--map-root-user", "--mount"]
    command = [*alone, sys.executable, "-m", "tests.faults.full_disk", str(tmp_path)]
    run = subprocess.run(command, cwd=project, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    faults.count_fault()
    assert list(tmp_path.iterdir()) == [], "the mount was its own"
