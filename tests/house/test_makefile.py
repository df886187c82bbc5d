"""What a newcomer types first."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.needs("make")

OLD_PYTHON = """#!/bin/sh
# This Python, but for the version that it states.
exec {python} -c 'import sys; sys.version_info = (3, 9, 18); sys.version = "3.9.18 (main)"; exec(sys.argv[1])' "$2"
"""


def _make(project: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "--no-print-directory", *words], cwd=project, capture_output=True, text=True, check=False
    )


def test_an_old_python_is_named_at_once_with_what_to_do(project: Path, tmp_path: Path) -> None:
    old = tmp_path / "python3.9"
    old.write_text(OLD_PYTHON.format(python=sys.executable))
    old.chmod(0o755)
    done = _make(project, "python", f"PYTHON={old}")
    assert done.returncode != 0
    assert "needs Python 3.11 or newer; this is 3.9.18" in done.stderr
    assert "PYTHON=" in done.stderr


def test_this_python_will_do(project: Path) -> None:
    done = _make(project, "python", f"PYTHON={sys.executable}")
    assert done.returncode == 0, done.stderr


def test_help_lists_the_two_commands_of_the_readme(project: Path) -> None:
    shown = _make(project).stdout
    assert "make demo" in shown
    assert "make test" in shown
    readme = (project / "README.md").read_text()
    assert "make demo" in readme
    assert "make test" in readme
