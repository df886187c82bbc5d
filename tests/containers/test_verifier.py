"""The verifier in its container: what the programs that want harm do there, and that it comes back."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Iterator

import pytest

from stages.common.execution import Execution, Result, Returned
from tests.containers.conftest import Compose
from tests.support import hostile
from tests.support.hostile import Hostile

pytestmark = pytest.mark.needs("containers")

ASK = """
import asyncio, json, os, sys
from stages.common.execution import Execution, settings_of, verifier
async def main():
    async with verifier(settings_of(os.environ, unsafe_local=False)) as run:
        asked = [run(Execution.from_request(line.rstrip())) for line in sys.stdin.buffer]
        for result in await asyncio.gather(*asked):
            print(json.dumps(result.to_json()))
asyncio.run(main())
"""
PYTHON = "/opt/sluice/bin/python"

# those that use all of their time end for the same reason as the two that stay
PROGRAMS = [each for each in hostile.ALL if not each.slow or each.name in ("endless loop", "js endless loop")]


@pytest.fixture(scope="module")
def verifier(compose: Compose) -> Iterator[str]:
    """The container's name, as eval starts it; nothing of it remains."""
    try:
        assert hostile.right(ask(compose, [hostile.INNOCENT["python"]])[0])
        yield compose("ps", "--format", "{{.Name}}", "verifier").stdout.strip()
    finally:
        compose("rm", "--force", "--stop", "verifier")


@pytest.fixture(scope="module")
def results(compose: Compose, verifier: str) -> dict[str, tuple[Result, Result]]:
    """What came of each program, and of an innocent one right after it."""
    assert docker("inspect", "--format", "{{.State.Running}}", verifier).strip() == "true"
    pairs = [(each.execution, hostile.INNOCENT[each.execution.language]) for each in PROGRAMS]
    told = ask(compose, [execution for pair in pairs for execution in pair])
    return {each.name: (told[2 * place], told[2 * place + 1]) for place, each in enumerate(PROGRAMS)}


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.name)
def test_a_hostile_program_does_no_harm_passes_nothing_and_is_reported(results, program: Hostile):
    result, after = results[program.name]
    program.check(result)
    assert hostile.right(after), after


def test_nothing_is_left_after_them_and_it_never_had_to_start_again(results, verifier):
    assert len(results) == len(PROGRAMS)
    code = (
        "import os; print(*[n for n in os.listdir('/proc') if n.isdecimal() and int(n) != os.getpid()].__len__() * 'p',"
    )
    code += " *os.listdir('/tmp'), *os.listdir('/run/verifier'), os.path.exists('/dev/shm'))"
    assert inside(verifier, code).split() == ["p", "p", "verifier.sock", "False"]
    assert docker("inspect", "--format", "{{.RestartCount}}", verifier).strip() == "0"
    assert "landlock" not in docker("logs", verifier)
    assert "not sealed" not in docker("logs", verifier)


def test_killed_in_the_middle_it_comes_back_and_the_program_is_run_again(compose, verifier):
    slow = Execution("python", "import time\ndef f(): time.sleep(5); return 'slow'", "f", ((),))
    with start(compose) as asking:
        asking.stdin.write(slow.request + b"\n" + hostile.INNOCENT["python"].request + b"\n")
        asking.stdin.close()
        kill_the_server(verifier)
        told = [Result.from_json(json.loads(line)) for line in asking.stdout]
    assert asking.returncode == 0
    assert told[0] == Result("done", (Returned("slow"),))
    assert hostile.right(told[1])
    assert docker("inspect", "--format", "{{.RestartCount}}", verifier).strip() == "1"


def kill_the_server(verifier: str) -> None:
    """As soon as it runs a program."""
    find = (
        "import os, pathlib\n"
        "for place in pathlib.Path('/proc').glob('[0-9]*'):\n"
        "    words = (place / 'cmdline').read_bytes()\n"
        "    if place.name != str(os.getpid()) and (b'stages.verifier' in words or b'enter.py' in words):\n"
        "        print(place.name)"
    )
    deadline = time.monotonic() + 30
    while len(found := inside(verifier, find).split()) < 3 and time.monotonic() < deadline:
        pass
    assert len(found) == 3  # init, the server, the program
    kill = f"import os; os.kill({sorted(map(int, found))[1]}, 9)"
    subprocess.run(["docker", "exec", verifier, PYTHON, "-c", kill], check=False)  # which ends with the container


def start(compose: Compose) -> subprocess.Popen[bytes]:
    words = ["docker", "compose", "run", "--rm", "-T", "--entrypoint", PYTHON, "eval", "-P", "-c", ASK]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(words, cwd=compose.project, env=compose.environment, **pipes)


def ask(compose: Compose, executions: list[Execution]) -> list[Result]:
    """The executions, by a harness in the container of eval."""
    asking = start(compose)
    told, _ = asking.communicate(b"".join(each.request + b"\n" for each in executions))
    assert asking.returncode == 0
    return [Result.from_json(json.loads(line)) for line in told.splitlines()]


def inside(container: str, code: str) -> str:
    return docker("exec", container, PYTHON, "-c", code)


def docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}"
    return done.stdout
