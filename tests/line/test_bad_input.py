"""Bad input: a clear error with file, field and remedy, exit code 2, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.line.conftest import Line

RECIPE = """\
name: trial
parent: {parent}
steps:
  - prune: {{compression: {compression}, mix: {mix}{more}}}
"""
GOOD = {"parent": "toy", "compression": "0.25", "mix": "mixes/toy/broad.yaml", "more": ""}


def _snapshot(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"more": ", comperssion: 1"}, ["line 4", "steps[0].prune.comperssion", "unknown key"]),
        ({"compression": "1.5"}, ["line 4", "steps[0].prune.compression", "less than 1"]),
        ({"compression": "0.95"}, ["compression 0.95", "routed to 2", "0.8750"]),
        ({"compression": "0.01"}, ["removes none"]),
        ({"parent": "nobody"}, ["nobody", "registry add"]),
        ({"parent": "v7b"}, ["v7b", "quantised"]),
        ({"mix": "mixes/toy/none.yaml"}, ["mixes/toy/none.yaml"]),
    ],
)
def test_a_bad_recipe_is_refused_and_nothing_is_written(
    told: Line, tmp_path: Path, change: dict[str, str], words: list[str]
) -> None:
    recipe = tmp_path / "trial.yaml"
    recipe.write_text(RECIPE.format(**(GOOD | change)))
    before = _snapshot(told.root)
    refused = told.run("run", str(recipe), expect=2)
    for word in words:
        assert word in refused.stderr, refused.stderr
    assert "Traceback" not in refused.stderr
    assert "to do:" in refused.stderr
    assert _snapshot(told.root) == before


@pytest.mark.parametrize(
    "words",
    [
        ("ls", "--root", "nowhere"),
        ("show", "nobody"),
        ("gate", "toy", "--policy", "policies/none.yaml"),
        ("add", "../escape", "stages/toy/checkpoint"),
        ("add", "empty", "docs"),
        ("promote", "toy", "--channel", "new"),
        ("rollback", "--channel", "nothing"),
        ("compare", "toy"),
        ("frobnicate",),
    ],
)
def test_a_bad_command_ends_with_2_and_no_traceback(told: Line, words: tuple[str, ...]) -> None:
    before = _snapshot(told.root)
    refused = told.run(*words, expect=2)
    assert "Traceback" not in refused.stderr
    assert refused.stderr.strip()
    assert _snapshot(told.root) == before
