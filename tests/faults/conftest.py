"""How many faults are injected: `make test` takes a part, spread evenly; `make test-faults` (SLUICE_FAULTS=all) all."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.registry.conftest import memory_path
from tests.support import faults

__all__ = ["memory_path"]

ALL = os.environ.get("SLUICE_FAULTS") == "all"


@pytest.fixture(scope="session")
def thorough() -> bool:
    return ALL


@pytest.fixture(scope="session")
def some() -> Callable[[int, int], Iterator[int]]:
    """`some(total, at_most)`: the numbers from 1 to total, or so many of them, the first and the last included."""

    def chosen(total: int, at_most: int) -> Iterator[int]:
        if ALL or total <= at_most:
            return iter(range(1, total + 1))
        return iter(sorted({1 + round(place * (total - 1) / (at_most - 1)) for place in range(at_most)}))

    return chosen


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    part = "all" if ALL else "a part; make test-faults injects all"
    terminalreporter.write_line(f"{faults.injected} faults injected ({part})")
