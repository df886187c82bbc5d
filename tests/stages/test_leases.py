"""Stages and the lease: who computes holds the device, a server keeps it, and what needs none waits for nobody."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from gates.errors import BusyError
from registry import leases, locks
from registry.leases import Claim, hold
from registry.store import Store

TOY = Path(__file__).resolve().parents[2] / "stages" / "toy" / "checkpoint"
RECIPE = """\
name: {name}
parent: toy
steps:
  - prune: {{compression: 0.5, criterion: {criterion}, mix: mixes/toy/broad.yaml}}
  - quantize: {{format: fp8-block}}
"""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv(leases.VARIABLE, raising=False)
    store = Store.init(tmp_path / "models")
    store.add("toy", TOY)
    return store


@pytest.fixture
def busy(store: Store) -> Iterator[None]:
    """Somebody else holds the device."""
    with hold(store.layout, ["cpu"], Claim("somebody else's work")):
        yield


def stage(store: Store, kind: str, name: str, *words: str, criterion: str = "reap", lease: bool = False) -> str:
    """What a stage says, and how it ended."""
    recipe = store.layout.root.parent / f"{name}.yaml"
    recipe.write_text(RECIPE.format(name=name, criterion=criterion))
    command = [sys.executable, "-m", f"stages.{kind}", "--recipe", str(recipe), "--device", "cpu", *words]
    if lease:
        command = [sys.executable, "-m", "registry", "lease", "run", "--device", "cpu", "--", *command]
    environment = os.environ | {"SLUICE_ROOT": str(store.layout.root), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return f"{done.stdout}{done.stderr}\nended with {done.returncode}"


def test_a_stage_waits_for_the_device_says_for_whom_and_works_under_a_lease_that_it_inherits(store: Store) -> None:
    with hold(store.layout, ["cpu"], Claim("somebody else's work")):
        told = stage(store, "prune", "cut", "--wait", "0")
        assert "cpu is held: somebody else's work, by " in told
        assert "ended with 6" in told
        assert "cut" not in store.names()
    made = stage(store, "prune", "cut", lease=True)
    assert "waiting" not in made
    assert "ended with 0" in made
    with hold(store.layout, ["cpu"], Claim("somebody else's work")):
        assert "made already" in stage(store, "prune", "cut", "--wait", "0"), "what is made waits for nobody"


@pytest.mark.usefixtures("busy")
def test_what_computes_nothing_on_the_device_does_not_wait_for_it(store: Store) -> None:
    assert "ended with 0" in stage(store, "prune", "drawn", "--step", "1", "--wait", "0", criterion="random")
    if not Path("/dev/nvidiactl").exists():
        assert "ended with 0" in stage(store, "quantize", "drawn", "--step", "2", "--wait", "0")


SLOW = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (time.sleep(1), sys.exit()))
print(flush=True)
time.sleep(60)
"""
"""As a server whose end takes a while."""

PARENT = """
import sys, time
from pathlib import Path
from registry.leases import Claim, hold
from registry.store import Store
from stages.evaluate.engines import server
root, slow = sys.argv[1:]
with hold(Store.open(Path(root)).layout, ["cpu"], Claim("evaluate toy")) as lease:
    with server.running([sys.executable, "-c", slow], {}, speaks=True, keep=lease.descriptors) as running:
        running.process.stdout.readline()
        print(flush=True)
        time.sleep(60)
"""


def test_the_server_of_a_killed_stage_is_ended_and_keeps_the_device_until_it_is(store: Store) -> None:
    command = [sys.executable, "-c", PARENT, str(store.layout.root), SLOW]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        parent.send_signal(signal.SIGKILL)
    with pytest.raises(BusyError, match="evaluate toy"), hold(store.layout, ["cpu"], Claim("next"), wait=0.5):
        pass
    with hold(store.layout, ["cpu"], Claim("next"), wait=5):
        pass


def test_a_stage_that_is_ended_leaves_the_device_free(store: Store) -> None:
    command = [sys.executable, "-m", "stages.evaluate", "--root", str(store.layout.root), "--candidate", "toy"]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=os.environ | {"SLUICE_DEVICE": "cpu"}
    ) as running:
        deadline = time.monotonic() + 60
        while not locks.held(store.layout.lease("cpu")) and time.monotonic() < deadline:
            time.sleep(0.05)
        holder = leases.holder(store.layout.lease("cpu"))
        running.terminate()
        assert running.wait(30) == 130
    assert holder is not None
    assert holder.what.startswith("toy (recipes/toy/v7b.yaml, steps[")
    assert holder.manifest == store.candidate("toy").digest
    assert not locks.held(store.layout.lease("cpu"))
    assert json.loads(store.layout.lease("cpu").read_text())["candidate"] == "toy"
