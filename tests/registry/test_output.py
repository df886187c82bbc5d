"""What people and programs see of a command: an error with a code whatever is damaged, and never a traceback."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gates.errors import UsageError
from registry import output
from registry.store import Store
from tests.support import stores


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    store = Store.init(folder / "models")
    stores.add(store, "toy", folder)
    policy = stores.write_policy(folder / "floor.yaml")
    stores.judge(store, "toy", policy)
    _ends(0, folder / "models", "promote", "toy", "--policy", str(policy), "--reason", "größer")
    return folder / "models"


def _ends(code: int, root: Path, *words: str, before: str = "", **environment: str) -> tuple[str, str]:
    """What a command printed to stdout and stderr, after the shell did `before` to its streams."""
    command = [sys.executable, "-m", "registry", *words, "--root", str(root)]
    shell = ["sh", "-c", f'exec "$@" {before}', "sh", *command]
    done = subprocess.run(shell, capture_output=True, env=os.environ | environment, check=False)
    said = done.stderr.decode()
    assert done.returncode == code, said
    assert "Traceback" not in said
    return done.stdout.decode("ascii" if environment else "utf-8"), said


def test_a_terminal_that_lacks_a_letter_is_no_error(root: Path):
    assert "? best" in _ends(0, root, "ls", PYTHONIOENCODING="ascii")[0]
    entries = json.loads(_ends(0, root, "log", "--json", PYTHONIOENCODING="ascii")[0])
    assert entries[-1]["reason"] == "größer"


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_a_command_that_nobody_listens_to_ends_as_ever(root: Path, closed: str):
    _ends(0, root, "ls", before=closed)
    _ends(2, root, "show", "nobody", before=closed)


@pytest.mark.parametrize("streams", [("stdout",), ("stderr",), ("stdout", "stderr")])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_who_leaves_changes_no_exit_code(
    root: Path, tmp_path: Path, streams: tuple[str, ...], unbuffered: str
):
    """`registry gate v2 | head -1`, with pipefail, is a failed gate."""
    policy = tmp_path / "all.yaml"
    rule = "{floor: {pack: toolcall, at_least: 100}}"
    policy.write_text(f"name: all\ngates:\n  - {{name: Toolcall, rules: [{rule}]}}\n")
    commands = {1: ["gate", "toy", "--policy", str(policy)], 2: ["show", "nobody"], 0: ["log"]}
    for code, words in commands.items():
        reader, writer = os.pipe()
        os.close(reader)
        kept = dict.fromkeys(("stdout", "stderr"), subprocess.PIPE) | dict.fromkeys(streams, writer)
        command = [sys.executable, "-m", "registry", *words, "--root", str(root)]
        done = subprocess.run(command, env=os.environ | {"PYTHONUNBUFFERED": unbuffered}, check=False, **kept)
        os.close(writer)
        assert done.returncode == code, (words, done.stderr)
        assert b"BrokenPipe" not in (done.stderr or b"")


@pytest.mark.parametrize("damage", ["missing", "a loop", "a file"])
def test_a_candidate_without_its_folder_is_not_handed_to_a_loader(root: Path, tmp_path: Path, damage: str):
    copy = _copied(root, tmp_path)
    model = copy / "candidates" / "toy" / "model"
    model.rename(tmp_path / "away")
    if damage == "a loop":
        model.symlink_to("model")
    elif damage == "a file":
        model.write_text("x")
    for words in (["path", "best"], ["show", "toy"]):
        shown, said = _ends(5, copy, *words)
        assert shown == ""
        assert "no model folder" in said
    assert "toy/model" in _ends(5, copy, "verify", "best", "--fast")[0]


@pytest.mark.parametrize("damage", ["channels/best", "generations/best/00000001.json"])
def test_a_folder_in_a_channel_s_place_keeps_nobody_from_the_candidates(root: Path, tmp_path: Path, damage: str):
    copy = _copied(root, tmp_path)
    (copy / damage).unlink()
    (copy / damage).mkdir()
    shown, said = _ends(0, copy, "path", "toy")
    assert shown.strip().endswith("candidates/toy/model")
    assert "the channel best" in said


@pytest.mark.parametrize("damage", ["changed", "missing"])
def test_a_generation_that_is_not_the_one_that_was_logged_is_found(root: Path, tmp_path: Path, damage: str):
    _ends(0, root, "log", "--verify")
    generation = _copied(root, tmp_path) / "generations" / "best" / "00000001.json"
    data = generation.read_bytes()
    generation.unlink()
    if damage == "changed":
        generation.write_bytes(data.replace(b'"override":false', b'"override":true'))
    assert str(generation) in _ends(5, tmp_path / "models", "log", "--verify")[1]


def test_what_a_folder_lacks_is_said_of_that_folder(root: Path, tmp_path: Path):
    source = stores.checkpoint(tmp_path / "source")
    (source / "config.json").write_text("[]")
    assert str(source / "config.json") in _ends(5, root, "add", "other", str(source))[1]


def _copied(root: Path, folder: Path) -> Path:
    subprocess.run(["cp", "-a", str(root), str(folder / "models")], check=True)
    return folder / "models"


def test_a_file_s_name_does_not_steer_the_terminal(tmp_path: Path):
    Store.init(tmp_path / "models")
    source = stores.checkpoint(tmp_path / "source")
    (source / "\x1b[31mred.bin").write_text("no part of the model")
    said = _ends(0, tmp_path / "models", "add", "toy", str(source))[1]
    assert "\\x1b[31mred.bin" in said
    assert "\x1b" not in said


@pytest.mark.parametrize("command", [["show", "toy"], ["lineage"], ["ls"], ["show", "toy", "--json"]])
def test_a_channel_that_is_damaged_keeps_nobody_from_looking_at_candidates(root: Path, tmp_path: Path, command):
    copy = Path(shutil.copytree(root, tmp_path / "models", symlinks=True))
    generation = copy / "generations" / "best" / "00000001.json"
    generation.chmod(0o644)
    generation.write_text("{}")
    printed, said = _ends(0, copy, *command)
    assert "toy" in printed
    assert "the channel best is damaged" in said
    assert "to do: restore it from a backup" in said


@pytest.fixture
def contained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_ROOT", "/models")
    monkeypatch.setenv("SLUICE_MODELS", "/home/anna/big $1")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("where: /models/candidates/a", "where: /home/anna/big $1/candidates/a"),
        ('{"where": "/work/recipes/a.yaml"}', '{"where": "./recipes/a.yaml"}'),
        ("looked in /models, and in /work.", "looked in /home/anna/big $1, and in .."),
        ("(/models) '/work'", "(/home/anna/big $1) '.'"),
        *(
            (text, text)
            for text in ("http://host/models/a", "GET /v1/models", "/workers /models.old /models-2 ~/work/a")
        ),
        *((text, text) for text in ("/run/verifier/verifier.sock", "../work/a", "a/work/b", "no folder")),
    ],
)
@pytest.mark.usefixtures("contained")
def test_what_a_container_says_of_folders_is_told_as_they_are_called_outside(capsys, line: str, told: str):
    output.hint(line)
    assert capsys.readouterr().err == f"{told}\n"


@pytest.mark.usefixtures("contained")
def test_a_container_that_was_told_of_a_file_that_it_cannot_see_says_so(capsys):
    told = {}
    for where in ("/home/anna/r.yaml", "../r.yaml, name", "/work/r.yaml", "/models/x", "/usr", "hf://a/b", "r.yaml"):
        error = UsageError("there is no such file", where=where)

        def fail(error: UsageError = error) -> None:
            raise error

        assert output.end_with(fail) == 2
        told[where] = "sees only the project's folder" in capsys.readouterr().err
    assert [where for where, noted in told.items() if noted] == ["/home/anna/r.yaml", "../r.yaml, name"]
