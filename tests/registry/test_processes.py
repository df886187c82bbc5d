"""The keeper: nothing that was started outlives the command, its starter or the lease; and nothing else changes."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from gates.errors import UsageError
from registry import leases, locks, processes
from registry.leases import Claim, hold
from registry.store import Store
from tests.support.processes import KILLED, end, start

WORKER = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork():
    os._exit(0)
open(sys.argv[1], "w").write(f"{os.getpid()}\\n")
time.sleep(60)
"""
"""As deaf and as far from its parent as it can be: a session of its own, no descriptor, and an orphan."""

SERVER = """
import os, subprocess, sys, time
folder, worker = sys.argv[1:]
subprocess.Popen([sys.executable, "-c", worker, folder + "/worker"], start_new_session=True).wait()
while not os.path.getsize(folder + "/worker"):
    time.sleep(0.01)
print(os.getpid(), os.getppid(), flush=True)
time.sleep(60)
"""

STAGE = """
import os, sys
from pathlib import Path
from registry import processes
from registry.leases import Claim, hold
from registry.store import Store
root, *command = sys.argv[1:]
with hold(Store.open(Path(root)).layout, ["cpu"], Claim("serve")) as lease:
    sys.exit(processes.run([sys.executable, "-c", *command], dict(os.environ), keep=lease.descriptors))
"""


@dataclass(frozen=True)
class Line:
    """A stage that holds the device, its keeper, the server's front process and the worker of that."""

    stage: int
    keeper: int
    front: int
    worker: int


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.delenv(leases.VARIABLE, raising=False)
    return Store.init(tmp_path / "models")


@pytest.fixture
def line(store: Store, tmp_path: Path) -> Iterator[Line]:
    (tmp_path / "worker").touch()
    command = [sys.executable, "-c", STAGE, str(store.layout.root), SERVER, str(tmp_path), WORKER]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as stage:
        assert stage.stdout is not None
        front, keeper = map(int, stage.stdout.readline().split())
        line = Line(stage.pid, keeper, front, int((tmp_path / "worker").read_text()))
        yield line
        for each in (line.stage, line.front, line.worker):
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)


def is_there(process: int) -> bool:
    """Whether it still has memory, which an ending process gives back before its files, and so before a lease."""
    return bool(commandline(Path(f"/proc/{process}/cmdline")))


@pytest.mark.parametrize("killed", [["stage"], ["front"], ["stage", "front"], ["front", "stage"]])
def test_whoever_is_killed_no_worker_outlives_him_by_long_or_the_lease_at_all(
    store: Store, line: Line, killed: list[str]
) -> None:
    if killed == ["stage"]:  # who is deaf is killed after a while; here it is the front process that is asked
        os.kill(line.worker, signal.SIGKILL)
    begun = time.monotonic()
    for each in killed:
        os.kill(getattr(line, each), signal.SIGKILL)
    while True:
        held = locks.held(store.layout.lease("cpu"))
        left = [each for each in (line.front, line.worker) if is_there(each)]
        assert held or not left, "the lease is free, and somebody is there"
        if not held:
            break
        assert time.monotonic() < begun + 5
        time.sleep(0.01)
    with hold(store.layout, ["cpu"], Claim("next"), wait=0):
        assert not is_there(line.keeper)


def test_a_server_whose_keeper_is_killed_is_ended_by_the_kernel_and_holds_the_lease_until_then(
    store: Store, line: Line
) -> None:
    os.kill(line.keeper, signal.SIGKILL)
    with hold(store.layout, ["cpu"], Claim("next"), wait=5):
        assert not is_there(line.front)


def test_a_signal_to_the_stage_ends_the_server_and_then_what_that_has_left(store: Store, line: Line) -> None:
    os.kill(line.stage, signal.SIGTERM)
    with hold(store.layout, ["cpu"], Claim("next"), wait=5):
        assert not any(map(is_there, (line.keeper, line.front, line.worker)))


def test_a_signal_to_the_keeper_alone_ends_nothing(line: Line) -> None:
    """Whoever ends a whole group or session has reached the command already, and would else reach it twice."""
    os.kill(line.keeper, signal.SIGTERM)
    time.sleep(0.2)
    assert all(map(is_there, (line.keeper, line.front, line.worker)))


def test_a_block_ends_when_nothing_is_left_of_what_was_started_in_it(tmp_path: Path) -> None:
    (tmp_path / "worker").touch()
    command = [sys.executable, "-c", SERVER, str(tmp_path), WORKER]
    with processes.kept(command, stdout=subprocess.PIPE, text=True) as keeper:
        assert keeper.stdout is not None
        front, _ = map(int, keeper.stdout.readline().split())
        worker = int((tmp_path / "worker").read_text())
        os.kill(worker, signal.SIGKILL)  # being deaf it would take PATIENCE
    assert keeper.returncode == -signal.SIGTERM
    assert not is_there(front)


def test_orphans_that_end_are_not_left_as_zombies() -> None:
    script = "for each in 1 2 3 4 5; do (setsid sh -c 'true' &); done; sleep 0.3; echo; read line"
    with processes.kept(["sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as keeper:
        assert keeper.stdout is not None
        keeper.stdout.readline()
        children = Path(f"/proc/{keeper.pid}/task/{keeper.pid}/children").read_text().split()
        assert len(children) == 1


@pytest.mark.parametrize("moment", [0.0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.08])
def test_killed_while_it_starts_a_stage_leaves_nothing(moment: float) -> None:
    word = f"30.{os.getpid()}{int(moment * 1e6)}"

    def stage() -> None:
        processes.run(["sleep", word], dict(os.environ))

    process = start(stage)
    time.sleep(moment)
    os.kill(process, signal.SIGKILL)
    assert end(process) == KILLED
    deadline = time.monotonic() + 5
    while said := [path for path in Path("/proc").glob("[0-9]*/cmdline") if word in commandline(path)]:
        assert time.monotonic() < deadline, said
        time.sleep(0.02)


def commandline(path: Path) -> str:
    try:
        return path.read_text().replace("\0", " ")
    except OSError:
        return ""


# what the command is given, and gives ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill -SEGV $$", 139), ("kill -INT $$", 130)],
)
def test_a_command_s_end_is_handed_on(script: str, code: int) -> None:
    assert processes.run(["sh", "-c", script], dict(os.environ)) == code


@pytest.mark.parametrize("command", ["no-such-command", "/etc/passwd", "/"])
def test_what_cannot_be_started_is_bad_input(command: str) -> None:
    with pytest.raises(UsageError, match="cannot be started") as caught:
        processes.run([command], dict(os.environ))
    assert command in str(caught.value)


LOOK = """
import json, os, signal, sys
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print(json.dumps({
    "signals": [status[each].strip() for each in ("SigBlk", "SigIgn", "SigCgt")],
    "environment": dict(os.environ),
    "words": sys.argv,
    "folder": os.getcwd(),
    "group": os.getpgrp() if sys.argv[1] == "here" else 0,
    "files": sorted(each for each in os.listdir("/proc/self/fd")),
}))
"""


@pytest.mark.parametrize("environment", [{}, {"LC_ALL": "C", "SPÄT": "\udcff ü", "PYTHONPATH": "/x"}])
def test_a_command_sees_no_difference(environment: dict[str, str]) -> None:
    command = [sys.executable, "-c", LOOK, "here", "", "a b", "ü\udcff", "--", "-x"]
    plain = subprocess.run(command, env=environment, capture_output=True, check=True).stdout
    with processes.kept(command, env=environment, stdout=subprocess.PIPE) as keeper:
        assert keeper.stdout is not None
        kept = keeper.stdout.read()
    assert json.loads(kept) == json.loads(plain)


COUNT = """
import signal, sys, time
heard = 0
def hear(*_):
    global heard
    heard += 1
signal.signal(signal.SIGINT, hear)
print("ready", flush=True)
time.sleep(1)
print("heard", heard, flush=True)
"""


RUN = "import sys, os; from registry import processes; sys.exit(processes.run(sys.argv[1:], dict(os.environ)))"


def on_a_terminal(*command: str, reads: bool = True) -> tuple[int, int]:
    """A process that runs the command below a keeper, and its terminal."""
    process, terminal = pty.fork()
    if not process:
        if not reads:
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.execv(sys.executable, [sys.executable, "-c", RUN, *command])  # noqa: S606 - no shell is wanted
    return process, terminal


@pytest.mark.parametrize("by", ["the terminal", "a process"])
@pytest.mark.parametrize("reads", [True, False])
def test_ctrl_c_and_a_signal_reach_the_command_once(by: str, reads: bool) -> None:
    """Whether it reads from the terminal or not."""
    process, terminal = on_a_terminal(sys.executable, "-c", COUNT, reads=reads)
    said = b""
    try:
        while b"ready" not in said:
            said += os.read(terminal, 1000)
        if by == "the terminal":
            os.write(terminal, b"\x03")
        else:
            os.kill(process, signal.SIGINT)
        while b"heard " not in said or not said.endswith(b"\n"):
            said += os.read(terminal, 1000)
        assert b"heard 1" in said
        assert end(process) == 0
    finally:
        os.close(terminal)


def test_a_command_may_read_from_the_terminal() -> None:
    """It stays in the foreground."""
    process, terminal = on_a_terminal("sh", "-c", "echo ready; read x; exit $x")
    said = b""
    while b"ready" not in said:
        said += os.read(terminal, 1000)
    os.write(terminal, b"9\n")
    assert end(process) == 9
    os.close(terminal)
