"""The whole line, run as users run it: commands in processes, on a registry of the test's own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

STORY = ("baseline", "v2", "v7a", "v7b")


@dataclass(frozen=True)
class Line:
    """A registry and a project folder, and the commands over them."""

    project: Path
    root: Path

    def run(self, *words: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        command = [str(self.project / ".venv" / "bin" / "registry"), *words]
        if words[0] == "run" and not set(words) & {"--containers", "--local"}:
            command.append("--local")  # whatever else there is: tests/containers are about that
        done = subprocess.run(
            command, cwd=self.project, env=self.environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == expect, f"{words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"SLUICE_ROOT": str(self.root)}

    def json(self, *words: str, expect: int = 0) -> Any:
        return json.loads(self.run(*words, "--json", expect=expect).stdout)

    def verdicts(self) -> dict[str, str | None]:
        return {line["name"]: line["verdict"] for line in self.json("ls")}

    def digest(self, name: str) -> str:
        return str(self.json("show", name)["digest"])


def copy_project(project: Path, to: Path) -> Path:
    """The data that users edit, to be edited; environments and code are the checkout's own."""
    to.mkdir()
    for name in ("recipes", "mixes", "policies", "packs"):
        shutil.copytree(project / name, to / name)
    for name in (".venv", ".venv-prune", ".venv-eval", "stages", "registry", "gates"):
        (to / name).symlink_to(project / name)
    return to


@pytest.fixture(scope="session")
def told(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Line:
    """The story, told once: all recipes run, and what passed promoted. Tests may add to it and must not change it."""
    line = Line(project, tmp_path_factory.mktemp("line") / "models")
    line.run("init")
    line.run("add", "toy", "stages/toy/checkpoint")
    line.run("run", *(f"recipes/toy/{name}.yaml" for name in STORY), expect=1)
    return line
