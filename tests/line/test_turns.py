"""Two people run recipes at once: one after the other, and each is told for whom he waits."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.line.conftest import Line

DRAWN = """\
name: {name}
parent: toy
steps:
  - prune: {{compression: 0.25, criterion: random, mix: mixes/toy/broad.yaml}}
"""


def test_of_two_runs_at_once_the_second_says_for_whom_it_waits_and_then_runs(project: Path, tmp_path: Path) -> None:
    line = Line(project, tmp_path / "models")
    line.run("init")
    line.run("add", "toy", "stages/toy/checkpoint")
    command = [str(project / ".venv" / "bin" / "registry"), "run", "--local"]
    runs = {}
    for name in ("anna", "bert"):
        recipe = tmp_path / f"{name}.yaml"
        recipe.write_text(DRAWN.format(name=name))
        runs[name] = subprocess.Popen(
            [*command, str(recipe)], cwd=project, env=line.environment, stderr=subprocess.PIPE, text=True
        )
    said = {name: run.communicate(timeout=120)[1] for name, run in runs.items()}
    assert [run.returncode for run in runs.values()] == [0, 0], said
    (waited,) = [name for name in said if "waiting for the turn to run recipes here" in said[name]]
    other = "bert" if waited == "anna" else "anna"
    assert f"which is held: registry run {tmp_path}/{other}.yaml, by " in said[waited]
    assert set(line.verdicts()) == {"toy", "anna", "bert"}
