"""Adding: what was given is taken whole, once, durably; nothing that does not belong; and the source is never lost."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gates.errors import IntegrityError, SluiceError, UsageError
from registry import adding, bulk, parallel, sources, syscalls, taking
from registry.store import Candidate, Store
from registry.verify import verify
from tests.support import faults, invariants, stores, tiny, users
from tests.support.processes import KILLED, dying_at, end, start


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.init(tmp_path / "models")


@pytest.fixture
def source(tmp_path) -> Path:
    return tiny.write_checkpoint(tmp_path / "source", shards=4)


@pytest.fixture
def calls() -> Iterator[Counter[str]]:
    """Counts the system calls that change something, and the bytes that are written."""
    counted: Counter[str] = Counter()

    def count(name: str, arguments: tuple[Any, ...], call: Callable[..., Any]) -> Any:
        counted[name] += 1
        if name == "write":
            counted["bytes"] += len(arguments[1])
        return call(*arguments)

    with faults.around(count):
        yield counted


def tree(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below `folder`, with what it holds."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def weights(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def holds(candidate: Candidate, files: dict[str, bytes | str]) -> bool:
    return {name: (candidate.folder / name).read_bytes() for name in candidate.manifest.files} == files


# Taking a folder in


def test_an_added_checkpoint_is_a_folder_of_links_with_a_manifest(store, tmp_path):
    source = tiny.write_checkpoint(tmp_path / "source", shards=2)
    candidate = store.add("toy", source)
    assert candidate.name == "toy"
    assert candidate.manifest.inputs.op == "add"
    assert (candidate.manifest.shape.experts, candidate.manifest.shape.top_k) == (4, 2)
    assert candidate.folder == store.layout.model("toy")
    assert tree(source) == {name: (candidate.folder / name).read_bytes() for name in candidate.manifest.files}
    assert candidate.manifest.size == sum(len(data) for data in tree(source).values())
    invariants.check(store.layout.root)


def test_the_source_is_only_read(store, tmp_path):
    source = stores.checkpoint(tmp_path / "source")
    before = {
        path.name: (path.stat().st_ino, path.stat().st_mode, path.stat().st_mtime_ns) for path in source.iterdir()
    }
    store.add("toy", source)
    after = {path.name: (path.stat().st_ino, path.stat().st_mode, path.stat().st_mtime_ns) for path in source.iterdir()}
    assert after == before
    assert not any((store.layout.model("toy") / name).samefile(source / name) for name in before)


def test_what_was_added_again_from_the_same_files_is_found(store, tmp_path, capsys):
    first = stores.add(store, "toy", tmp_path)
    before = tree(store.layout.root)
    copy = shutil.copytree(tmp_path / "toy-0", tmp_path / "elsewhere")
    assert store.add("toy", copy) == first
    assert "is there already" in capsys.readouterr().err
    assert tree(store.layout.root) == before


def test_other_files_under_the_same_name_are_refused_and_the_differences_named(store, tmp_path):
    first = stores.add(store, "toy", tmp_path)
    other = stores.checkpoint(tmp_path / "other", seed=1)
    (other / "merges.txt").write_text("a b\n")
    with pytest.raises(UsageError) as caught:
        store.add("toy", other)
    text = str(caught.value)
    assert "model.safetensors" in text
    assert "merges.txt: missing / 4 bytes" in text
    assert "config.json" not in text
    assert "--replace" in text
    assert store.candidate("toy") == first


def test_replacing_gives_the_name_to_other_files_and_keeps_the_old_manifest(store, tmp_path):
    first = stores.add(store, "toy", tmp_path)
    second = stores.add(store, "toy", tmp_path, seed=1, replace=True)
    assert store.candidate("toy") == second
    assert second.digest != first.digest
    assert store.manifest(first.digest) == first.manifest
    assert store.log.newest("candidate", name="toy") == {
        "name": "toy",
        "manifest": second.digest,
        "op": "add",
        "replaced": first.digest,
    }
    invariants.check(store.layout.root)


def test_two_candidates_share_the_files_that_they_have_in_common(store, tmp_path):
    stores.add(store, "one", tmp_path)
    stores.add(store, "two", tmp_path, seed=1)
    ones, twos = (store.layout.model(name) for name in ("one", "two"))
    assert (ones / "tokenizer.json").samefile(twos / "tokenizer.json")
    assert not (ones / "model.safetensors").samefile(twos / "model.safetensors")


def test_what_is_no_part_of_a_model_stays_where_it_is(store, tmp_path, capsys):
    source = stores.checkpoint(tmp_path / "source")
    for name in ("README.md", "LICENSE", "picture.png", ".gitattributes"):
        (source / name).write_text("text")
    (source / ".git").mkdir()
    (source / ".git/config").write_text("text")
    candidate = store.add("toy", source)
    assert set(candidate.manifest.files) == {
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert "LICENSE, README.md, picture.png" in capsys.readouterr().err


def test_links_that_stay_inside_the_source_are_followed(store, tmp_path):
    source = stores.checkpoint(tmp_path / "source")
    (source / ".shards").mkdir()
    (source / "model.safetensors").rename(source / ".shards/first")
    (source / "model.safetensors").symlink_to(".shards/first")
    candidate = store.add("toy", source)
    assert candidate.manifest.files["model.safetensors"].size == (source / ".shards/first").stat().st_size
    assert not store.layout.blob(candidate.manifest.files["model.safetensors"].digest).is_symlink()


def _link_out(source: Path) -> None:
    (source.parent / "secret.json").write_text("{}")
    (source / "extra.json").symlink_to("../secret.json")


def _link_out_through_a_folder(source: Path) -> None:
    (source / "more").symlink_to("..")
    (source / "extra.json").symlink_to("more/source/../secret.json")
    (source.parent / "secret.json").write_text("{}")


def _pickle(source: Path) -> None:
    (source / "model.safetensors").write_bytes(b"\x80\x02c__builtin__\neval\n(X\x01\x00\x00\x001tR.")


HOSTILE: list[tuple[Callable[[Path], object], str]] = [
    (_link_out, "leaves the source"),
    (_link_out_through_a_folder, "leaves the source"),
    (lambda source: (source / "extra.json").symlink_to("/etc/passwd"), "leaves the source"),
    (lambda source: (source / "extra.json").symlink_to("extra.json"), "leads nowhere"),
    (lambda source: (source / "extra.json").symlink_to("gone.json"), "leads nowhere"),
    (lambda source: (source / "all").symlink_to("."), "a link to a folder"),
    (lambda source: os.mkfifo(source / "extra.json"), "neither a file nor a folder"),
    (lambda source: (source / "-rf.json").write_text("{}"), "cannot be kept"),
    (lambda source: (source / "two\nlines.json").write_text("{}"), "cannot be kept"),
    (lambda source: (source / "what?.json").write_text("{}"), "cannot be kept"),
    (lambda source: (source / "turned\u202e.json").write_text("{}"), "cannot be kept"),
    (lambda source: [(source / f"{each}.json").write_text("{}") for each in ("\xe9", "e\u0301")], "case"),
    (lambda source: (source / ("x" * 240 + ".json")).write_text("{}"), "cannot be kept"),
    (
        lambda source: (
            (source / "Config.JSON.json").write_text("{}") and (source / "config.json.json").write_text("{}")
        ),
        "case",
    ),
    (_pickle, "pickle"),
    (lambda source: (source / "weights.bin").write_bytes(b"PK\x03\x04" + bytes(60)), "zip archive"),
    (lambda source: (source / "model.safetensors").write_bytes(b"{}"), "not whole"),
    (lambda source: (source / "model.safetensors").unlink(), "not whole"),
    (lambda source: (source / "config.json").unlink(), "config.json"),
    (lambda source: (source / "config.json").write_text('{"model_type": "novel"}'), "novel"),
]


@pytest.mark.parametrize(("spoil", "message"), HOSTILE)
def test_a_source_that_attacks_or_is_damaged_is_refused_and_leaves_nothing(store, tmp_path, spoil, message):
    source = stores.checkpoint(tmp_path / "source")
    spoil(source)
    with pytest.raises((UsageError, IntegrityError), match=message):
        store.add("toy", source)
    assert {name for name in tree(store.layout.root) if not name.startswith("locks/")} == {"format.json"}
    assert store.names() == []


def test_a_source_that_is_no_folder_is_refused(store, tmp_path):
    for source in (tmp_path / "missing", store.layout.marker):
        with pytest.raises(UsageError, match="no such folder"):
            store.add("toy", source)


def test_sub_folders_of_a_model_are_kept(store, tmp_path):
    source = stores.checkpoint(tmp_path / "source")
    (source / "1_Pooling/deep").mkdir(parents=True)
    (source / "1_Pooling/deep/config.json").write_text("{}")
    candidate = store.add("toy", source)
    assert (candidate.folder / "1_Pooling/deep/config.json").read_text() == "{}"
    invariants.check(store.layout.root)


def test_names_with_spaces_and_of_any_script_are_kept(store, tmp_path):
    source = stores.checkpoint(tmp_path / "source")
    names = ["read me (2).txt", "使用说明.txt", "Übersicht/größe 1.json", "[a] & b, c=d's.txt", "_.txt"]
    for name in names:
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text("{}")
    candidate = store.add("toy", source)
    assert set(names) <= set(candidate.manifest.files)
    assert all((candidate.folder / name).read_text() == "{}" for name in names)
    invariants.check(store.layout.root)


def test_the_registry_itself_is_no_source(store, tmp_path):
    stores.checkpoint(tmp_path)
    with pytest.raises(UsageError, match="the registry lies in this folder"):
        store.add("toy", tmp_path)


def test_a_channel_s_name_is_refused_before_anything_is_read(store, source, tmp_path):
    stores.add(store, "toy", tmp_path)
    stores.judge(store, "toy", policy := stores.write_policy(tmp_path / "floor.yaml"))
    from registry import judging, promotion

    promotion.promote(
        store, "toy", channel="best", policy=judging.read_policy(policy), override=True, reason="the first"
    )
    (source / "config.json").write_text("{}")
    with pytest.raises(UsageError, match="the name of a channel"):
        store.add("best", source)


def test_a_candidate_made_by_a_stage_is_not_taken_for_an_added_one(store, source, tmp_path):
    parent = stores.add(store, "toy", tmp_path)
    inputs = stores.pruned(parent)
    with store.step(inputs.identity()) as folder:
        store.commit("v7b", inputs, stores.checkpoint(folder / "model", seed=1))
    with pytest.raises(UsageError, match="made by prune"):
        store.add("v7b", source)
    assert store.add("v7b", source, replace=True).manifest.inputs.op == "add"
    invariants.check(store.layout.root)


# What is there is not written again


def test_a_second_version_costs_no_byte_for_the_shards_that_it_shares(store, source, tmp_path, calls):
    store.add("one", source)
    second = shutil.copytree(source, tmp_path / "second")
    config = (second / "config.json").read_bytes().replace(b"false", b"false ", 1)
    (second / "config.json").write_bytes(config)
    calls.clear()
    candidate = store.add("two", second)
    assert holds(candidate, tree(second))
    assert calls["bytes"] < weights(source) / 4, "records alone are written"
    shard = "model-00001-of-00004.safetensors"
    assert (candidate.folder / shard).samefile(store.layout.model("one") / shard)
    invariants.check(store.layout.root)


def test_a_shard_that_only_looks_like_one_that_is_there_is_taken_for_what_it_is(store, source, tmp_path):
    store.add("one", source)
    second = shutil.copytree(source, tmp_path / "second")
    shard = second / "model-00002-of-00004.safetensors"
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "alike", lambda *_: True)
        candidate = store.add("two", second)
    assert holds(candidate, tree(second))
    assert store.add("one", source)
    invariants.check(store.layout.root)


def test_a_damaged_blob_is_not_shared_but_replaced(store, source):
    first = store.add("one", source)
    shard = "model-00002-of-00004.safetensors"
    blob = store.layout.blob(first.manifest.files[shard].digest)
    _damage(blob)
    store.add("two", source)
    invariants.check(store.layout.root)


def test_damage_that_a_glance_at_the_blob_misses_is_found_by_verify_and_mended_by_adding_again(store, source):
    """A second version costs the hash of its own files; what it shares is not read again (docs/decisions/0015)."""
    first = store.add("one", source)
    _damage(store.layout.blob(first.manifest.files["model-00002-of-00004.safetensors"].digest))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "alike", lambda *_: True)
        store.add("two", source)
    assert verify(store, "two", full=True)
    store.add("one", source)
    assert not verify(store, "two", full=True)
    invariants.check(store.layout.root)


def test_adding_again_mends_a_blob_that_was_damaged_or_lost(store, source, capsys):
    first = store.add("toy", source)
    shards = sorted(name for name in first.manifest.files if name.endswith(".safetensors"))
    _damage(store.layout.blob(first.manifest.files[shards[0]].digest))
    store.layout.blob(first.manifest.files[shards[1]].digest).unlink()
    assert store.add("toy", source) == first
    assert "was damaged in the registry" in capsys.readouterr().err
    invariants.check(store.layout.root)


def _damage(blob: Path) -> None:
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(data)
    blob.chmod(0o444)


@given(
    one=st.binary(max_size=200),
    other=st.binary(max_size=200),
    chunk=st.integers(min_value=1, max_value=64),
    at=st.data(),
)
def test_two_files_are_the_same_only_if_their_bytes_are(tmp_path_factory, one, other, chunk, at):
    folder = tmp_path_factory.mktemp("same")
    if at.draw(st.booleans()):
        other = one
    (folder / "one").write_bytes(one)
    (folder / "other").write_bytes(other)
    told: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "CHUNK", chunk)
        found = bulk.hash_beside(folder / "one", folder / "other", told.append)
    assert found == (hashlib.sha256(one).hexdigest(), len(one), one == other)
    assert sum(told) == len(one)
    if len(one) == len(other):
        assert bulk.alike(folder / "one", folder / "other", len(one)) >= (one == other)


# Room


def test_a_disk_too_full_is_refused_before_the_first_byte_with_the_numbers(store, source, monkeypatch, calls):
    monkeypatch.setattr(taking, "MARGIN", 1 << 60)
    with pytest.raises(UsageError) as caught:
        store.add("toy", source)
    assert "are to be written" in str(caught.value)
    assert "registry gc" in str(caught.value)
    assert calls["bytes"] == 0
    assert store.names() == []


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_room_that_is_gone_while_it_is_set_aside_is_given_back(store, source, number):
    left = [3]

    def fail(name: str, arguments: tuple[Any, ...], call: Callable[..., Any]) -> Any:
        if name == "allocate":
            left[0] -= 1
            if not left[0]:
                raise OSError(number, os.strerror(number))
        return call(*arguments)

    with faults.around(fail), pytest.raises(UsageError, match="too full"):
        store.add("toy", source)
    assert not any(path.is_file() for path in store.layout.staging.rglob("*"))
    store.add("toy", source)
    invariants.check(store.layout.root)


# Going on after an end


def test_a_shard_that_is_done_is_not_read_again_after_a_kill(store, source, monkeypatch):
    filled: list[str] = []

    def die_at_third() -> None:
        fill = bulk.fill

        def counted(path: Path, target: Path, advance: bulk.Advance) -> tuple[str, int]:
            if path.suffix == ".safetensors":
                filled.append(path.name)
                if len(filled) == 3:
                    os.kill(os.getpid(), signal.SIGKILL)
            return fill(path, target, advance)

        bulk.fill = counted
        store.add("toy", source)

    assert end(start(die_at_third)) == KILLED
    fill = bulk.fill
    monkeypatch.setattr(bulk, "fill", lambda path, *rest: filled.append(path.name) or fill(path, *rest))
    candidate = store.add("toy", source)
    assert sum(name.endswith(".safetensors") for name in filled) == 2
    assert holds(candidate, tree(source))
    invariants.check(store.layout.root)


def test_a_shard_that_was_changed_since_is_read_again(store, source):
    def die_at_the_end() -> None:
        from registry import commits

        commits.commit = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
        store.add("toy", source)

    assert end(start(die_at_the_end)) == KILLED
    other = tiny.write_checkpoint(source.parent / "other", shards=4, seed=1)
    shard = "model-00003-of-00004.safetensors"
    shutil.copyfile(other / shard, source / shard)
    candidate = store.add("toy", source)
    assert holds(candidate, tree(source))
    invariants.check(store.layout.root)


@pytest.mark.parametrize("note", [b"", b"{", b"[]", b'{"source": 1}', b"\xff", b'{"digest":"x","size":-1}'])
def test_a_note_that_cannot_be_read_is_none(store, tmp_path, note):
    work = taking.Work(store, tmp_path / "step")
    (work.model).mkdir(parents=True)
    (work.model / "a.safetensors").write_bytes(b"1234")
    work.note("a.safetensors", stores.file(b"1234"), "source")
    assert work.done("a.safetensors", "source") == stores.file(b"1234")
    assert work.done("a.safetensors", "another") is None
    (path,) = (work.folder / "notes").iterdir()
    path.unlink()
    path.write_bytes(note)
    assert work.done("a.safetensors", "source") is None


def test_a_source_that_changes_while_it_is_read_is_refused(store, source):
    shard = source / "model-00002-of-00004.safetensors"

    def change(name: str, arguments: tuple[Any, ...], call: Callable[..., Any]) -> Any:
        if name == "write":
            with shard.open("ab") as file:
                file.write(b"x")
        return call(*arguments)

    with faults.around(change), pytest.raises(UsageError, match="changed while it was read"):
        store.add("toy", source)
    assert store.names() == []
    invariants.check(store.layout.root)


def test_when_one_file_fails_the_others_stop_and_the_first_error_is_told():
    done: list[str] = []

    def work(name: str, advance: bulk.Advance) -> None:
        if name == "bad":
            raise OSError(errno.EIO, "the disk is broken")
        for _ in range(1000):
            advance(1)
        done.append(name)

    sizes = {"bad": 1 << 40} | {f"good-{number}": 1 << 30 for number in range(40)}
    with pytest.raises(OSError, match="the disk is broken"):
        parallel.each_file("test", sizes, work)
    assert len(done) < 40
    assert parallel.each_file("test", {"a": 1 << 30, "b": 2}, lambda name, _: name.upper()) == {"a": "A", "b": "B"}


# Moving


def test_moving_on_one_file_system_writes_no_weights_and_empties_the_source(store, source, calls):
    before = tree(source)
    inodes = {path.name: path.stat().st_ino for path in source.glob("*.safetensors")}
    candidate = store.add("toy", source, move=True)
    assert holds(candidate, before)
    assert {name: (candidate.folder / name).stat().st_ino for name in inodes} == inodes
    assert calls["bytes"] < weights(candidate.folder) / 4, "records alone are written"
    assert not source.exists()
    invariants.check(store.layout.root)


def test_a_move_leaves_what_is_no_part_of_the_model(store, source):
    (source / "README.md").write_text("keep me")
    store.add("toy", source, move=True)
    assert tree(source) == {"README.md": b"keep me"}


def test_a_file_with_another_name_is_copied_rather_than_moved(store, source, tmp_path):
    shard = "model-00001-of-00004.safetensors"
    other = tmp_path / "backup.safetensors"
    os.link(source / shard, other)
    before = other.read_bytes()
    candidate = store.add("toy", source, move=True)
    assert not source.exists()
    assert not other.samefile(candidate.folder / shard)
    other.write_bytes(b"spoilt")
    assert (candidate.folder / shard).read_bytes() == before


def test_a_move_between_file_systems_copies_and_then_removes(source, memory_path):
    store = Store.init(memory_path / "models")
    before = tree(source)
    if source.stat().st_dev == memory_path.stat().st_dev:
        pytest.fail("there is one file system only, so this shows nothing")
    candidate = store.add("toy", source, move=True)
    assert holds(candidate, before)
    assert not source.exists()
    invariants.check(store.layout.root)


def test_a_move_of_what_is_there_already_removes_the_source_only_if_the_registry_s_copy_is_sound(store, source):
    first = store.add("toy", source)
    shard = "model-00001-of-00004.safetensors"
    _damage(store.layout.blob(first.manifest.files[shard].digest))
    before = tree(source)
    assert store.add("toy", source, move=True) == first
    assert not source.exists()
    assert holds(first, before)
    invariants.check(store.layout.root)


def test_a_move_that_fails_anywhere_loses_nothing_and_goes_on(memory_path):
    """Each change fails once, with an error that the disk can have."""
    pristine = stores.checkpoint(memory_path / "pristine", bare=True)
    before = tree(pristine)
    for number in range(1, 1000):
        root, folder = memory_path / "models", shutil.copytree(pristine, memory_path / "source")
        store = Store.init(root)
        failing = faults.Failing(number, errno.EIO, for_good=False)
        try:
            with faults.around(failing):
                store.add("toy", folder, move=True)
            failed = False
        except (OSError, SluiceError):
            failed = True
        invariants.check(root)
        if store.names():
            assert holds(store.candidate("toy"), before)
        else:
            assert tree(folder) == before
        if folder.exists() and tree(folder).keys() == before.keys():
            store.add("toy", folder, move=True)
            assert not folder.exists()
        assert holds(store.candidate("toy"), before)
        invariants.check(root)
        shutil.rmtree(root)
        shutil.rmtree(folder, ignore_errors=True)
        if not failed and not failing.failed:
            assert number > 30, "hardly anything failed"
            return
    pytest.fail("the move never came to its end")


def test_a_move_killed_anywhere_loses_nothing(memory_path):
    pristine = stores.checkpoint(memory_path / "pristine", bare=True)
    before = tree(pristine)
    for number in range(1, 1000):
        root, folder = memory_path / "models", shutil.copytree(pristine, memory_path / "source")
        store = Store.init(root)
        status = end(start(dying_at(number, lambda store=store, folder=folder: store.add("toy", folder, move=True))))
        invariants.check(root)
        if store.names():
            assert holds(store.candidate("toy"), before)
        else:
            assert tree(folder) == before
            store.add("toy", folder, move=True)
            assert holds(store.candidate("toy"), before)
        invariants.check(root)
        shutil.rmtree(root)
        shutil.rmtree(folder, ignore_errors=True)
        if status == 0:
            assert number > 30, "hardly anything was killed"
            return
        assert status == KILLED
    pytest.fail("the move never came to its end")


@pytest.mark.parametrize("spoil", ["link", "registry"])
def test_what_cannot_be_moved_safely_is_refused(store, source, spoil):
    if spoil == "link":
        (source / "extra.json").symlink_to("config.json")
        with pytest.raises(UsageError, match="links cannot be moved"):
            store.add("toy", source, move=True)
        return
    inside = shutil.copytree(source, store.layout.staging / ("0" * 64))
    with pytest.raises(UsageError, match="the registry's own"):
        store.add("toy", inside, move=True)


# The Hub's cache


@pytest.fixture
def snapshot(source, tmp_path) -> Path:
    """What huggingface_hub leaves in its cache of a download."""
    repository = tmp_path / "hub/models--org--model"
    folder = repository / "snapshots" / ("c" * 40)
    folder.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for path in source.iterdir():
        data = path.read_bytes()
        large = path.suffix == ".safetensors"
        name = hashlib.sha256(data).hexdigest() if large else hashlib.sha1(data).hexdigest()  # noqa: S324 - as git
        (repository / "blobs" / name).write_bytes(data)
        (folder / path.name).symlink_to(f"../../blobs/{name}")
    return folder


def test_a_snapshot_of_the_hub_s_cache_is_taken_with_its_origin(store, source, snapshot):
    candidate = store.add("toy", snapshot)
    assert holds(candidate, tree(source))
    settings = candidate.manifest.inputs.settings
    assert (settings["source"], settings["revision"]) == ("hf://org/model", "c" * 40)
    assert store.add("toy", source) == candidate, "the same files are the same model, wherever they come from"


def test_a_cached_file_that_is_not_what_its_name_says_is_found(store, snapshot):
    blob = (snapshot / "model-00001-of-00004.safetensors").resolve()
    _damage(blob)
    with pytest.raises(IntegrityError, match="the cached file is damaged"):
        store.add("toy", snapshot)
    assert store.names() == []
    assert not list(store.layout.staging.iterdir())


def test_a_blob_that_repositories_share_is_taken(store, source, snapshot):
    link = snapshot / "model-00001-of-00004.safetensors"
    blob = snapshot / link.readlink()
    shared = snapshot.parents[2] / "blobs/ab" / ("a" * 64)
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(os.path.relpath(shared, blob.parent.resolve()))
    assert holds(store.add("toy", snapshot), tree(source))


@pytest.mark.parametrize("target", ["../../../secret.json", "../../refs/secret.json", "../../blobs/deep/secret.json"])
def test_a_snapshot_s_links_to_elsewhere_are_refused(store, snapshot, target):
    secret = Path(os.path.normpath(snapshot / target))
    secret.parent.mkdir(exist_ok=True)
    secret.write_text("{}")
    (snapshot / "extra.json").symlink_to(target)
    with pytest.raises(UsageError, match="leaves the source"):
        store.add("toy", snapshot)


def test_a_cached_blob_that_leads_elsewhere_is_refused(store, snapshot, tmp_path):
    (tmp_path / "secret.json").write_text("{}")
    (snapshot.parents[1] / "blobs/extra").symlink_to(tmp_path / "secret.json")
    (snapshot / "extra.json").symlink_to("../../blobs/extra")
    with pytest.raises(UsageError, match="leaves the source"):
        store.add("toy", snapshot)


def test_links_out_of_a_folder_that_is_no_snapshot_are_refused(snapshot):
    elsewhere = snapshot.rename(snapshot.with_name("main"))
    with pytest.raises(UsageError, match="leaves the source"):
        sources.folder(elsewhere)


def test_a_part_of_the_source_that_cannot_be_read_is_refused_rather_than_left_out(memory_path):
    source = tiny.write_checkpoint(memory_path / "source")
    closed = source / "closed"
    closed.mkdir()
    (closed / "tokenizer.json").write_text("{}")
    closed.chmod(0)

    def look() -> None:
        with pytest.raises(PermissionError) as refused:
            sources.folder(source)
        assert refused.value.filename == str(closed)

    assert users.ordinary(look, owns=source) == 0
    closed.chmod(0o755)


def test_a_move_whose_source_cannot_be_removed_says_that_the_model_is_there(store, source):
    def refuse(name: str, arguments: tuple[Any, ...], call: Callable[..., Any]) -> Any:
        if name == "unlink" and Path(arguments[0]).is_relative_to(source):
            raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(arguments[0]))
        return call(*arguments)

    before = tree(source)
    with (
        faults.around(refuse),
        pytest.raises(UsageError, match="the model is in the registry, but its source cannot be removed"),
    ):
        store.add("toy", source, move=True)
    assert holds(store.candidate("toy"), before)
    assert tree(source) == before
    store.add("toy", source, move=True)
    assert not source.exists()


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_move_never_trades_a_sound_file_for_a_blob_that_has_rotted(store, source, tmp_path, interrupted):
    """Though it was begun without --move, and the blob was taken on trust then."""
    first = store.add("one", source)
    _damage(store.layout.blob(first.manifest.files["model-00002-of-00004.safetensors"].digest))
    other = Path(shutil.copytree(source, tmp_path / "other"))
    (other / "chat_template.jinja").write_text("another")
    before = tree(other)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "alike", lambda *_: True)  # the damage lies where a glance misses it
        if interrupted:
            patch.setattr(adding, "_commit", _fail)
            with pytest.raises(KeyboardInterrupt):
                store.add("two", other)
            patch.undo()
            patch.setattr(bulk, "alike", lambda *_: True)
        store.add("two", other, move=True)
    assert not other.exists()
    assert holds(store.candidate("two"), before)
    assert not verify(store, "two", full=True)


def _fail(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_move_takes_files_of_the_same_bytes_along(store, source):
    (source / "one.json").write_text("{}")
    (source / "other.json").write_text("{}")
    before = tree(source)
    assert holds(store.add("toy", source, move=True), before)
    assert not source.exists()


def test_a_file_that_somebody_writes_is_not_moved(store, source):
    """They could write to the blob, long after it was hashed."""
    before = tree(source)
    with (source / "config.json").open("r+b"), pytest.raises(UsageError, match="open for writing"):
        store.add("toy", source, move=True)
    with (source / "config.json").open("rb"):
        store.add("toy", source, move=True)
    assert holds(store.candidate("toy"), before)


def test_a_file_that_somebody_begins_to_write_while_it_is_moved_is_refused(store, source):
    begun = []

    def begin(name: str, arguments: tuple[Any, ...], call: Callable[..., Any]) -> Any:
        result = call(*arguments)
        if name == "link" and not begun and Path(arguments[0]).parent == source:
            begun.append(Path(arguments[0]).open("r+b"))  # noqa: SIM115
        return result

    with faults.around(begin), pytest.raises(UsageError, match="changed while it was read"):
        store.add("toy", source, move=True)
    begun[0].close()
    store.add("toy", source, move=True)
    assert not source.exists()


def test_a_candidate_that_is_removed_while_it_is_replaced_is_made_all_the_same(store, source, tmp_path):
    """As where locks do not lock: the name is taken when it is asked for, and free a moment later."""
    stores.add(store, "toy", tmp_path)

    def steal(name: str, arguments: tuple[Any, ...], call: Callable[..., Any]) -> Any:
        if name == "exchange":
            syscalls.around = None
            shutil.rmtree(store.layout.candidate("toy"))
        return call(*arguments)

    with faults.around(steal):
        made = store.add("toy", source, replace=True)
    assert holds(made, tree(source))
    invariants.check(store.layout.root)
