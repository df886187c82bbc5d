"""The lease: one holder a device, whoever else wants it, and however he ends."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gates.errors import BusyError, IntegrityError, UsageError
from registry import devices, gc, leases, locks, output, ownership, removal
from registry.devices import Memory, Process
from registry.layout import Layout
from registry.leases import Claim, hold
from registry.store import Store
from tests.support import stores
from tests.support.processes import end, start, together
from tests.support.users import ordinary

GPUS = ("GPU-00000000-aaaa", "GPU-11111111-bbbb", "GPU-11111111-cccc")
GIB = 1 << 30


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.delenv(leases.VARIABLE, raising=False)
    return Store.init(tmp_path / "models").layout


@pytest.fixture
def open_layout(memory_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    """One that another person can reach: pytest's own folders are closed."""
    monkeypatch.delenv(leases.VARIABLE, raising=False)
    return Store.init(memory_path / "models").layout


def taken(
    layout: Layout, *names: str, what: str = "me", wait: float | None = 0
) -> contextlib.AbstractContextManager[Any]:
    return hold(layout, names or ["cpu"], Claim(what), wait=wait)


@contextlib.contextmanager
def another(work: Callable[[Callable[[], None]], Any]) -> Iterator[int]:
    """A process that does `work`, which is given what it calls when it holds the device, and to wait until this block
    ends; its id, once it has called."""
    held, holding = os.pipe()
    ended, ending = os.pipe()

    def ready() -> None:
        os.close(ending)
        os.write(holding, b"x")
        os.read(ended, 1)

    process = start(lambda: work(ready))
    os.close(holding)
    try:
        assert os.read(held, 1), "the other process has ended"
        yield process
    finally:
        os.close(ending)
        end(process)
        for each in (held, ended):
            os.close(each)


def other_holder(layout: Layout, what: str = "prune v7b") -> contextlib.AbstractContextManager[int]:
    def work(ready: Callable[[], None]) -> None:
        with hold(layout, ["cpu"], Claim(what)):
            ready()

    return another(work)


def registry(*words: str | Path, **environment: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "registry", *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=os.environ | environment)


def said(process: subprocess.Popen[str], *, expect: int) -> str:
    out, err = process.communicate(timeout=60)
    assert process.returncode == expect, out + err
    return out + err


@pytest.mark.parametrize(
    "plant", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/dev/zero")], ids=["a pipe", "a folder", "a device"]
)
@pytest.mark.parametrize("words", ["lease ls", "lease run --device cpu -- true", "rm small"])
def test_what_stands_in_the_place_of_a_lock_is_not_waited_for_and_is_named(layout, tmp_path, plant, words):
    stores.add(Store(layout), "small", tmp_path)
    path = layout.lock("candidate-small") if words == "rm small" else layout.lease("cpu")
    path.unlink(missing_ok=True)
    plant(path)
    command, *arguments = words.split(" -- ")
    asked = registry(*command.split(), "--root", layout.root, *(["--", *arguments] if arguments else []))
    if (words, plant) == ("rm small", os.mkfifo):  # where it locks as any file does
        assert "removed" in said(asked, expect=0)
    else:
        assert f"mv {path}" in said(asked, expect=5)


# one holder -----------------------------------------------------------------------------------------------------------


def test_of_many_at_once_one_after_the_other_holds_the_device(layout, tmp_path):
    count = tmp_path / "count"
    count.write_text("0")

    def work() -> None:
        with hold(layout, ["cpu"], Claim("count")):
            before = int(count.read_text())
            time.sleep(0.02)
            count.write_text(str(before + 1))

    assert together([work] * 20) == [0] * 20
    assert count.read_text() == "20"


def test_who_waits_says_for_whom_and_again_when_that_changes(layout, tmp_path):
    order = tmp_path / "order"
    order.touch()

    def work(name: str) -> Callable[[], None]:
        def run() -> None:
            with (
                (tmp_path / name).open("w", buffering=1) as sys.stderr,
                hold(layout, ["cpu"], Claim(f"work of {name}")),
            ):
                with order.open("a") as log:
                    log.write(name + "\n")
                time.sleep(0.9)

        return run

    assert together([work(name) for name in ("anna", "bert", "cleo")]) == [0, 0, 0]
    first, second, third = order.read_text().split()
    assert (tmp_path / first).read_text() == ""
    waited = [line for line in (tmp_path / third).read_text().splitlines() if line.startswith("waiting for cpu")]
    assert [line.split("work of ")[1].split(",")[0] for line in waited] == [first, second]
    assert "cpu is free after" in (tmp_path / third).read_text()


def test_who_does_not_wait_is_told_who_has_it_what_for_and_since_when(layout):
    with other_holder(layout, "v7b (recipes/v7b.yaml, steps[0].prune)"):
        with pytest.raises(BusyError) as caught, taken(layout, wait=0):
            pass
        told = str(caught.value)
    for word in ("v7b (recipes/v7b.yaml, steps[0].prune)", "by ", "since 20", "s ago", "cpu.lock", "registry lease ls"):
        assert word in told
    with taken(layout):
        pass


def test_the_killed_holder_holds_nothing_and_what_it_wrote_misleads_nobody(layout):
    with other_holder(layout) as process:
        os.kill(process, signal.SIGKILL)
        with taken(layout, wait=5) as lease:
            assert leases.states(layout)[0].holder.what == "me"
        assert lease.devices == ("cpu",)
    (state,) = [state for state in leases.states(layout) if state.device == "cpu"]
    assert (state.held, state.holder) == (False, None)


def test_the_file_is_never_removed(layout):
    with taken(layout):
        before = layout.lease("cpu").stat().st_ino
    with taken(layout):
        assert layout.lease("cpu").stat().st_ino == before
    assert layout.lease("cpu").stat().st_ino == before


def test_who_waited_for_a_file_that_is_removed_meanwhile_waits_for_the_one_that_is_there_now(layout):
    """By somebody's rm: the lock on a file without a name keeps nobody out."""
    path = layout.lease("cpu")

    def wait() -> None:
        with hold(layout, ["cpu"], Claim("waited"), wait=30):
            time.sleep(1)

    with other_holder(layout) as process:
        waiting = start(wait)
        time.sleep(0.5)
        path.unlink()
        os.kill(process, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while not (path.exists() and leases.holder(path)) and time.monotonic() < deadline:
            time.sleep(0.02)
        with pytest.raises(BusyError, match="waited"), taken(layout):
            pass
        assert end(waiting) == 0


def test_a_holder_that_is_stopped_still_holds(layout):
    with other_holder(layout) as process:
        os.kill(process, signal.SIGSTOP)
        try:
            with pytest.raises(BusyError, match="prune v7b"), taken(layout, wait=0.5):
                pass
        finally:
            os.kill(process, signal.SIGCONT)
    with taken(layout, wait=5):
        pass


def test_a_clock_that_was_set_back_makes_no_holder_negative(layout):
    with taken(layout):
        line = json.loads(layout.lease("cpu").read_text())
        layout.lease("cpu").write_text(json.dumps(line | {"since": "2100-01-01T00:00:00Z"}))
        assert str(leases.holder(layout.lease("cpu"))).endswith("since 2100-01-01T00:00:00Z (0 s ago)")


def test_several_devices_are_held_together_or_not_at_all(layout):
    with other_holder(layout), pytest.raises(BusyError), taken(layout, *GPUS, "cpu"):
        pass
    for name in GPUS:  # what came before `cpu` was given back
        with taken(layout, name):
            pass


def test_two_that_ask_in_different_orders_do_not_wait_for_each_other(layout):
    def work(names: list[str]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(3):
                with hold(layout, names, Claim("both"), wait=30):
                    time.sleep(0.01)

        return run

    assert together([work(["a", "b"]), work(["b", "a"])]) == [0, 0]


def test_the_turn_to_do_something_that_needs_no_device_is_waited_for_alike(layout, capsys):
    path = layout.lock("run")

    def work(ready: Callable[[], None]) -> None:
        with leases.turn(path, "the turn", Claim("registry run a.yaml")):
            ready()

    with another(work) as process:
        threading.Timer(0.8, os.kill, [process, signal.SIGKILL]).start()
        with leases.turn(path, "the turn", Claim("registry run b.yaml")):
            assert leases.holder(path).what == "registry run b.yaml"
    assert "waiting for the turn, which is held: registry run a.yaml, by " in capsys.readouterr().err
    assert [state.device for state in leases.states(layout)] == devices.names("auto")


# who inherits it ------------------------------------------------------------------------------------------------------

SLEEP = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]


def started(**options: Any) -> subprocess.Popen[bytes]:
    process = subprocess.Popen(SLEEP, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)
    assert process.stdout is not None
    process.stdout.readline()
    return process


def test_a_server_keeps_the_device_when_its_parent_is_killed_until_it_ends(layout, tmp_path):
    def work(ready: Callable[[], None]) -> None:
        with hold(layout, ["cpu"], Claim("evaluate")) as lease:
            server = subprocess.Popen(["sleep", "60"], pass_fds=lease.descriptors)
            (tmp_path / "server").write_text(str(server.pid))
            ready()

    with another(work) as process:
        os.kill(process, signal.SIGKILL)
        os.waitid(os.P_PID, process, os.WEXITED | os.WNOWAIT)
        server = int((tmp_path / "server").read_text())
        with pytest.raises(BusyError, match="evaluate"), taken(layout, wait=0.5):
            pass
        assert leases.states(layout)[0].held
        os.kill(server, signal.SIGKILL)
        with taken(layout, wait=10):
            pass


def test_what_else_the_holder_starts_does_not_keep_it(layout):
    with taken(layout):
        process = started()
    with process, taken(layout):
        assert process.poll() is None
        process.communicate()


def test_under_a_lease_that_was_inherited_nobody_waits(layout, monkeypatch):
    with taken(layout) as lease:
        monkeypatch.setenv(leases.VARIABLE, lease.environment[leases.VARIABLE])
        with taken(layout, wait=0) as inner:
            assert inner.descriptors == lease.descriptors
            assert inner.environment == lease.environment
        monkeypatch.delenv(leases.VARIABLE)
        with pytest.raises(BusyError, match="me"), taken(layout, wait=0):
            pass


def test_a_descendant_whose_parents_closed_the_descriptor_is_known_by_the_mark(layout):
    """As in a container, or below sudo or Python's subprocess: it would wait for its own ancestor for ever."""
    inside = f"""
import sys
from pathlib import Path
from registry.layout import Layout
from registry.leases import Claim, hold
with hold(Layout(Path({str(layout.root)!r})), ["cpu"], Claim("inner"), wait=0) as lease:
    print(lease.devices, lease.descriptors)
"""
    with taken(layout) as lease:
        command = [sys.executable, "-c", inside]
        done = subprocess.run(command, env=os.environ | lease.environment, capture_output=True, text=True)
        assert done.stdout == "('cpu',) ()\n", done.stderr
        without = subprocess.run(command, capture_output=True, text=True)
        assert "BusyError" in without.stderr


def test_a_mark_of_a_lease_that_is_over_opens_nothing(layout, monkeypatch):
    with taken(layout) as lease:
        pass
    monkeypatch.setenv(leases.VARIABLE, lease.environment[leases.VARIABLE])
    with other_holder(layout), pytest.raises(BusyError, match="prune v7b"), taken(layout, wait=0):
        pass


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))
    | st.from_regex(r"cpu=[0-9]{1,25}:[0-9a-f]*", fullmatch=True)
)
def test_whatever_stands_in_the_environment_lets_nobody_in(layout, text):
    with pytest.MonkeyPatch.context() as patched, taken(layout) as lease:
        patched.setenv(leases.VARIABLE, text)
        number = text.partition("=")[2].partition(":")[0]
        guessed = number.isdecimal() and int(number) in lease.descriptors
        assert leases.held_by_another(layout, ["cpu"]) is not guessed


# people, and file systems ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
def test_whoever_may_write_in_the_folder_may_take_the_lock_whatever_the_umask(layout, umask):
    layout.leases.chmod(0o2775)
    before = os.umask(umask)
    try:
        with taken(layout):
            pass
    finally:
        os.umask(before)
    assert stat.S_IMODE(layout.lease("cpu").stat().st_mode) & 0o664 == 0o664


def test_in_a_folder_of_one_person_nobody_else_may_write_the_file(layout):
    layout.leases.chmod(0o755)
    with taken(layout):
        assert not layout.lease("cpu").stat().st_mode & 0o022


def test_another_person_who_may_only_read_waits_and_is_waited_for(open_layout):
    layout = open_layout
    with taken(layout):
        pass
    layout.lease("cpu").chmod(0o444)
    layout.leases.chmod(0o555)

    def busy() -> None:
        with pytest.raises(BusyError), hold(layout, ["cpu"], Claim("mine"), wait=0):
            pass

    def free() -> None:
        with hold(layout, ["cpu"], Claim("mine"), wait=0):
            assert locks.held(layout.lease("cpu"))

    with taken(layout):
        assert ordinary(busy, owns=layout.root) == 0
    assert ordinary(free, owns=layout.root) == 0


def test_where_no_file_can_be_made_this_is_said_with_what_to_do(open_layout):
    layout = open_layout
    layout.leases.chmod(0o555)

    def refused() -> None:
        with pytest.raises(UsageError, match="cannot be written"), hold(layout, ["cpu"], Claim("mine")):
            pass

    assert ordinary(refused, owns=layout.root) == 0


READ_ONLY = """
mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" && shift && exec "$@"
"""


@pytest.mark.needs("mounts")
def test_on_a_disk_that_is_read_only_a_lock_that_is_there_still_locks(layout):
    command = [
        sys.executable,
        "-m",
        "registry",
        "lease",
        "run",
        "--wait",
        "0",
        "--root",
        str(layout.root),
        "--",
        "true",
    ]
    alone = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", READ_ONLY, "sh", str(layout.root), *command]
    missing = subprocess.run(alone, capture_output=True, text=True)
    assert missing.returncode == 2
    assert ownership.REMOUNT in missing.stderr
    with taken(layout):
        assert subprocess.run(alone, capture_output=True).returncode == 6
    assert subprocess.run(alone, capture_output=True).returncode == 0


def test_a_file_system_without_locks_is_named_and_work_goes_on(layout, monkeypatch, capsys):
    def refused(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refused)
    with taken(layout):
        pass
    assert "this file system has no locks (No locks available): see to it" in capsys.readouterr().err


def test_locks_that_succeed_for_everybody_are_named(layout, monkeypatch, capsys):
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    with taken(layout):
        pass
    assert "locks do not lock on this file system" in capsys.readouterr().err


def test_a_full_disk_keeps_nobody_from_the_lock(layout, monkeypatch):
    with taken(layout, what="before"):
        pass

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("registry.syscalls.write", full)
    with taken(layout):
        assert locks.held(layout.lease("cpu"))


def test_a_link_in_the_place_of_the_file_is_not_followed(layout, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("whole")
    layout.lease("cpu").symlink_to(victim)
    with pytest.raises(IntegrityError, match="this is no file"), taken(layout):
        pass
    assert victim.read_text() == "whole"


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"null", b'{"what": 1}', b"\xff\n", b'{"since": "never"}\n'])
def test_whatever_stands_in_the_file_waiting_is_told_in_words(layout, text):
    layout.lease("cpu").write_bytes(text)
    told = output.printable(str(leases.holder(layout.lease("cpu"))))
    assert told
    with taken(layout):
        assert leases.holder(layout.lease("cpu")).what == "me"


# gc -------------------------------------------------------------------------------------------------------------------


def test_gc_keeps_what_is_worked_on_as_long_as_it_is(tmp_path):
    store = Store.init(tmp_path / "models")
    digest = stores.add(store, "leased", tmp_path).digest
    removal.remove(store, "leased")
    later = time.time() + 3600
    with hold(store.layout, ["cpu"], Claim("prune x", "leased", digest)):
        assert gc.collect(store, grace=0, now=later).nothing
    assert digest in store.layout.lease("cpu").read_text(), "the file still says who had it last"
    assert set(gc.collect(store, grace=0, now=later).manifests) == {digest}


def test_where_locks_do_not_lock_gc_keeps_what_a_file_names(tmp_path, monkeypatch):
    store = Store.init(tmp_path / "models")
    digest = stores.add(store, "leased", tmp_path).digest
    with hold(store.layout, ["cpu"], Claim("prune x", "leased", digest)):
        pass
    removal.remove(store, "leased")
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    assert gc.preview(store, grace=0, now=time.time() + 3600 * 24 * 60).nothing


# commands -------------------------------------------------------------------------------------------------------------


def test_a_command_runs_under_the_lease_and_its_exit_code_is_handed_on(layout):
    script = f'registry() {{ {sys.executable} -m registry "$@"; }}; registry lease ls --json; exit 7'
    done = registry(
        "lease", "run", "--device", "cpu", "--root", layout.root, "--", "sh", "-c", script, SLUICE_ROOT=str(layout.root)
    )
    out, _ = done.communicate(timeout=60)
    assert done.returncode == 7
    (state,) = [state for state in json.loads(out) if state["device"] == "cpu"]
    assert state["held"]
    assert state["holder"]["what"] == "sh"
    assert registry_lists(layout) == "cpu  free"


def registry_lists(layout: Layout) -> str:
    lines = said(registry("lease", "ls", "--root", layout.root), expect=0).splitlines()
    return next(line for line in lines if line.startswith("cpu"))


def test_no_word_of_the_command_but_its_name_is_written_down(layout):
    """Others may read the file, and a token may stand on a command line."""
    secret = "hf_" + "x" * 34
    said(registry("lease", "run", "--root", layout.root, "--device", "cpu", "--", "/bin/true", secret), expect=0)
    assert secret not in layout.lease("cpu").read_text()
    assert leases.holder(layout.lease("cpu")).what == "true"


def test_a_busy_device_ends_a_command_with_6_and_the_variable_says_how_long_to_wait(layout):
    with other_holder(layout):
        words = ("lease", "run", "--device", "cpu", "--root", layout.root, "--", "true")
        told = said(registry(*words, SLUICE_LEASE_WAIT="0.6"), expect=6)
    assert "waiting for cpu, which is held: prune v7b" in told
    assert "wait longer (--wait SECONDS)" in told


def test_ctrl_c_leaves_the_queue_and_the_holder_goes_on(layout):
    with other_holder(layout):
        waiting = registry("lease", "run", "--device", "cpu", "--root", layout.root, "--", "true")
        assert waiting.stderr is not None
        assert "waiting for cpu" in waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        said(waiting, expect=130)
        assert locks.held(layout.lease("cpu"))
    assert not locks.held(layout.lease("cpu"))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_ends_the_command_and_then_the_lease(layout, number):
    script = "import signal, sys; print(flush=True); signal.pause()"
    running = registry("lease", "run", "--device", "cpu", "--root", layout.root, "--", sys.executable, "-c", script)
    assert running.stdout is not None
    running.stdout.readline()
    running.send_signal(number)
    running.communicate(timeout=30)
    assert running.returncode == 128 + number
    assert not locks.held(layout.lease("cpu"))


def test_a_command_that_is_not_there_is_bad_input(layout):
    told = said(registry("lease", "run", "--device", "cpu", "--root", layout.root, "--", "no-such-command"), expect=2)
    assert "no-such-command" in told


def test_leases_work_without_nvidias_package(layout):
    code = (
        "import sys; sys.modules['pynvml'] = None; from registry import leases, devices; from registry.layout import *"
    )
    code += f"; from pathlib import Path; print([s.device for s in leases.states(Layout(Path({str(layout.root)!r})))])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "['cpu']" in done.stdout or "nvidia-ml-py is not installed" in done.stderr


# GPUs: what CUDA_VISIBLE_DEVICES means, and the rule about memory -----------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        (None, GPUS),
        ("", ()),
        ("-1", ()),
        ("NoDevFiles", ()),
        ("1", GPUS[1:2]),
        (" 2 , 0", (GPUS[2], GPUS[0])),
        ("0,7,1", GPUS[:1]),
        ("0,-1,1", GPUS[:1]),
        ("GPU-0", GPUS[:1]),
        ("GPU-11111111-c,0", (GPUS[2], GPUS[0])),
        ("GPU-1", ()),
        ("GPU-9", ()),
        ("0,0", GPUS[:1]),
        ("٣", ()),
    ],
)
def test_the_gpus_that_cuda_would_see_are_leased(setting, expected):
    assert tuple(devices.visible(setting, GPUS)) == expected


@given(st.lists(st.integers(-2, 4) | st.sampled_from([*GPUS, "GPU-", "MIG-", "x", ""]), max_size=6))
def test_what_comes_after_an_entry_that_names_none_is_not_seen(entries):
    words = [str(entry) for entry in entries]
    seen = devices.visible(",".join(words), GPUS)
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(GPUS)
    assert devices.visible(",".join([*words, "-1", "0", "1", "2"]), GPUS) == (seen if words else [])


def test_without_a_gpu_there_is_the_cpu_and_another_makers_gpu_has_a_name(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert devices.names("auto") == devices.names("cpu") == ["cpu"]
    assert devices.names("cuda") == ["cuda"]
    assert devices.memory("cpu") is devices.memory("cuda") is None


HELD = Memory(
    "NVIDIA H200",
    30 * GIB,
    140 * GIB,
    (Process(7, "small", GIB), Process(9, "python", 29 * GIB), Process(3, "x", None)),
)


def test_memory_that_others_hold_is_named_with_who_has_most_first():
    told = devices.complaint("GPU-0", HELD, GIB)
    assert told == (
        "30.0 GiB of 140.0 GiB of NVIDIA H200 (GPU-0) are taken by python (pid 9, 29.0 GiB), small (pid 7, 1.0 GiB), "
        "x (pid 3)"
    )
    nobody = Memory("NVIDIA H200", 30 * GIB, 140 * GIB, ())
    assert "by a process that the driver does not name" in devices.complaint("GPU-0", nobody, GIB)


@given(st.integers(0, 200), st.integers(0, 200))
def test_a_device_is_refused_exactly_when_more_is_taken_than_may_be(used, allowed):
    found = Memory("any", used, 200, ())
    assert (devices.complaint("GPU-0", found, allowed) is None) == (used <= allowed)


def read_in_turn(*used: int) -> Callable[[str], Memory]:
    left = list(used)
    return lambda _: Memory("any", left.pop(0) if len(left) > 1 else left[0], 140 * GIB, (Process(9, "python", None),))


def test_memory_that_comes_back_late_is_waited_for(monkeypatch):
    monkeypatch.delenv(devices.TAKEN, raising=False)
    devices.demand_free("GPU-0", read=read_in_turn(30 * GIB, 20 * GIB, GIB // 2), within=10)
    assert devices.not_back("GPU-0", read=read_in_turn(30 * GIB, GIB), within=10) is None


def test_memory_that_does_not_come_back_is_refused_before_and_told_after(monkeypatch):
    monkeypatch.delenv(devices.TAKEN, raising=False)
    with pytest.raises(BusyError, match=r"30\.0 GiB .* by python \(pid 9\)") as caught:
        devices.demand_free("GPU-0", read=read_in_turn(30 * GIB), within=0.1)
    assert 'SLUICE_DEVICE_TAKEN="4 GiB"' in str(caught.value)
    assert "pid 9" in (devices.not_back("GPU-0", read=read_in_turn(30 * GIB), within=0.1) or "")


def test_how_much_may_be_taken_can_be_said(monkeypatch):
    monkeypatch.setenv(devices.TAKEN, "31 GiB")
    devices.demand_free("GPU-0", read=read_in_turn(30 * GIB), within=0)
    monkeypatch.setenv(devices.TAKEN, "much")
    with pytest.raises(UsageError, match="'much' is no size"):
        devices.demand_free("GPU-0", read=read_in_turn(0), within=0)
