"""What a candidate holds alone and what it shares, and what lies on the disk besides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from registry import fs, removal, usage
from registry.cli import app
from registry.store import Store
from tests.support import stores


@pytest.fixture
def store(memory_path: Path) -> Store:
    return Store.init(memory_path / "models")


def on_disk(store: Store) -> int:
    """Bytes of all files, by another way than the one that is tested."""
    paths = (path for path in store.layout.root.rglob("*") if path.is_file() and not path.is_symlink())
    files = {path.stat().st_ino: path.stat().st_size for path in paths}
    return sum(files.values())


def test_bytes_that_two_candidates_share_count_once_in_the_total(store, tmp_path):
    first = stores.add(store, "first", tmp_path, seed=1)
    second = stores.add(store, "second", tmp_path, seed=2)
    found = usage.usage(store)
    files = {file.digest: file.size for each in (first, second) for file in each.manifest.files.values()}
    weights = first.manifest.files["model.safetensors"].size
    shares = {share.name: (share.alone, share.shared) for share in found.candidates}
    assert shares == dict.fromkeys(("first", "second"), (weights, first.manifest.size - weights))
    assert found.blobs == sum(files.values())
    assert found.total == on_disk(store)
    assert found.not_needed == 0
    assert found.free > 0


def test_a_second_name_for_a_model_leaves_nothing_alone(store, tmp_path):
    first = stores.add(store, "first", tmp_path)
    store.add("twin", tmp_path / "first-0")
    assert {(share.alone, share.shared) for share in usage.usage(store).candidates} == {(0, first.manifest.size)}


def test_what_nothing_needs_and_what_is_unfinished_is_told_apart(store, tmp_path):
    size = stores.add(store, "gone", tmp_path).manifest.size
    removal.remove(store, "gone")
    with store.step("ab" * 32) as folder:
        (folder / "half").write_bytes(b"0" * 1000)
        found = usage.usage(store)
    assert found.candidates == ()
    assert found.unfinished == 1000
    assert found.not_needed is not None
    assert size <= found.not_needed < size + 2000
    assert found.total == on_disk(store)


def test_where_a_record_is_damaged_the_rest_is_told_all_the_same(store, tmp_path):
    stores.add(store, "sound", tmp_path, seed=1)
    stores.add(store, "broken", tmp_path, seed=2)
    fs.remove_tree(store.layout.candidate("broken") / "manifest")
    found = usage.usage(store)
    assert found.not_needed is None
    assert [share.name for share in found.candidates] == ["broken", "sound"]
    assert all(share.alone > 0 for share in found.candidates)


def test_df_prints_a_table_and_json(store, tmp_path):
    stores.add(store, "name", tmp_path)
    run = CliRunner().invoke(app, ["df", "--root", str(store.layout.root)])
    assert run.exit_code == 0
    assert run.stdout.splitlines()[0].split() == ["candidate", "alone", "shared"]
    told = json.loads(CliRunner().invoke(app, ["df", "--json", "--root", str(store.layout.root)]).stdout)
    assert told["candidates"] == [{"name": "name", "alone": store.candidate("name").manifest.size, "shared": 0}]
