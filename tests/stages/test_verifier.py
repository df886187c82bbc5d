"""The verifier on this machine: programs that want harm do none, pass nothing, and are reported.

The same programs run in the real container in tests/containers/test_verifier.py.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from gates.errors import UsageError
from registry.processes import end_with_parent
from stages.common.execution import (
    Execution,
    Limits,
    Raised,
    Result,
    Returned,
    Settings,
    UnavailableError,
    client,
    decode,
    encode,
    folders,
    settings_of,
    verifier,
)
from stages.verifier import leavings
from stages.verifier.supervisor import execute
from tests.support import hostile
from tests.support.hostile import Hostile, python
from tests.support.processes import end, start

SERVE = """
import asyncio, sys
from pathlib import Path
from stages.common.execution import Limits
from stages.verifier.server import serve
asyncio.run(serve(Path(sys.argv[1]), Limits(cpu=2, wall=8)))
"""
"""A verifier with less time for each program, so that those who use it up take seconds here."""

DOUBLE = {"python": "def f(x): return x + x", "javascript": "const f = (x) => x + x"}


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.Popen[bytes]]]:
    socket = tmp_path_factory.mktemp("verifier") / "verifier.sock"
    secrets = {**os.environ, "HF_TOKEN": "a token"}
    server = subprocess.Popen(
        [sys.executable, "-c", SERVE, socket], env=secrets, stderr=subprocess.DEVNULL, preexec_fn=end_with_parent
    )
    yield socket, server
    assert server.poll() is None
    server.terminate()
    assert server.wait(10) == 0
    assert not socket.exists()


def ask(settings: Settings, executions: Sequence[Execution]) -> list[Result]:
    async def all_at_once() -> list[Result]:
        async with verifier(settings) as run:
            return await asyncio.gather(*map(run, executions))

    return asyncio.run(all_at_once())


def below(process: int) -> list[int]:
    """The children of a process."""
    tasks = Path("/proc", str(process), "task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


@pytest.mark.parametrize("program", hostile.ALL, ids=lambda program: program.name)
def test_a_hostile_program_does_no_harm_passes_nothing_and_is_reported(served, program: Hostile):
    socket, server = served
    innocent = hostile.INNOCENT[program.execution.language]
    result, after = ask(Settings(socket), [program.execution, innocent])
    program.check(result)
    assert hostile.right(after), after
    assert server.poll() is None
    assert below(server.pid) == []


@pytest.mark.parametrize("language", ["python", "javascript"])
def test_what_is_right_is_found_right(served, language):
    (result,) = ask(Settings(served[0]), [hostile.INNOCENT[language]])
    assert hostile.right(result)


VALUES = [0, -1, 2**53 - 1, 2**53, -(10**400), True, None, 1.5, -0.25, float("inf"), float("nan"), 1e300, "é\0\n", "😀"]


@pytest.mark.parametrize(
    ("language", "values"),
    [
        (
            "python",
            [*VALUES, "\ud800x", b"\xff", 1j, (1, [2]), {1, "a"}, {(1, 2): {"a": None}}, 10**5000, [], {}, set(), ()],
        ),
        (
            "javascript",
            [*VALUES, "\ud800x", "\udc00\ud800", [1, [2, []]], {"a": {"__proto__": 1}}, {1, "a"}, [], {}, set()],
        ),
    ],
)
def test_values_go_in_and_come_out_unchanged(served, language, values):
    code = {"python": "def f(x): return x", "javascript": "const f = (x) => x"}[language]
    execution = Execution(language, code, "f", tuple((value,) for value in values))
    (result,) = ask(Settings(served[0]), [execution])
    assert [each.value for each in result.values] == [encode(value) for value in values]


def test_each_call_gets_fresh_arguments(served):
    given = ([1], {"a": [2]})
    codes = {
        "python": "def f(x, y): x.append(len(y)); y['a'].append(x); return x",
        "javascript": "function f(x, y) { x.push(Object.keys(y).length); y.a.push(x); return x }",
    }
    results = ask(
        Settings(served[0]), [Execution(language, code, "f", (given,) * 3) for language, code in codes.items()]
    )
    for result in results:
        assert [decode(each.value) for each in result.values] == [[1, 1]] * 3
    assert given == ([1], {"a": [2]})


def test_a_program_comes_to_the_same_every_time(served):
    code = "import random\ndef f(): return [random.random(), list({'a', 'b', 'c', 'd', 'e'}), hash('a')]"
    first, second = ask(Settings(served[0]), [Execution("python", code, "f", ((),))] * 2)
    assert first == second


def test_programs_are_written_in_more_than_one_way(served):
    sources = [
        ("javascript", "module.exports = { f: (x) => x + x }", 4),
        ("javascript", "module.exports = (x) => x + x", 4),
        ("javascript", "const { inspect } = require('util'); async function f(x) { return await x + x }", 4),
        (
            "javascript",
            "'use strict'; class A { #x = 2; get x() { return this.#x } }\nvar f = (x) => (new A().x ?? 0) + x",
            4,
        ),
        (
            "python",
            "import dataclasses\n@dataclasses.dataclass\nclass A:\n    x: 'int'\ndef f(x): return A(x).x * 2",
            4,
        ),
        ("python", "f = lambda x: x + x\nif __name__ == '__main__':\n    raise SystemExit", 4),
        ("python", "import collections\ndef f(x): return collections.Counter({x: 1})", {2: 1}),
    ]
    results = ask(Settings(served[0]), [Execution(language, code, "f", ((2,),)) for language, code, _ in sources])
    assert [decode(result.values[0].value) for result in results] == [value for *_, value in sources], results


MODULES = [
    "export function f(x) { return x + x }",
    "export default function f(x) { return x + x }",
    "export default (x) => x + x;",
    "const f = (x) => x + x;\nexport default { f };",
    "const g = (x) => x + x;\nexport { g as f }; // as f",
    "import assert from 'node:assert';\nfunction f(x) { return x + x }\nassert.strictEqual(f(1), 2);",
    "import assert from 'assert/strict';\nimport * as path from 'path';\nexport const f = (x) => path.sep && x + x;",
    "const two = await Promise.resolve(2);\nconst f = (x) => two * x;",
    "const { ok } = require('assert');\nexport class A { static f(x) { ok(x); return x + x } }\nexport const f = A.f;",
    "async function f(x) { return (await import('node:path')).join('') && x + x }",
]


def test_a_program_in_javascript_may_be_a_module(served):
    results = ask(Settings(served[0]), [Execution("javascript", code, "f", ((2,),)) for code in MODULES])
    assert results == [Result("done", (Returned(4),))] * len(MODULES)


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("function f(x { return x }", "SyntaxError: "),
        ("import _ from 'lodash'; export const f = (x) => x;", "Error: there is no module lodash"),
        ("import f from './other.js'; export { f };", "Error: there is no module ./other.js"),
        ("export const g = 3;", "the program defines no function f"),
        ("export const f = (x) => x;\nthrow new RangeError('no');", "RangeError: no"),
        ("await new Promise(() => {});\nexport const f = (x) => x;", "after 0 of 1 calls"),
    ],
)
def test_of_what_is_no_program_it_is_said_why(served, code, why):
    (result,) = ask(Settings(served[0]), [Execution("javascript", code, "f", ((2,),))])
    assert result.outcome == "failed"
    assert why in result.detail


def test_many_clients_at_once_get_each_its_own_result_in_the_order_they_came(served):
    executions = [Execution("python", DOUBLE["python"], "f", ((number,),)) for number in range(40)]
    order: list[int] = []

    async def clients() -> None:
        async with verifier(Settings(served[0])) as run:

            async def one(number: int) -> None:
                result = await run(executions[number])
                assert result == Result("done", (Returned(2 * number),))
                order.append(number)

            await asyncio.gather(*map(one, range(len(executions))))

    asyncio.run(clients())
    assert order == sorted(order)


def test_a_client_that_is_killed_keeps_nobody_waiting(served):
    sleeping = Execution("python", "import time\ndef f(): time.sleep(1000)", "f", ((),))
    process = start(lambda: ask(Settings(served[0]), [sleeping] * 30))
    deadline = time.monotonic() + 20
    while not below(served[1].pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.kill(process, signal.SIGKILL)
    end(process)
    begun = time.monotonic()
    (result,) = ask(Settings(served[0]), [hostile.INNOCENT["python"]])
    assert hostile.right(result)
    assert time.monotonic() - begun < 30  # thirty times 8 s have not passed


@pytest.mark.parametrize(
    "request_line",
    [
        b"",
        b"x\n",
        b"{}\n",
        b"[" * 100_000 + b"\n",
        b'{"calls":[[{"int":"0x1"}]],"code":1,"entry":"f","language":"python"}\n',
    ],
)
def test_who_speaks_otherwise_is_hung_up_on(served, request_line):
    async def speak() -> bytes:
        reader, writer = await asyncio.open_unix_connection(served[0])
        await reader.readline()
        writer.write(request_line)
        writer.write_eof()
        told = await reader.read()
        writer.close()
        return told

    assert asyncio.run(speak()) == b""
    assert hostile.right(ask(Settings(served[0]), [hostile.INNOCENT["python"]])[0])


# a verifier of the harness's own


def test_without_a_verifier_nothing_is_executed_unless_it_is_allowed():
    with pytest.raises(UsageError, match="no verifier here") as refused:
        settings_of({}, unsafe_local=False)
    assert "--unsafe-local-execution" in str(refused.value)
    assert settings_of({}, unsafe_local=True) == Settings(None)
    assert settings_of({"SLUICE_VERIFIER": "/x"}, unsafe_local=True) == Settings(Path("/x"))


def test_a_verifier_that_is_not_there_is_nobodys_fault(tmp_path, monkeypatch):
    monkeypatch.setattr(client, "_COMES_BACK", 0.2)
    with pytest.raises(UnavailableError, match="no verifier answers"):
        ask(Settings(tmp_path / "none.sock"), [hostile.INNOCENT["python"]])


def test_a_verifier_of_another_version_is_refused(tmp_path):
    async def other() -> None:
        async def hello(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"another\n")
            writer.close()

        server = await asyncio.start_unix_server(hello, tmp_path / "s")
        async with server, verifier(Settings(tmp_path / "s")):
            pass

    with pytest.raises(UsageError, match="another version"):
        asyncio.run(other())


def test_it_ends_with_the_harness_and_takes_its_programs_along():
    sleeping = Execution("python", "import time\ndef f(): time.sleep(1000)", "f", ((),))
    harness = start(lambda: ask(Settings(None), [sleeping]))
    try:
        server = _wait_for_child(harness)
        program = _wait_for_child(server)
    finally:
        os.kill(harness, signal.SIGKILL)
        end(harness)
    deadline = time.monotonic() + 10
    while (_alive(server) or _alive(program)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(server)
    assert not _alive(program)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_verifier_ended_in_the_middle_comes_back_and_only_the_program_it_ran_is_run_again(how: signal.Signals):
    """However it is ended (Ctrl-C in a terminal reaches it too): of the program that it ran then it says nothing."""
    slow = Execution("python", "import time\ndef f(): time.sleep(1); return 'slow'", "f", ((),))

    async def harness() -> list[Result]:
        async with verifier(Settings(None)) as run:
            asked = [asyncio.ensure_future(run(each)) for each in (slow, *[hostile.INNOCENT["python"]] * 5)]
            os.kill(await _running(sleeping=True), how)
            return await asyncio.gather(*asked)

    first, *others = asyncio.run(harness())
    assert first == Result("done", (Returned("slow"),))
    assert all(map(hostile.right, others))


def test_a_program_under_which_the_verifier_dies_twice_has_failed_and_those_who_waited_have_not():
    slow = Execution("python", "import time\ndef f(): time.sleep(1000)", "f", ((),))

    async def harness() -> list[Result]:
        async with verifier(Settings(None)) as run:
            asked = [asyncio.ensure_future(run(each)) for each in (slow, *[hostile.INNOCENT["python"]] * 3)]
            while not asked[0].done():
                victim = asyncio.ensure_future(_running(sleeping=True))
                await asyncio.wait({victim, asked[0]}, return_when=asyncio.FIRST_COMPLETED)
                if not victim.cancel():
                    os.kill(victim.result(), signal.SIGKILL)
            return await asyncio.gather(*asked)

    first, *others = asyncio.run(harness())
    assert first == Result("failed", detail="the verifier died while it ran this, twice")
    assert all(map(hostile.right, others))


def test_told_to_stop_it_stops_at_once_however_many_wait(tmp_path):
    sleeping = Execution("python", "import time\ndef f(): time.sleep(1000)", "f", ((),))
    command = [sys.executable, "-m", "stages.verifier", "--socket", tmp_path / "s"]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL, preexec_fn=end_with_parent)
    harness = start(lambda: ask(Settings(tmp_path / "s"), [sleeping] * 5))
    program = _wait_for_child(server.pid)
    server.terminate()
    assert server.wait(10) == 0
    assert not _alive(program)
    os.kill(harness, signal.SIGKILL)
    end(harness)


# what is left


def test_processes_that_hide_are_ended_all_the_same():
    """Where a kernel has no filter for calls, a program can make processes."""

    def supervisor() -> None:
        leavings.guard()
        reading, writing = os.pipe()
        for _ in range(5):
            start(lambda: _hide(writing, depth=4))
        os.close(writing)
        assert len(os.read(reading, 100)) >= 1
        time.sleep(0.3)
        leavings.end_processes(everything=False)
        assert below(os.getpid()) == []
        os.set_blocking(reading, True)
        while os.read(reading, 100):
            pass  # it ends: nobody holds the other end any more

    assert end(start(supervisor)) == 0


def test_files_are_removed_however_deep_they_lie(tmp_path):
    (tmp_path / "keep").write_text("")
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(1200):
        os.mkdir("d", dir_fd=folder)
        inner = os.open("d", os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = inner
    os.close(folder)
    (tmp_path / "root").symlink_to("/")
    for number in range(3):
        shut = tmp_path / f"shut{number}"
        (shut / "inner").mkdir(parents=True)
        (shut / "inner" / "x").write_text("")
        shut.chmod(0)
    tmp_path.chmod(0)
    folders.empty(tmp_path, keep=("keep",))
    assert [path.name for path in tmp_path.iterdir()] == ["keep"]


WRITES = """
import itertools, os
def f():
    for number in itertools.count():
        {}
"""


@pytest.mark.parametrize(
    ("writes", "why"),
    [
        ("open(str(number), 'wb').write(bytes(1 << 22))", "its files take more than 32 MiB"),
        ("open(str(number), 'w').close()", "it made more than 100 files and folders"),
        ("os.path.exists('d') or os.mkdir('d', 0o300); open(f'd/{number}', 'w')", "that nobody can look into"),
        ("os.mkdir('d' * 200); os.chdir('d' * 200)", "(nobody can look into its folders|made more than 100)"),
    ],
)
def test_no_disk_is_filled_where_no_file_system_of_its_own_bounds_a_program(tmp_path, writes, why):
    reading, writing = os.pipe()
    limits = Limits(disk=1 << 25, entries=100)
    program = Execution("python", WRITES.format(writes), "f", ((),))
    result, _ = execute(program, limits, tmp_path, cancel=reading, sweep=lambda: None)
    os.close(reading)
    os.close(writing)
    assert result.outcome == "failed"
    assert re.search(why, result.detail), result
    folders.empty(tmp_path)


def test_what_a_harness_that_was_killed_left_goes_with_the_next_and_nobody_elses(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    writing = python("import os, time; os.makedirs('a/b'); open('a/b/c', 'w').write('x'); time.sleep(1000)")
    harness = start(lambda: ask(Settings(None), [writing]))
    program = _wait_for_child(_wait_for_child(harness))
    _wait_for(lambda: list(tmp_path.glob("sluice-verifier-*/sluice-execution-*/a/b/c")))
    (left,) = tmp_path.glob("sluice-verifier-*")
    with folders.own():
        assert left.exists(), "its owner lives"
    server = below(harness)[0]
    os.kill(server, signal.SIGKILL)
    os.kill(harness, signal.SIGKILL)
    end(harness)
    _wait_for(lambda: not _alive(server) and not _alive(program))
    assert list(left.glob("sluice-execution-*/a/b/c"))
    stranger = tmp_path / "sluice-verifier-link"
    stranger.symlink_to(tmp_path)
    assert hostile.right(ask(Settings(None), [hostile.INNOCENT["python"]])[0])
    assert list(tmp_path.iterdir()) == [stranger]


def test_this_machine_is_not_taken_for_a_container_of_the_verifiers_own():
    assert not leavings.alone()


def _hide(writing: int, depth: int) -> None:
    os.setsid()
    if depth:
        start(lambda: _hide(writing, depth - 1))
        return
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.write(writing, b".")
    while True:
        time.sleep(100)


def _wait_for_child(process: int) -> int:
    return _wait_for(lambda: below(process))[0]


def _wait_for(what: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError("it does not come to pass")


async def _running(*, sleeping: bool = False) -> int:
    """The verifier of this process's own, as soon as a program runs in it."""
    while True:
        for server in below(os.getpid()):
            for program in below(server):
                if not sleeping or _sleeps(program):
                    return server
        await asyncio.sleep(0.02)


def _sleeps(process: int) -> bool:
    try:
        return "nanosleep" in Path("/proc", str(process), "wchan").read_text()
    except OSError:
        return False


def _alive(process: int) -> bool:
    try:
        return Path("/proc", str(process), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_raised_name_is_data():
    assert Raised("x") != Returned("x")
