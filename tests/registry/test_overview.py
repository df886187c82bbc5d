"""The list of candidates shows what is damaged, and everything else all the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from registry import fs, judging, overview, promotion
from registry.cli import app
from registry.store import Store
from tests.support import stores


@pytest.fixture
def store(memory_path: Path, tmp_path: Path) -> Store:
    store = Store.init(memory_path / "models")
    policy = stores.write_policy(tmp_path / "policy.yaml")
    for seed, name in enumerate(("first", "second", "third")):
        stores.add(store, name, tmp_path, seed=seed)
        stores.judge(store, name, policy)
    promotion.promote(store, "second", policy=judging.read_policy(policy))
    return store


def _without_link(store: Store) -> None:
    fs.remove_tree(store.layout.candidate("first") / "manifest")


def _without_manifest(store: Store) -> None:
    fs.remove_tree(store.layout.manifest(store.candidate("first").digest))


def _with_a_changed(kind: str, store: Store) -> None:
    path = next((store.layout.root / kind / store.candidate("first").digest).iterdir())
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b"toolcall", b"toolcold"))


DAMAGES = [
    _without_link,
    _without_manifest,
    lambda store: _with_a_changed("evidence", store),
    lambda store: _with_a_changed("verdicts", store),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=["link", "manifest", "evidence", "verdict"])
def test_a_damaged_candidate_is_listed_as_damaged_and_the_others_as_ever(store, damage):
    whole = {line.name: line for line in overview.lines(store.layout)}
    damage(store)
    listed = {line.name: line for line in overview.lines(store.layout)}
    assert listed.keys() == whole.keys()
    assert listed["first"].damage
    assert (listed["first"].size, listed["first"].verdict) == (None, None)
    assert {name: listed[name] for name in ("second", "third")} == {name: whole[name] for name in ("second", "third")}
    assert "damaged" in overview.render(list(listed.values()))


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_ls_ends_with_0_and_says_on_stderr_what_to_do(store, options):
    _without_link(store)
    run = CliRunner().invoke(app, ["ls", *options, "--root", str(store.layout.root)])
    assert run.exit_code == 0
    assert "registry verify first" in run.stderr
    if options:
        assert [line["name"] for line in json.loads(run.stdout) if line["damage"]] == ["first"]
    else:
        assert len(run.stdout.splitlines()) == 4


def test_a_damaged_candidate_that_is_served_shows_where(store):
    fs.remove_tree(store.layout.candidate("second") / "manifest")
    (line,) = (line for line in overview.lines(store.layout) if line.name == "second")
    assert line.damage
    assert line.channels == ("best",)


def test_a_damaged_generation_hides_no_candidate(store):
    path = store.layout.generations("best") / "00000001.json"
    path.chmod(0o644)
    path.write_bytes(b"{")
    assert [line.name for line in overview.lines(store.layout)] == ["first", "second", "third"]
