"""The power fails: only what was forced to the disk is there for certain, and of the rest any part."""

from __future__ import annotations

import shutil
from random import Random

from registry import fs
from tests.faults import looking
from tests.faults.scenarios import Scenario, each_scenario
from tests.support import faults, invariants
from tests.support.crashes import Recorder


@each_scenario
def test_whatever_a_crash_leaves_is_sound_and_the_work_run_again_converges(memory_path, some, thorough, scenario):
    """After every call: nothing survives but what was forced to the disk; and some of the rest, as it comes."""
    work, left = memory_path / "work", memory_path / "left"
    goal = _recorded(scenario, work / "models", (recorder := _begun(scenario, work)))
    chances = 6 if thorough else 2
    for time in some(recorder.time, 12):
        for chance in range(chances):
            left.mkdir()
            recorder.crash(time, left / "models", Random(f"{time}-{chance}") if chance else None)
            faults.count_fault()
            if (left / "models/format.json").exists():
                invariants.check(left / "models")
            scenario.work(left / "models")
            invariants.check(left / "models")
            assert looking.state(left / "models", scenario) == goal, (
                f"crash after {time} of {recorder.time} calls, {chance}"
            )
            shutil.rmtree(left)


@each_scenario
def test_what_is_reported_done_survives_a_crash(memory_path, scenario: Scenario):
    work, left = memory_path / "work", memory_path / "left"
    goal = _recorded(scenario, work / "models", (recorder := _begun(scenario, work)))
    for chance in range(4):
        left.mkdir()
        recorder.crash(recorder.time, left / "models", Random(chance) if chance else None)
        faults.count_fault()
        # rubbish that comes back costs nothing but the next gc
        assert looking.state(left / "models", scenario) | {"more": None} == goal | {"more": None}
        invariants.check(left / "models")
        shutil.rmtree(left)


def test_the_model_loses_what_was_not_forced_to_the_disk(memory_path):
    """The witness: without a sync a crash takes names, bytes and all."""
    root = memory_path / "folder"
    root.mkdir()
    recorder = Recorder(root)
    with faults.around(recorder):
        fs.write_new(root / "kept", b"synced")
        fs.new_link(root / "lost", "kept")
    recorder.crash(recorder.time, memory_path / "left", None)
    assert [path.name for path in (memory_path / "left").iterdir()] == ["kept"]
    assert (memory_path / "left/kept").read_bytes() == b"synced"
    recorder.crash(recorder.calls.index("sync"), memory_path / "before", None)
    assert list((memory_path / "before").iterdir()) == []


def _begun(scenario: Scenario, work) -> Recorder:
    work.mkdir()
    scenario.prepare(work / "models")
    return Recorder(work / "models")


def _recorded(scenario: Scenario, root, recorder: Recorder):
    with faults.around(recorder):
        scenario.work(root)
    return looking.state(root, scenario)
