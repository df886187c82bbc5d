"""What tests of the registry share."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def memory_path() -> Iterator[Path]:
    """A folder in memory where there is one, for tests that write and fsync the same things hundreds of times."""
    memory = Path("/dev/shm")  # noqa: S108 - the folder itself gets a random name
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(dir=memory if usable else None, prefix="sluice-") as folder:
        yield Path(folder)
