"""`registry run` with processes of this machine: it looks before it starts, fetches mixes, and says where it runs."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.line.conftest import Line
from tests.support.datasets_hub import DatasetsHub

PRUNES = "name: {name}\nparent: {parent}\nsteps:\n  - prune: {{compression: 0.25, mix: {mix}, stacked: true}}\n"


def _snapshot(root: Path) -> list[Path]:
    return sorted(root.rglob("*"))


def _recipe(folder: Path, name: str, mix: str, parent: str = "toy") -> str:
    path = folder / f"{name}.yaml"
    path.write_text(PRUNES.format(name=name, parent=parent, mix=mix))
    return str(path)


@pytest.mark.parametrize("parent", ["toy", "early"])
def test_a_row_that_drifted_in_the_last_recipe_is_said_before_the_first_begins(
    told: Line, tmp_path: Path, parent: str
) -> None:
    """Also where the model that is to read it is still to be made."""
    rows = (told.project / "mixes" / "toy" / "facts.jsonl").read_text().splitlines()
    rows[7] = json.dumps({"chat": json.loads(rows[7])["messages"]})
    (tmp_path / "drifted.jsonl").write_text("\n".join(rows) + "\n")
    mix = tmp_path / "drifted.yaml"
    mix.write_text(f"name: drifted\ndatasets:\n  - {{path: {tmp_path}/drifted.jsonl, count: 4}}\n")
    before = _snapshot(told.root)
    recipes = [_recipe(tmp_path, "early", "mixes/toy/broad.yaml"), _recipe(tmp_path, "late", str(mix), parent)]
    refused = told.run("run", *recipes, expect=2)
    for word in ("drifted.jsonl", "line 8", "late.yaml, step 1 (prune)", "nothing has been begun"):
        assert word in refused.stderr, refused.stderr
    assert "early" not in refused.stderr
    assert _snapshot(told.root) == before


def test_a_mix_of_the_hub_is_fetched_as_a_step_and_is_not_asked_for_again(told: Line, tmp_path: Path) -> None:
    line = Line(told.project, tmp_path / "models")
    line.run("init")
    line.run("add", "toy", "stages/toy/checkpoint")
    rows = (line.project / "mixes" / "toy" / "facts.jsonl").read_bytes()
    (tmp_path / "far.yaml").write_text("name: far\ndatasets:\n  - {hub: org/facts, config: all, count: 8}\n")
    recipe = _recipe(tmp_path, "fetched", str(tmp_path / "far.yaml"))
    card = b"---\nconfigs:\n- config_name: all\n  data_files: data/train.jsonl\n---\n"
    with DatasetsHub("org/facts", {"README.md": card, "data/train.jsonl": rows}) as hub:
        first = _with(line, hub.environment(tmp_path / "home")).run("run", recipe)
    assert "fetch the mix of prune" in first.stderr
    assert "far: 8 rows are kept as" in first.stderr
    again = _with(line, {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "empty")}).run("run", recipe)
    assert "fetched: made already" in again.stderr


def test_a_line_trains_and_quantises_what_it_trained(told: Line, tmp_path: Path) -> None:
    line = Line(told.project, tmp_path / "models")
    line.run("init")
    line.run("add", "toy", "stages/toy/checkpoint")
    train = {"mix": "mixes/toy/train/toolcall.yaml", "reference": "mixes/toy/train/reference.yaml", "max_steps": 1}
    steps = [{"train": train | {"gradient_accumulation": 1, "sequence_length": 256}}, {"quantize": {}}]
    recipe = tmp_path / "taught.yaml"
    recipe.write_text(json.dumps({"name": "taught", "parent": "toy", "steps": steps}))
    told_live = line.run("run", str(recipe)).stderr
    looks = [json.loads(each) for each in told_live.splitlines() if each.startswith('{"what": "measure')]
    assert [(look["step"], look["gap"] is not None) for look in looks] == [(0, True), (1, True)]
    (training,) = line.json("show", "taught")["training"]
    assert training["of"] == "taught.train"
    assert [each["step"] for each in training["record"]["points"]] == [0, 1]


@pytest.mark.parametrize("engine", ["tcp://127.0.0.1:9", "tcp://127.0.0.1:99999", "unix:///nowhere/docker.sock"])
def test_without_an_engine_it_says_why_and_runs_here(told: Line, engine: str) -> None:
    deaf = _with(told, {"DOCKER_HOST": engine})
    command = [str(deaf.project / ".venv" / "bin" / "registry"), "run", "recipes/toy/baseline.yaml"]
    done = subprocess.run(command, cwd=deaf.project, env=deaf.environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "run as processes of this machine, not in containers:" in done.stderr
    refused = deaf.run("run", "recipes/toy/baseline.yaml", "--containers", expect=2)
    assert "--local" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_a_dry_run_says_what_is_there_and_what_would_run(told: Line) -> None:
    before = _snapshot(told.root)
    plan = told.json("run", "recipes/toy/v7b.yaml", "--dry-run")
    assert _snapshot(told.root) == before
    assert [each["kind"] for each in plan] == [
        *("evaluate", "prune", "evaluate", "gate", "quantize", "evaluate", "gate", "promote")
    ]
    assert [each["there"] for each in plan][3:] == [
        "Pass",
        f"v7b {told.digest('v7b')[:12]}",
        "evidence on toy-arithmetic, toy-facts, toy-strings, toy-toolcall",
        "Pass",
        "best serves it",
    ]
    assert plan[1]["command"][1:4] == ["-P", "-m", "stages.prune"]
    told_in_words = told.run("run", "recipes/toy/v7b.yaml", "--dry-run").stdout
    assert "recipes/toy/v7b.yaml, step 5: quantize → v7b, in local processes" in told_in_words


def test_both_places_at_once_are_refused(told: Line) -> None:
    refused = told.run("run", "recipes/toy/v7b.yaml", "--local", "--containers", expect=2)
    assert "exclude each other" in refused.stderr


@dataclass(frozen=True)
class _Elsewhere(Line):
    """The same, with other settings in the environment."""

    settings: tuple[tuple[str, str], ...] = ()

    @property
    def environment(self) -> dict[str, str]:
        return os.environ | {"SLUICE_ROOT": str(self.root)} | dict(self.settings)


def _with(line: Line, settings: dict[str, str]) -> Line:
    return _Elsewhere(line.project, line.root, tuple(settings.items()))
