"""A line that is cut off anywhere goes on where it stopped and comes to the same end."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.line.conftest import Line

RECIPE = "recipes/toy/v7b.yaml"


def _start(line: Line) -> subprocess.Popen[bytes]:
    command = [str(line.project / ".venv" / "bin" / "registry"), "run", "--local", RECIPE]
    return subprocess.Popen(
        command,
        cwd=line.project,
        env=line.environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _processes_of(root: Path) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except (OSError, NotADirectoryError):
            continue
        if entry.name.isdigit() and str(root) in command and int(entry.name) != os.getpid():
            found.append(command)
    return found


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_line_cut_off_again_and_again_comes_to_the_same_end(
    told: Line, project: Path, tmp_path: Path, how: signal.Signals
) -> None:
    line = Line(project, tmp_path / "models")
    line.run("init")
    line.run("add", "toy", "stages/toy/checkpoint")
    for seconds in (1.5, 5.0, 9.0):
        running = _start(line)
        time.sleep(seconds)
        os.kill(running.pid, how)
        code = running.wait(timeout=20)
        if how is signal.SIGINT and code not in (0, 130):
            pytest.fail(f"Ctrl-C ended with {code}")
        deadline = time.monotonic() + 20
        while _processes_of(tmp_path) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert _processes_of(tmp_path) == []
    line.run("run", RECIPE)
    line.run("verify", "--all")
    for name in ("toy", "v7b.prune", "v7b"):
        assert line.digest(name) == told.digest(name)
        assert line.json("show", name)["evidence"].keys() == told.json("show", name)["evidence"].keys()


def test_a_second_run_waits_for_the_first_and_finds_everything_made(told: Line, tmp_path: Path) -> None:
    line = Line(told.project, tmp_path / "models")
    line.run("init")
    line.run("add", "toy", "stages/toy/checkpoint")
    recipe = tmp_path / "cut.yaml"
    recipe.write_text(
        "name: cut\nparent: toy\nsteps:\n  - prune: {compression: 0.25, mix: mixes/toy/broad.yaml}\n  - quantize: {}\n"
    )
    command = [str(line.project / ".venv" / "bin" / "registry"), "run", "--local", str(recipe)]
    with subprocess.Popen(command, cwd=line.project, env=line.environment, stderr=subprocess.PIPE, text=True) as first:
        assert first.stderr is not None
        first.stderr.readline()
        second = line.run("run", str(recipe))
        first.communicate(timeout=60)
    assert first.returncode == 0
    assert "waiting for the turn to run recipes here" in second.stderr
    assert second.stderr.count("made already") == 2
