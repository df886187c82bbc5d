"""Whatever is wrong with a registry is found, and said with what mends it; where nothing is wrong, nothing is said."""

from __future__ import annotations

import errno
import json
import os
import shlex
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from gates.errors import UsageError
from registry import doctor, fs, garbage, gc, judging, locks, promotion, removal, syscalls, verify
from registry.cli import app
from registry.store import Store
from tests.support import faults, stores, users


@pytest.fixture
def store(memory_path: Path, tmp_path: Path) -> Store:
    """Two candidates, one served."""
    store = Store.init(memory_path / "models")
    policy = stores.write_policy(tmp_path / "policy.yaml")
    for seed, name in enumerate(("first", "second")):
        stores.add(store, name, tmp_path, seed=seed)
        stores.judge(store, name, policy)
    promotion.promote(store, "first", policy=judging.read_policy(policy))
    return store


def found(store: Store, severity: str | None = None) -> str:
    """What is wrong, in text; only what is so severe, if that is given."""
    everything = doctor.examine(store.layout.root)
    return doctor.render([each for each in everything if severity in (None, each.severity)])


def weights(store: Store, name: str) -> Path:
    return store.layout.blob(store.candidate(name).manifest.files["model.safetensors"].digest)


def test_a_sound_registry_has_nothing_wrong_and_nothing_is_left_in_it(store):
    before = sorted(store.layout.root.rglob("*"))
    assert doctor.examine(store.layout.root) == []
    assert [path for path in sorted(store.layout.root.rglob("*")) if path not in before] == [store.layout.lock("probe")]


def test_where_there_is_no_registry_it_says_so(tmp_path):
    with pytest.raises(UsageError, match="no registry here"):
        doctor.examine(tmp_path)


# locks ----------------------------------------------------------------------------------------------------------------


def test_locks_that_lock_are_found_to_do_so(tmp_path):
    assert locks.work(tmp_path)
    assert locks.work_between_processes(tmp_path)
    assert not locks.held(tmp_path / "probe.lock")


def test_a_held_lock_is_seen(store):
    with store.locked("x", wait=0, busy=""):
        assert locks.held(store.layout.lock("x"))
    assert not locks.held(store.layout.lock("x"))
    assert not locks.held(store.layout.lock("never made"))


def test_locks_that_succeed_for_everybody_are_found(store, monkeypatch):
    monkeypatch.setattr("fcntl.flock", lambda *_: None)
    assert "locks do not lock here: a second descriptor" in found(store, "hint")


def test_locks_that_do_not_reach_another_process_are_found(store, monkeypatch):
    monkeypatch.setattr(locks, "_CHILD", "")  # which takes it without a word
    assert "locks do not lock here: another process" in found(store, "hint")


# the disk -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "what", "severity"),
    [
        ("link", "refuses hard links", "obstacle"),
        ("symlink", "refuses symbolic links", "obstacle"),
        ("exchange", "two folders cannot be exchanged in one step", "hint"),
    ],
)
def test_links_that_cannot_be_made_are_found(store, call, what, severity):
    def refusing(name: str, arguments: tuple[Any, ...], work: Any) -> Any:
        if name == call:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))
        return work(*arguments)

    before = sorted(store.layout.staging.iterdir())
    with faults.around(refusing):
        assert what in found(store, severity)
    assert sorted(store.layout.staging.iterdir()) == before, "the probe is gone"
    assert syscalls.around is None


def _free(monkeypatch: pytest.MonkeyPatch, free: int) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": free})())


def test_a_full_disk_is_found(store, monkeypatch):
    _free(monkeypatch, 1 << 20)
    assert "the disk is full: 1.0 MiB are free" in found(store, "obstacle")


def test_a_disk_with_less_room_than_the_largest_candidate_needs_is_a_hint(store, monkeypatch):
    monkeypatch.setattr(doctor, "_LITTLE", 100)
    size = store.candidate("first").manifest.size
    _free(monkeypatch, size - 1)
    assert "the largest candidate" in found(store, "hint")
    _free(monkeypatch, size)
    assert found(store) == "nothing is wrong"


# whose it is ----------------------------------------------------------------------------------------------------------


def test_files_of_another_user_are_found(store, monkeypatch):
    count = sum(1 for _ in store.layout.root.rglob("*")) + 1
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    told = found(store, "obstacle")
    assert f"{count} files and folders belong to another user ({owner}); this process runs as {owner + 1}" in told
    assert f"sudo chown -R $(id -u):$(id -g) {store.layout.root}" in told


def test_a_folder_that_cannot_be_written_is_found(store):
    store.layout.staging.chmod(0o555)

    def look() -> None:
        told = found(store, "obstacle")
        assert "nothing can be written in this folder" in told
        assert f"chmod u+rwx {store.layout.staging}" in told

    assert users.ordinary(look, owns=store.layout.root) == 0
    store.layout.staging.chmod(0o755)


def test_a_registry_of_somebody_else_is_one_obstacle_and_not_one_a_folder(store, monkeypatch):
    owner = os.getuid()
    folders = [store.layout.root, *store.layout.folders()]

    def look() -> None:
        for folder in folders:
            folder.chmod(0o555)
        monkeypatch.setattr(os, "getuid", lambda: owner + 1_000_000)
        told = found(store, "obstacle")
        for folder in folders:
            folder.chmod(0o755)
        assert told.count("nothing can be written in this folder") == 1
        assert f"nor in {len(folders) - 1} more" in told

    assert users.ordinary(look, owns=store.layout.root) == 0


def test_a_missing_folder_is_found_and_mended_by_any_command(store):
    store.layout.staging.rmdir()
    assert "this folder is missing" in found(store, "hint")
    Store.open(store.layout.root)
    assert found(store) == "nothing is wrong"


# what is in it --------------------------------------------------------------------------------------------------------


def _run(remedy: str) -> None:
    """Runs the command that a finding names, as a person would."""
    subprocess.run(["bash", "-c", remedy], check=True)


def test_blobs_that_can_be_written_are_found_and_mended_as_it_says(store):
    weights(store, "first").chmod(0o644)
    (finding,) = doctor.examine(store.layout.root)
    assert (finding.severity, finding.what) == ("damage", "1 blobs can be written")
    _run(finding.remedy.partition(";")[0])
    assert doctor.examine(store.layout.root) == []


def _truncated(store: Store) -> None:
    path = weights(store, "second")
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1])
    path.chmod(0o444)


def _without_blob(store: Store) -> None:
    fs.remove_tree(weights(store, "second"))


def _without_manifest(store: Store) -> None:
    fs.remove_tree(store.layout.manifest(store.candidate("second").digest))


def _linked_blob(store: Store) -> None:
    path = weights(store, "second")
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def _cut_log(store: Store) -> None:
    fs.remove_tree(store.layout.log / "00000003.json")


def _changed_generation(store: Store) -> None:
    path = store.layout.generations("best") / "00000001.json"
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b'"first"', b'"secnd"'))


def _turned_channel(store: Store) -> None:
    fs.replace_link(store.layout.channel("best"), "../candidates/second/model")


def _damaged_evidence(store: Store) -> None:
    path = next(store.layout.evidence(store.candidate("second").digest).iterdir())
    path.chmod(0o644)
    path.write_bytes(path.read_bytes() + b" ")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (_truncated, "second is damaged"),
        (_without_blob, "second is damaged"),
        (_without_manifest, "second is damaged"),
        (_linked_blob, "no regular file"),
        (_cut_log, "the log is broken at entry 3"),
        (_changed_generation, "generation"),
        (_turned_channel, "does not lead to what was promoted last"),
        (_damaged_evidence, "this record is damaged"),
    ],
)
def test_damage_is_found_and_ends_with_5(store, damage, told):
    damage(store)
    assert told in found(store, "damage")
    run = CliRunner().invoke(app, ["doctor", "--json", "--root", str(store.layout.root)])
    assert run.exit_code == 5
    findings = json.loads(run.stdout)
    assert findings[0]["severity"] == "damage", "the worst comes first"
    assert all(finding["remedy"] for finding in findings)


def test_a_turned_channel_is_mended_as_it_says(store):
    _turned_channel(store)
    assert CliRunner().invoke(app, ["ls", "--root", str(store.layout.root)]).exit_code == 0
    assert found(store) == "nothing is wrong"


def test_what_nothing_needs_is_a_hint_that_gc_takes_away(store):
    removal.remove(store, "second")
    run = CliRunner().invoke(app, ["doctor", "--root", str(store.layout.root)])
    assert run.exit_code == 0
    assert "registry gc" in run.stdout
    gc.collect(store, now=time.time() + 30 * garbage.DAY)
    assert found(store) == "nothing is wrong"


def test_unfinished_work_is_a_hint_unless_somebody_is_at_it(store):
    with store.step("ab" * 32) as folder:
        (folder / "half").write_bytes(b"0")
        assert found(store) == "nothing is wrong"
    assert "unfinished work" in found(store, "hint")


def test_a_candidate_that_vanished_is_a_hint_that_the_command_mends(store):
    fs.remove_tree(store.layout.candidate("second"))
    told = found(store, "hint")
    assert "the candidate second is gone" in told
    assert "registry rm second" in told
    removal.remove(store, "second")
    assert "is gone" not in found(store)


def test_a_candidate_that_is_removed_at_this_moment_is_no_damage(store, monkeypatch):
    """Removed for real, at the moment between its listing and the look at it."""
    look = verify.verify

    def late(store: Store, name: str, *, full: bool) -> Any:
        if name == "second":
            removal.remove(store, "second")
        return look(store, name, full=full)

    monkeypatch.setattr(verify, "verify", late)
    assert found(store, "damage") == "nothing is wrong"
    assert store.names() == ["first"]


@pytest.mark.parametrize(("module", "lists"), [(doctor, "_everything"), (garbage, "blobs")])
def test_a_file_that_is_removed_at_this_moment_ends_nothing(store, module, lists, monkeypatch):
    """A blob that nothing needs: removed for real, at the moment between its listing and the look at it."""
    listed, blob = getattr(module, lists), store.layout.blob(store.put(b"nobody's"))

    def late(of: Any) -> list[Path]:
        paths = list(listed(of))
        blob.unlink(missing_ok=True)
        return paths

    monkeypatch.setattr(module, lists, late)
    assert found(store) == "nothing is wrong"


def test_a_candidate_that_the_log_does_not_know_is_a_hint_that_promoting_or_adding_it_mends(store, tmp_path):
    for path in store.layout.log.iterdir():
        path.unlink()
    Store.open(store.layout.root)  # which writes the promotion down again
    told = found(store, "hint")
    assert "the log does not say how first came here" in told
    assert "the log does not say how second came here" in told
    stores.add(store, "second", tmp_path, seed=1)
    assert "how second came here" not in found(store)


def test_where_no_file_can_be_made_doctor_looks_at_all_the_rest(store):
    def refuse(name: str, arguments: tuple[Any, ...], call: Callable[..., Any]) -> Any:
        if name in ("create", "mkdir", "link", "symlink"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(arguments[-1]))
        return call(*arguments)

    _without_blob(store)
    with faults.around(refuse):
        told = found(store)
    assert "second is damaged" in told
    assert "No space left on device" in told
    assert "registry gc" in told


def test_an_interrupted_gc_is_a_hint(store):
    fs.take_away(weights(store, "second"), store.layout.trash / weights(store, "second").name)
    assert "a gc was interrupted" in found(store)
    Store.open(store.layout.root)
    assert found(store) == "nothing is wrong"


def test_an_obstacle_ends_with_2(store, monkeypatch):
    _free(monkeypatch, 1 << 20)
    assert CliRunner().invoke(app, ["doctor", "--root", str(store.layout.root)]).exit_code == 2


def test_paths_in_commands_are_quoted(tmp_path):
    root = tmp_path / "it's mine"
    store = Store.init(root)
    blob = store.layout.blob(store.put(b"x"))
    blob.chmod(0o644)
    remedy = next(each.remedy for each in doctor.examine(root) if each.severity == "damage").partition(";")[0]
    assert str(root / "blobs") in shlex.split(remedy)
    _run(remedy)
    assert blob.stat().st_mode & 0o222 == 0
