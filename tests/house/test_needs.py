"""A missing component skips a test for a user and fails it where SLUICE_REQUIRE names the component."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

TEST = """
import pytest

@pytest.mark.needs("make")
def test_something_made():
    assert True
"""


@pytest.mark.parametrize(("required", "expected"), [("", "1 skipped"), ("vllm,make", "1 error")])
def test_missing_component(tmp_path: Path, project: Path, required: str, expected: str) -> None:
    (tmp_path / "conftest.py").write_text((project / "tests" / "conftest.py").read_text())
    (tmp_path / "test_one.py").write_text(TEST)
    (tmp_path / "empty").mkdir()
    environment = os.environ | {"PATH": str(tmp_path / "empty"), "SLUICE_REQUIRE": required}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert expected in run.stdout
