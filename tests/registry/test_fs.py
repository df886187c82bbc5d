"""Files, links and folders change in one step, durably, or not at all."""

from __future__ import annotations

import ast
import errno
import hashlib
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry import bulk, fs, syscalls
from tests.support.processes import KILLED, dying_at, end, start, together

TRUTH = b"the same bytes each time"


def test_a_file_that_is_there_is_never_written_again(tmp_path):
    fs.write_new(tmp_path / "record", b"first")
    with pytest.raises(FileExistsError):
        fs.write_new(tmp_path / "record", b"second")
    assert (tmp_path / "record").read_bytes() == b"first"
    assert _names(tmp_path) == ["record"]


def test_of_many_writers_at_once_exactly_one_makes_the_file(tmp_path):
    def write(number: int) -> None:
        try:
            fs.write_new(tmp_path / "record", b"%d" % number * 5000)
        except FileExistsError:
            os._exit(3)

    ends = together([lambda number=number: write(number) for number in range(8)])
    assert sorted(ends) == [0] + [3] * 7
    assert (tmp_path / "record").read_bytes() == b"%d" % ends.index(0) * 5000


def test_content_that_is_there_is_found_and_damage_is_mended(tmp_path):
    assert fs.write_content(tmp_path / "blob", TRUTH)
    assert not fs.write_content(tmp_path / "blob", TRUTH)
    (tmp_path / "blob").chmod(0o644)
    (tmp_path / "blob").write_bytes(b"flipped")
    assert not fs.write_content(tmp_path / "blob", TRUTH)
    assert (tmp_path / "blob").read_bytes() == TRUTH


@pytest.mark.parametrize("killed_at", range(1, 12))
def test_a_writer_killed_anywhere_leaves_all_of_a_file_or_none_of_it(tmp_path, killed_at):
    status = end(start(dying_at(killed_at, lambda: fs.write_new(tmp_path / "record", TRUTH))))
    assert status in (0, KILLED)
    assert fs.entries(tmp_path) in ([], ["record"])
    if fs.entries(tmp_path):
        assert (tmp_path / "record").read_bytes() == TRUTH
    assert fs.write_content(tmp_path / "record", TRUTH) == (status == KILLED and killed_at <= 4)
    leftovers = [name for name in _names(tmp_path) if name != "record"]
    assert all(name.startswith(fs.TEMPORARY) for name in leftovers)


def test_readers_in_the_middle_of_2000_swaps_never_miss(tmp_path):
    for target in ("one", "two"):
        (tmp_path / target).mkdir()
        (tmp_path / target / "config.json").write_text(target)
    link = tmp_path / "best"
    fs.replace_link(link, "one")

    def read() -> None:
        seen = set()
        while not (tmp_path / "done").exists():
            seen.add((link / "config.json").read_text())
        assert seen == {"one", "two"}

    readers = [start(read) for _ in range(2)]
    for number in range(2000):
        fs.replace_link(link, ("two", "one")[number % 2])
    (tmp_path / "done").touch()
    assert [end(reader) for reader in readers] == [0, 0]


def _two_folders(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("mine", "theirs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "file").write_text(name)
    return tmp_path / "mine", tmp_path / "theirs"


def test_folders_are_exchanged_while_a_reader_never_misses(tmp_path):
    mine, theirs = _two_folders(tmp_path)

    def read() -> None:
        while not (tmp_path / "done").exists():
            assert (theirs / "file").read_text() in ("mine", "theirs")

    reader = start(read)
    for _ in range(501):
        fs.exchange(mine, theirs)
    (tmp_path / "done").touch()
    assert end(reader) == 0
    assert (theirs / "file").read_text() == "mine"
    assert (mine / "file").read_text() == "theirs"


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EINVAL, errno.ENOTSUP])
def test_folders_are_exchanged_where_the_system_has_no_call_for_it(tmp_path, monkeypatch, number):
    def refuse(*_: Path) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(syscalls, "exchange", refuse)
    mine, theirs = _two_folders(tmp_path)
    fs.exchange(mine, theirs)
    assert (theirs / "file").read_text() == "mine"
    assert (mine / "file").read_text() == "theirs"
    assert _names(tmp_path) == ["mine", "theirs"]


def test_an_exchange_that_fails_changes_nothing(tmp_path):
    mine, _ = _two_folders(tmp_path)
    with pytest.raises(FileNotFoundError):
        fs.exchange(mine, tmp_path / "missing")
    assert (mine / "file").read_text() == "mine"


def test_a_folder_never_takes_the_name_of_another_that_holds_something(tmp_path):
    mine, theirs = _two_folders(tmp_path)
    with pytest.raises(FileExistsError):
        fs.rename_folder(mine, theirs)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        fs.rename_folder(mine, tmp_path / "file")
    assert (theirs / "file").read_text() == "theirs"


def test_a_file_becomes_a_blob_without_being_copied(tmp_path):
    (tmp_path / "shard").write_bytes(TRUTH)
    assert fs.link_in(tmp_path / "shard", tmp_path / "blob", hashlib.sha256(TRUTH).hexdigest())
    assert (tmp_path / "shard").samefile(tmp_path / "blob")
    assert (tmp_path / "blob").stat().st_mode & 0o777 == 0o444
    assert not fs.link_in(tmp_path / "shard", tmp_path / "blob", hashlib.sha256(TRUTH).hexdigest())


def test_a_blob_that_is_whole_stays_and_one_that_is_damaged_is_replaced(tmp_path):
    digest, blob, shard = hashlib.sha256(TRUTH).hexdigest(), tmp_path / "blob", tmp_path / "shard"
    blob.write_bytes(TRUTH)
    before = blob.stat().st_ino
    shard.write_bytes(TRUTH)
    assert not fs.link_in(shard, blob, digest)
    assert blob.stat().st_ino == before
    blob.write_bytes(TRUTH[:-1] + b"?")
    assert fs.link_in(shard, blob, digest)
    assert blob.read_bytes() == TRUTH


def test_removing_a_tree_takes_read_only_files_and_spares_what_links_lead_to(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").write_text("kept")
    (tmp_path / "doomed/below").mkdir(parents=True)
    (tmp_path / "doomed/below/file").write_text("")
    (tmp_path / "doomed/below/file").chmod(0o444)
    (tmp_path / "doomed/link").symlink_to("../kept")
    (tmp_path / "doomed/below/dangling").symlink_to("nowhere")
    fs.remove_tree(tmp_path / "doomed")
    fs.remove_tree(tmp_path / "doomed")
    assert _names(tmp_path) == ["kept"]
    assert (tmp_path / "kept/file").read_text() == "kept"


@given(data=st.binary(max_size=40), chunk=st.integers(min_value=1, max_value=50))
def test_a_copy_has_the_bytes_and_the_digest_of_its_source(tmp_path_factory, data, chunk):
    folder = tmp_path_factory.mktemp("copy")
    (folder / "source").write_bytes(data)
    told: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bulk, "CHUNK", chunk)
        copied = bulk.copy_in(folder / "source", folder / "target", told.append)
        assert bulk.hash_file(folder / "target") == copied
    assert copied == (hashlib.sha256(data).hexdigest(), len(data))
    assert (folder / "target").read_bytes() == data
    assert sum(told) == len(data)


def test_a_copy_never_overwrites(tmp_path):
    (tmp_path / "source").write_bytes(b"new")
    (tmp_path / "target").write_bytes(b"old")
    with pytest.raises(FileExistsError):
        bulk.copy_in(tmp_path / "source", tmp_path / "target", lambda _: None)
    assert (tmp_path / "target").read_bytes() == b"old"


def test_unfinished_and_hidden_names_are_no_entries(tmp_path):
    for name in (".gitignore", fs.beside(tmp_path / "x").name, "b", "a"):
        (tmp_path / name).touch()
    assert fs.entries(tmp_path) == ["a", "b"]
    assert fs.entries(tmp_path / "missing") == []


@pytest.mark.parametrize("module", ["adding", "channels", "commits", "log", "marker", "promotion", "store"])
def test_only_fs_changes_anything_below_the_root(project, module):
    changing = {"chmod", "fsync", "hardlink_to", "link", "mkdir", "makedirs", "mkstemp", "open", "removedirs", "rename"}
    changing |= {"rmdir", "rmtree", "symlink", "symlink_to", "touch", "unlink", "write_bytes", "write_text"}
    tree = ast.parse((project / "registry" / f"{module}.py").read_text())
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    outside = [
        f"line {call.lineno}: {ast.unparse(call)}"
        for call in calls
        if isinstance(call, ast.Attribute) and call.attr in changing and ast.unparse(call.value) not in ("fs", "cls")
    ]
    assert outside == []


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
