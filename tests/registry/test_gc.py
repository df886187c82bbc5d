"""gc removes what nothing needs and nothing else. (tests/faults: whoever writes meanwhile, wherever it is killed.)"""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from gates import canonical
from gates.errors import BusyError, IntegrityError
from registry import fs, garbage, gc, judging, lineage, naming, promotion, reachable, removal, trash
from registry.cli import app
from registry.commands import housekeeping
from registry.gc import GRACE
from registry.manifests import MixUse, Taken
from registry.store import Store
from registry.verify import verify, verify_records
from tests.support import faults, invariants, stores, users

LATER = 30 * garbage.DAY


@pytest.fixture
def store(memory_path: Path) -> Store:
    return Store.init(memory_path / "models")


def collect_later(store: Store, **options: Any) -> garbage.Garbage:
    """gc a month from now."""
    return gc.collect(store, now=time.time() + LATER, **options)


def contents(root: Path) -> set[str]:
    """Every blob, manifest, record and candidate there is."""
    kinds = ("blobs", "manifests", "evidence", "verdicts", "candidates", "generations", "staging")
    paths = (path for kind in kinds for path in (root / kind).rglob("*") if path.is_symlink() or not path.is_dir())
    return {path.relative_to(root).as_posix() for path in paths}


def gc_entries(store: Store) -> list[dict[str, Any]]:
    return [entry.about for entry in store.log.entries() if entry.event == "gc"]


def test_a_removed_candidate_goes_with_its_manifest_its_blobs_and_its_records(store, tmp_path):
    kept = stores.add(store, "kept", tmp_path, seed=1)
    before = contents(store.layout.root)
    stores.add(store, "gone", tmp_path, seed=2)
    policy = stores.write_policy(tmp_path / "policy.yaml")
    stores.judge(store, "gone", policy)
    size = sum((store.layout.root / each).stat().st_size for each in contents(store.layout.root) - before)
    removal.remove(store, "gone")
    found = collect_later(store)
    assert contents(store.layout.root) == before
    assert verify(store, "kept", full=True) == []
    assert store.candidate("kept") == kept
    (entry,) = gc_entries(store)
    assert (entry["bytes"], entry["blobs"], entry["manifests"]) == (found.size, len(found.blobs), list(found.manifests))
    assert 0 < found.size <= size
    invariants.check(store.layout.root)


def test_where_all_is_needed_nothing_goes_and_nothing_is_logged(store, tmp_path):
    stores.add(store, "kept", tmp_path)
    stores.judge(store, "kept", stores.write_policy(tmp_path / "policy.yaml"))
    before = contents(store.layout.root), store.log.verify()
    assert collect_later(store, grace=0).nothing
    assert (contents(store.layout.root), store.log.verify()) == before


def test_a_second_gc_finds_nothing_and_is_not_logged(store, tmp_path):
    stores.add(store, "gone", tmp_path)
    removal.remove(store, "gone")
    assert not collect_later(store).nothing
    assert collect_later(store).nothing
    assert len(gc_entries(store)) == 1


def test_a_preview_lists_what_gc_removes_and_removes_nothing(store, tmp_path):
    stores.add(store, "gone", tmp_path)
    removal.remove(store, "gone")
    before = contents(store.layout.root)
    listed = gc.preview(store, now=time.time() + LATER)
    assert contents(store.layout.root) == before
    assert collect_later(store) == listed


def test_what_is_removed_can_be_added_again(store, tmp_path):
    first = stores.add(store, "again", tmp_path)
    removal.remove(store, "again")
    collect_later(store)
    assert stores.add(store, "again", tmp_path) == first
    assert verify(store, "again", full=True) == []


# what is needed -------------------------------------------------------------------------------------------------------


def test_evidence_with_its_responses_and_verdicts_with_their_policy_stay(store, tmp_path):
    stores.add(store, "judged", tmp_path)
    stores.judge(store, "judged", stores.write_policy(tmp_path / "policy.yaml"))
    collect_later(store, grace=0)
    assert verify_records(store, "judged") == []


def test_attachments_stay(store, tmp_path):
    source = stores.checkpoint(store.layout.root.parent / "work")
    attachments = store.layout.root.parent / "extra"
    attachments.mkdir()
    (attachments / "heat.json").write_bytes(b"[1, 2]")
    parent = stores.add(store, "parent", tmp_path, seed=3)
    store.commit("child", stores.pruned(parent), source, attachments=attachments)
    collect_later(store, grace=0)
    assert (store.layout.candidate("child") / "attachments" / "heat.json").read_bytes() == b"[1, 2]"


def _replaced_parent(store: Store, tmp_path: Path) -> str:
    """The manifest of a parent whose name is another model's by now."""
    parent = stores.add(store, "parent", tmp_path, seed=1)
    store.commit("child", stores.pruned(parent), stores.checkpoint(store.layout.root.parent / "work", seed=2))
    stores.add(store, "parent", tmp_path, seed=3, replace=True)
    return parent.digest


def test_of_a_replaced_parent_the_record_stays_and_the_model_goes(store, tmp_path):
    parent = _replaced_parent(store, tmp_path)
    weights = store.manifest(parent).files["model.safetensors"].digest
    found = collect_later(store)
    assert found.manifests == {}
    assert not store.layout.blob(weights).exists()
    assert [digest for digest, _ in lineage.ancestry(store, store.candidate("child").digest)][-1] == parent
    for name in ("child", "parent"):
        assert verify(store, name, full=True) == []
    invariants.check(store.layout.root)


def test_a_replaced_parent_goes_when_its_child_does(store, tmp_path):
    parent = _replaced_parent(store, tmp_path)
    child = store.candidate("child").digest
    removal.remove(store, "child")
    assert set(collect_later(store).manifests) == {parent, child}
    invariants.check(store.layout.root)


def test_a_model_whose_record_alone_was_left_becomes_whole_when_it_is_added_again(store, tmp_path):
    parent = _replaced_parent(store, tmp_path)
    collect_later(store)
    assert stores.add(store, "back", tmp_path / "again", seed=1).digest != ""
    store.add("same", tmp_path / "parent-1")
    assert store.candidate("same").digest == parent
    assert verify(store, "same", full=True) == []


def test_the_rows_that_a_nameless_ancestor_was_pruned_with_stay(store, tmp_path):
    base = stores.add(store, "base", tmp_path)
    rows = store.put(b'{"text":"row"}\n')
    mix = MixUse(name="mix", rows=rows, datasets=(Taken(dataset="d", count=1),))
    work = store.layout.root.parent
    inputs = stores.pruned(base).model_copy(update={"mix": mix})
    middle = store.commit("middle", inputs, stores.checkpoint(work / "one", seed=2))
    store.commit("child", stores.pruned(middle), stores.checkpoint(work / "two", seed=3))
    store.commit("middle", stores.pruned(base, "0.5"), stores.checkpoint(work / "three", seed=4), replace=True)
    collect_later(store, grace=0)
    assert store.read(rows) == b'{"text":"row"}\n'


def _baseline(store: Store, tmp_path: Path) -> str:
    """The manifest of a baseline that has lost its name."""
    policy = stores.write_policy(tmp_path / "policy.yaml")
    base = stores.add(store, "base", tmp_path)
    stores.add(store, "best", tmp_path, seed=1)
    stores.observe(store, "base", right=8)
    stores.observe(store, "best", right=9)
    judging.judge(store, "best", policy=judging.read_policy(policy), baseline="base")
    promotion.promote(store, "best", channel="served", policy=judging.read_policy(policy))
    stores.add(store, "base", tmp_path, seed=9, replace=True)
    return base.digest


def test_a_verdict_that_was_reached_against_a_nameless_baseline_can_be_reached_again(store, tmp_path):
    base = _baseline(store, tmp_path)
    collect_later(store, grace=0)
    (verdict,) = store.verdicts(store.candidate("best").digest).values()
    assert verdict.baseline == base
    assert judging.fresh(store, store.candidate("best"), verdict.policy) == verdict


def _two_served(store: Store, tmp_path: Path) -> Path:
    policy = stores.write_policy(tmp_path / "policy.yaml")
    for seed, name in enumerate(("first", "second")):
        stores.add(store, name, tmp_path, seed=seed)
        stores.judge(store, name, policy)
        promotion.promote(store, name, policy=judging.read_policy(policy))
    return policy


def test_every_generation_can_be_rolled_back_to_after_gc(store, tmp_path):
    _two_served(store, tmp_path)
    collect_later(store, grace=0)
    assert promotion.rollback(store).candidate == "first"
    assert verify(store, "best", full=True) == []


def test_the_model_that_only_generations_that_are_let_go_served_goes_and_its_record_stays(store, tmp_path):
    _two_served(store, tmp_path)
    first = store.candidate("first")
    weights = first.manifest.files["model.safetensors"].digest
    removal.remove(store, "first", keep_generations=1)
    assert collect_later(store).nothing, "a kept generation leads to it"
    found = collect_later(store, keep_generations=1)
    assert weights in found.blobs
    assert found.manifests == {}
    assert store.evidence(first.digest)
    assert store.verdicts(first.digest)
    invariants.check(store.layout.root)


def test_what_a_lease_names_stays(store, tmp_path):
    digest = stores.add(store, "leased", tmp_path).digest
    (store.layout.root / "leases" / "gpu0.json").write_text(f'{{"candidate": "{digest}"}}')
    removal.remove(store, "leased")
    assert collect_later(store, grace=0).nothing
    (store.layout.root / "leases" / "gpu0.json").unlink()
    assert set(collect_later(store, grace=0).manifests) == {digest}


def test_what_a_record_of_a_newer_sluice_names_stays(store, tmp_path):
    digest = store.put(b"a kind of blob that is not known yet")
    parent = stores.add(store, "parent", tmp_path)
    inputs = stores.pruned(parent).model_copy(update={"future": {"deep": [digest]}})
    store.commit("child", inputs, stores.checkpoint(store.layout.root.parent / "work", seed=5))
    collect_later(store, grace=0)
    assert store.read(digest) == b"a kind of blob that is not known yet"


@pytest.mark.parametrize("kind", ["manifests", "evidence", "verdicts", "log", "generations", "candidates"])
def test_where_a_record_is_damaged_nothing_is_removed(store, tmp_path, kind):
    _two_served(store, tmp_path)
    stores.add(store, "gone", tmp_path, seed=7)
    removal.remove(store, "gone")
    if kind == "candidates":
        fs.remove_tree(store.layout.candidate("first") / "manifest")
    else:
        path = next(each for each in sorted((store.layout.root / kind).rglob("*.json")))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.chmod(0o644)
        path.write_bytes(data)
    before = contents(store.layout.root)
    with pytest.raises(IntegrityError):
        collect_later(store, grace=0)
    assert contents(store.layout.root) == before


# grace ----------------------------------------------------------------------------------------------------------------


def _age(root: Path, seconds: float) -> None:
    """Makes every file that old, as if nothing had happened since."""
    for path in (each for kind in ("blobs", "manifests") for each in (root / kind).rglob("*") if each.is_file()):
        os.utime(path, (time.time() - seconds,) * 2)


def test_the_grace_of_a_candidate_begins_when_it_is_removed_however_old_its_files_are(store, tmp_path):
    digest = stores.add(store, "old", tmp_path).digest
    _age(store.layout.root, LATER)
    removal.remove(store, "old")
    found = gc.collect(store)
    assert found.nothing
    assert found.spared > 0
    assert store.manifest(digest)
    assert set(gc.collect(store, grace=0).manifests) == {digest}


def test_what_a_removal_that_was_killed_before_its_entry_in_the_log_took_away_stays(store, tmp_path):
    digest = stores.add(store, "old", tmp_path).digest
    _age(store.layout.root, LATER)
    fs.remove_tree(store.layout.candidate("old"))
    assert gc.collect(store, grace=0).nothing
    assert removal.remove(store, "old").manifest == digest
    assert set(gc.collect(store, grace=0).manifests) == {digest}


def test_without_grace_too_what_was_just_written_stays(store):
    digest = store.put(b"rows that a manifest is about to name")
    assert gc.collect(store, grace=0).nothing
    assert gc.collect(store, grace=0, now=time.time() + garbage.MARGIN + 1).blobs == {digest: 37}


def test_finding_a_blob_there_already_renews_it(store):
    digest = store.put(b"rows")
    _age(store.layout.root, LATER)
    store.put(b"rows")
    assert gc.collect(store).nothing
    assert store.read(digest) == b"rows"


# work in progress -----------------------------------------------------------------------------------------------------


def _begun(store: Store) -> Path:
    with store.step("ab" * 32) as folder:
        (folder / "half.safetensors").write_bytes(b"0" * 100)
    return folder


def test_work_that_was_given_up_goes_after_the_grace(store):
    folder = _begun(store)
    assert gc.collect(store).nothing
    assert collect_later(store).unfinished == {f"staging/{folder.name}": 100}
    assert not folder.exists()


def test_work_that_somebody_is_at_stays_however_long_it_rests(store):
    with store.step("ab" * 32) as folder:
        (folder / "half.safetensors").write_bytes(b"0")
        store.put(b"came after the step began")
        later = time.time() + 365 * garbage.DAY
        assert gc.collect(store, grace=0, now=later).nothing
        assert (folder / "half.safetensors").exists()


def test_where_locks_do_not_lock_work_that_rested_for_less_than_a_day_stays(store, monkeypatch):
    monkeypatch.setattr("registry.locks.held", lambda _: False)
    folder = _begun(store)
    assert gc.collect(store, grace=0, now=time.time() + 0.9 * garbage.UNLOCKED).nothing
    assert folder.is_dir()
    assert gc.collect(store, grace=0, now=time.time() + 1.1 * garbage.UNLOCKED).unfinished


@pytest.mark.parametrize("place", ["", "manifests", "blobs/sha256/ab", "log", "staging", "evidence/" + "cd" * 32])
def test_what_a_killed_process_left_unfinished_goes(store, place):
    folder = store.layout.root / place
    folder.mkdir(parents=True, exist_ok=True)
    left = fs.beside(folder / "x")
    left.write_bytes(b"half")
    assert gc.collect(store).nothing
    assert list(collect_later(store).unfinished.values()) == [4]
    assert not left.exists()


def test_what_the_candidate_links_to_that_a_killed_replacement_left_without_its_name_stays(store, tmp_path):
    digest = stores.add(store, "name", tmp_path).digest
    _age(store.layout.root, LATER)
    store.layout.candidate("name").rename(fs.beside(store.layout.staging / "x"))
    gc.collect(store, grace=0)
    naming.restore(store, "name", digest)
    assert verify(store, "name", full=True) == []


def test_two_at_once_are_refused_where_locks_work(store):
    with store.locked("gc", wait=0, busy="busy"), pytest.raises(BusyError):
        gc.collect(store)


# interrupted ----------------------------------------------------------------------------------------------------------


def test_what_a_killed_gc_held_is_put_back_by_the_next_command(store, tmp_path):
    digest = stores.add(store, "name", tmp_path).digest
    weights = store.manifest(digest).files["model.safetensors"].digest
    stores.observe(store, "name", right=3)
    layout = store.layout
    for path, aside in (
        (layout.blob(weights), weights),
        (layout.manifest(digest), f"{digest}.json"),
        (layout.evidence(digest), f"{digest}.evidence"),
    ):
        assert fs.take_away(path, layout.trash / aside)
    reopened = Store.open(layout.root)
    assert verify(reopened, "name", full=True) == []
    assert verify_records(reopened, "name") == []
    assert len(reopened.evidence(digest)) == 1
    assert fs.entries(layout.trash) == []


def test_evidence_recorded_while_older_evidence_is_held_joins_it(store, tmp_path):
    digest = stores.add(store, "name", tmp_path).digest
    first = stores.observe(store, "name", right=3)
    fs.take_away(store.layout.evidence(digest), store.layout.trash / f"{digest}.evidence")
    second = stores.observe(store, "name", right=4)
    trash.recover(store)
    assert set(store.evidence(digest)) == {first, second}


def test_records_of_a_manifest_that_is_gone_go_too(store):
    evidence, rows, _ = stores.evidence_on("ab" * 32, right=3)
    folder = store.layout.evidence("ab" * 32)
    folder.mkdir(parents=True)
    (folder / f"{evidence.identity()}.json").write_bytes(evidence.to_bytes())
    assert store.put(rows) == evidence.rows
    assert gc.collect(store).nothing
    assert set(collect_later(store).manifests) == {"ab" * 32}
    assert not folder.exists()
    assert collect_later(store).nothing


def test_on_a_full_disk_it_removes_and_logs(store, tmp_path):
    """Full until the first file is gone, the registry's reserve included."""
    stores.add(store, "gone", tmp_path)
    removal.remove(store, "gone")
    fs.remove_tree(store.layout.root / fs.RESERVE)
    fs.make_lock(store.layout.lock("gc"))
    full = True

    def around(name: str, arguments: tuple[Any, ...], call: Callable[..., Any]) -> Any:
        nonlocal full
        full = full and name != "unlink"
        if full and name in ("create", "write", "allocate", "mkdir", "symlink", "link"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[0]))
        return call(*arguments)

    fs.make_lock(store.layout.lock("probe"))
    with faults.around(around):
        found = collect_later(store)
    assert found.blobs
    assert len(gc_entries(store)) == 1
    assert not any(store.layout.blob(digest).exists() for digest in found.blobs)


def test_digests_are_found_wherever_they_stand_but_not_inside_longer_words():
    one, two = "ab" * 32, "0" * 64
    assert reachable.references(canonical.dumps({"a": [{"b": one}], two: 1})) == {one, two}
    assert reachable.references(b"f" * 65) == set()


# the command ----------------------------------------------------------------------------------------------------------


def _command(store: Store, *words: str) -> Result:
    return CliRunner().invoke(app, [*words, "--root", str(store.layout.root)])


def test_the_command_lists_then_removes_and_tells_how_much(store, tmp_path):
    stores.add(store, "gone", tmp_path)
    assert _command(store, "rm", "gone").exit_code == 0
    waiting = _command(store, "gc", "--grace", "0")
    assert waiting.stdout.startswith("removed 0 B")
    assert "for less than --grace or ten minutes" in waiting.stderr
    _age(store.layout.root, LATER)
    listed = _command(store, "gc", "--dry-run", "--grace", "0").stdout.splitlines()
    assert len(contents(store.layout.root)) == len(listed) - 1
    assert listed[-1].startswith("would remove")
    told = json.loads(_command(store, "gc", "--grace", "0", "--json").stdout)
    assert (len(told["manifests"]), told["removed"]) == (1, True)
    assert told["bytes"] == sum(sum(told[kind].values()) for kind in ("manifests", "blobs", "unfinished"))
    assert contents(store.layout.root) == set()


@pytest.mark.parametrize(
    ("text", "seconds"), [("0", 0), ("14", GRACE), ("36h", 129_600), ("10m", 600), ("0.5d", 43_200)]
)
def test_a_grace_is_days_hours_or_minutes(text, seconds):
    assert housekeeping.seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "-1", "nan", "inf", "1w", "h", "1e99"])
def test_what_is_no_time_is_refused(store, text):
    run = _command(store, "gc", f"--grace={text}")
    assert run.exit_code == 2
    assert "is no time" in run.stderr


def test_damage_ends_the_command_with_5_and_a_busy_one_with_6(store, tmp_path):
    stores.add(store, "broken", tmp_path)
    with store.locked("gc", wait=0, busy="busy"):
        assert _command(store, "gc").exit_code == 6
    fs.remove_tree(store.layout.candidate("broken") / "manifest")
    run = _command(store, "gc")
    assert run.exit_code == 5
    assert "registry rm broken" in run.stderr


@pytest.mark.parametrize("place", ["leases", "evidence", "retractions"])
def test_what_is_no_record_where_records_lie_stops_gc_and_is_named(store, tmp_path, place):
    digest = stores.add(store, "toy", tmp_path).digest
    there = store.layout.root / place / ("foreign" if place == "leases" else f"{digest}/foreign.json")
    there.mkdir(parents=True)
    for command in (["gc"], ["gc", "--dry-run"]):
        run = CliRunner().invoke(app, [*command, "--root", str(store.layout.root)])
        assert run.exit_code == 5
        assert str(there) in run.stderr
        assert "move it out of the registry" in run.stderr


def test_a_candidate_s_folder_that_cannot_be_listed_stops_gc(store, tmp_path):
    """Its attachments have no other name than the links in it."""
    stores.add(store, "toy", tmp_path)
    closed = store.layout.candidate("toy") / "attachments"
    closed.mkdir()
    closed.chmod(0)

    def look() -> None:
        with pytest.raises(PermissionError):
            reachable.linked(store.layout.candidates)

    assert users.ordinary(look, owns=store.layout.root) == 0
    closed.chmod(0o755)
