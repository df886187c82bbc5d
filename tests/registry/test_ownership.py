"""Whose the files are: said in .env where containers start, and in the refusal where nothing can be written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from registry import ownership
from registry.store import Store

OWNER = os.getuid() or 1234
"""An ordinary user: whoever runs the tests, or, if that is root, somebody else."""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a compose.yaml and a registry in models/ that belongs to an ordinary user."""
    monkeypatch.delenv("SLUICE_MODELS", raising=False)
    (tmp_path / "compose.yaml").touch()
    Store.init(tmp_path / "models")
    os.chown(tmp_path / "models", OWNER, OWNER if os.getuid() == 0 else -1)
    return tmp_path


def note(project: Path, root: str = "models") -> str | None:
    return ownership.note_for_containers(project, project / root)


def test_the_owner_of_the_folder_is_written_once_and_what_stands_there_stays(project: Path) -> None:
    (project / ".env").write_text("SLUICE_PORT=9000")
    assert "SLUICE_UID" in (note(project) or "")
    group = (project / "models").stat().st_gid
    expected = f"SLUICE_PORT=9000\nSLUICE_UID={OWNER}\nSLUICE_GID={group}\n"
    assert (project / ".env").read_text() == expected
    assert note(project) is None
    assert (project / ".env").read_text() == expected


@pytest.mark.parametrize("line", ["SLUICE_UID=7", "SLUICE_GID=7"])
def test_an_owner_that_somebody_chose_stays(project: Path, line: str) -> None:
    (project / ".env").write_text(line + "\n")
    assert note(project) is None
    assert (project / ".env").read_text() == line + "\n"


def test_nothing_is_written_for_a_registry_that_compose_would_not_mount(project: Path) -> None:
    Store.init(project / "other")
    assert note(project, "other") is None
    assert not (project / ".env").exists()
    (project / ".env").write_text("# mine\nSLUICE_MODELS='./other'\n")
    assert note(project) is None
    assert "SLUICE_UID" not in (project / ".env").read_text()


def test_nothing_is_written_where_there_is_no_compose_file(project: Path) -> None:
    (project / "compose.yaml").unlink()
    assert note(project) is None
    assert not (project / ".env").exists()


@pytest.mark.parametrize(
    ("owner", "contained", "words"),
    [
        ((0, 0), True, ["(root)", "user 1234", "/models/blobs", "sudo chown -R $(id -u):$(id -g) /models"]),
        ((0, 0), False, ["sudo chown -R $(id -u):$(id -g) /models"]),
        ((7, 8), True, ["SLUICE_UID=7 and SLUICE_GID=8 into .env"]),
        ((7, 8), False, ["run this as its owner", "sudo chown -R $(id -u):$(id -g) /models"]),
        ((1234, 8), True, ["chmod u+rwX /models/blobs"]),
    ],
)
def test_the_refusal_says_whose_it_is_and_what_mends_it(
    owner: tuple[int, int], contained: bool, words: list[str]
) -> None:
    root = Path("/models")
    said = str(ownership.explain(root, root / "blobs", owner=owner, ours=1234, contained=contained))
    for word in words:
        assert word in said


def test_what_cannot_be_written_is_traced_to_its_registry_and_to_no_other_folder(project: Path) -> None:
    found = ownership.refusal(project / "models" / "blobs" / "sha256" / "ab" / "missing")
    assert found is not None
    assert f"{project / 'models' / 'blobs' / 'sha256'}" in str(found)
    assert f"$(id -g) {project / 'models'}" in str(found)
    assert ownership.refusal(project / "elsewhere") is None


def test_a_folder_that_may_not_even_be_looked_into_is_traced_too(project: Path) -> None:
    closed = project / "models" / "candidates"
    closed.chmod(0)
    try:
        found = ownership.refusal(closed / "toy" / "manifest")
    finally:
        closed.chmod(0o755)
    assert found is not None
    assert str(closed) in str(found)
