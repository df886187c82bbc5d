"""The lease across containers: process numbers mean nothing between them, the lock on the registry's volume does."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.containers.conftest import UID, Compose

pytestmark = pytest.mark.needs("containers")

LATER = ("lease", "run", "--wait", "60", "--", "true")
NOW = ("lease", "run", "--wait", "1", "--", "true")

LEFT_BEHIND = """\
registry lease run -- sleep 599 &
echo $! > /tmp/parent
wait
sleep 600
"""


@pytest.fixture(scope="module")
def place(compose: Compose) -> Compose:
    compose.registry("init")
    return compose


@contextmanager
def container(place: Compose, *words: str) -> Iterator[str]:
    """A container of the registry's service, when it holds the device; it is killed when the block ends."""
    options = ["--detach", "-T", "--name", f"{place.name}-holder"]
    if words[0] == "--entrypoint":
        options, words = [*options, *words[:2]], words[2:]
    name = place("run", *options, "registry", *words).stdout.strip()
    try:
        until(lambda: held(place))
        yield name
    finally:
        subprocess.run(["docker", "rm", "--force", name], capture_output=True)


def held(place: Compose) -> bool:
    states = json.loads(place.registry("lease", "ls", "--json").stdout)
    return any(state["held"] and state["holder"] for state in states if state["device"] == "cpu")


def until(done: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain"
        time.sleep(0.2)


def test_a_container_waits_for_another_says_for_whom_and_goes_on_when_that_is_killed(place: Compose) -> None:
    with container(place, "lease", "run", "--", "sleep", "600") as holder:
        host = subprocess.run(["docker", "inspect", "--format", "{{.Config.Hostname}}", holder], capture_output=True)
        refused = place.run("registry", *NOW, expect=6).stderr
        assert f"cpu is held: sleep, by {UID} on {host.stdout.decode().strip()}, since" in refused
        assert "cpu is held: sleep" in place.registry(*NOW, expect=6).stderr, "outside of containers it is the same"
        waiting = place.started("lease", "run", "--", "true")
        assert waiting.stderr is not None
        assert "waiting for cpu, which is held: sleep" in waiting.stderr.readline()
        subprocess.run(["docker", "kill", "--signal", "KILL", holder], check=True, capture_output=True)
        said = waiting.communicate(timeout=60)[1]
        assert waiting.returncode == 0, said
        assert "cpu is free after" in said


def test_a_server_is_ended_with_its_parent_and_the_next_container_let_in(place: Compose) -> None:
    with container(place, "--entrypoint", "/bin/sh", "-c", f"PATH=/opt/sluice/bin:$PATH\n{LEFT_BEHIND}") as holder:
        inside = ["docker", "exec", holder, "/bin/sh", "-c"]
        subprocess.run([*inside, "kill -9 $(cat /tmp/parent)"], check=True)
        place.run("registry", *LATER)
        seen = subprocess.run([*inside, "cat /proc/[0-9]*/cmdline"], capture_output=True).stdout.split(b"\0")
        assert b"600" in seen, "the container goes on"
        assert b"599" not in seen


def test_another_user_s_container_is_kept_out_and_let_in_alike(place: Compose) -> None:
    stranger = ("run", "--rm", "-T", "--user", "54321:54321", "registry")
    with container(place, "lease", "run", "--", "sleep", "600"):
        assert "cpu is held: sleep" in place(*stranger, *NOW, expect=6).stderr
    place(*stranger, *LATER)


def test_a_container_that_a_holder_starts_works_under_its_lease(place: Compose) -> None:
    compose = ("docker", "compose", "run", "--rm", "-T", "registry")
    done = place.registry("lease", "run", "--", *compose, "lease", "run", "--wait", "0", "--", "echo", "under it")
    assert done.stdout == "under it\n"
    assert "waiting" not in done.stderr
    if os.getuid() == 0:
        assert (place.models / "leases" / "cpu.lock").stat().st_uid == UID
