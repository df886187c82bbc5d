"""Names, files and folders that somebody planted: every command ends, with an error of ours or as if nothing were."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from registry.cli import app
from registry.store import Store
from tests.faults import looking, scenarios
from tests.faults.scenarios import Scenario
from tests.support import faults, stores

PLANTED: dict[str, Callable[[Path], object]] = {
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a link out": lambda path: path.symlink_to("/etc/passwd"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "an empty file": Path.touch,
    "deep JSON": lambda path: path.write_bytes(b"[" * 100_000),
    "huge numbers": lambda path: path.write_bytes(b'{"seq":' + b"9" * 10_000 + b"}"),
    "a pickle": lambda path: path.write_bytes(b"\x80\x04c__builtin__\neval\n."),
}

COMMANDS = [
    ["ls"],
    ["log"],
    ["log", "--verify"],
    ["verify", "--all"],
    ["path", "best"],
    ["show", "good"],
    ["df"],
    ["doctor"],
]
COMMANDS += [["promote", "fine"], ["gc"], ["rollback"], ["rm", "bad"]]
QUICKLY = [["log", "--verify"], ["verify", "--all"], ["path", "best"], ["promote", "fine"]]

NAMES = [
    "-rf",
    "..x",
    "00000009.json",
    "NaN.json",
    "a b",
    "new\nline",
    "é",
    "x" * 255,
    ".tmp-0123456789abcdef",
    ".hidden",
]

FOLDERS = ["log", "generations/best", "generations", "channels", "candidates", "manifests", "blobs/sha256", "staging"]
FOLDERS += ["evidence", "verdicts", "locks", "trash", "."]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("attacks")
    scenarios.twice_promoted(folder / "models")
    return folder / "models"


@pytest.mark.parametrize("what", PLANTED)
@pytest.mark.parametrize("place", ["format.json", "log", "generations/best", "manifests", "verdicts", "blobs/sha256"])
def test_whatever_stands_in_the_place_of_a_record_is_an_error_and_keeps_nobody_waiting(
    made, memory_path, thorough, place, what
):
    root = memory_path / "models"
    records = sorted(path for path in [made / place, *(made / place).rglob("*")] if path.is_file())
    for record in records if thorough else records[-1:]:
        shutil.copytree(made, root, symlinks=True)
        path = root / record.relative_to(made)
        path.unlink()
        PLANTED[what](path)
        codes = [_run(command, root) for command in (COMMANDS if thorough else QUICKLY)]
        assert any(codes), "nothing said anything"
        faults.count_fault()
        shutil.rmtree(root)


@pytest.mark.parametrize("what", ["a pipe", "a folder", "a link out", "an empty file"])
def test_what_somebody_planted_beside_the_records_changes_nothing_that_is_there(made, memory_path, thorough, what):
    root = memory_path / "models"
    before = looking.state(made, NOTHING)
    everywhere = itertools.product(NAMES, FOLDERS) if thorough else zip(NAMES, FOLDERS, strict=False)
    for name, folder in everywhere:
        if os.path.lexists(made / folder / name):
            continue  # a name that is taken is for the test above
        shutil.copytree(made, root, symlinks=True)
        path = root / folder / name
        PLANTED[what](path)
        for command in COMMANDS[:8] if thorough else COMMANDS[:4:3]:
            _run(command, root)
        faults.count_fault()
        if path.is_symlink() or path.is_dir():
            path.unlink() if path.is_symlink() else path.rmdir()
        else:
            path.unlink(missing_ok=True)
        assert looking.state(root, NOTHING) == before
        shutil.rmtree(root)


def test_a_registry_s_files_are_never_written_through_a_link_that_was_planted(made, memory_path):
    """A blob, a record or a lock that is a link out of the registry: what it leads to stays as it is."""
    root, outside = memory_path / "models", memory_path / "outside"
    shutil.copytree(made, root, symlinks=True)
    outside.write_text("somebody's")
    store = Store.open(root)
    for path in (store.layout.blob(stores.canonical.digest(b"rows")), store.layout.lock("candidate-fine")):
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(outside)
    store.put(b"rows")
    _run(["promote", "good"], root)
    assert outside.read_text() == "somebody's"
    faults.count_fault()


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../good", "/etc", "a/b", "-rf", "good\0", "good\n", "GOOD", "x" * 65, "x" * 300, "é"]
)
@pytest.mark.parametrize("command", ["path", "rm", "promote", "verify", "show", "lineage"])
def test_a_name_that_attacks_is_refused_by_every_command(made, memory_path, command, name):
    root = memory_path / "models"
    shutil.copytree(made, root, symlinks=True)
    before = looking.state(root, NOTHING)
    assert _run([command, "--", name], root) == 2
    assert looking.state(root, NOTHING) == before
    faults.count_fault()


NOTHING = Scenario("nothing", lambda _: None, lambda _: None)


def _run(words: list[str], root: Path) -> int:
    """The exit code; a command that waits for a pipe, or ends with an error that is none of ours, fails the test."""
    command, *arguments = words
    with _within(20):
        result = CliRunner().invoke(app, [command, "--root", str(root), *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), (words, result.exception)
    assert result.exit_code in (0, 2, 5, 6), (words, result.stderr)
    return result.exit_code


@contextmanager
def _within(seconds: int) -> Iterator[None]:
    def late(*_: object) -> None:
        pytest.fail("still not done")  # an exception that no code of ours catches

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
