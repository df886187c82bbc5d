"""`python -m tests.faults.run_scenario NAME ROOT`: a scenario's work, each call between two marks that strace shows."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.faults.scenarios import SCENARIOS, marks
from tests.support import faults


def marking(_: str, arguments: tuple[Any, ...], call: Callable[..., Any]) -> Any:
    with marks():
        return call(*arguments)


if __name__ == "__main__":
    name, root = sys.argv[1], Path(sys.argv[2])
    (scenario,) = (each for each in SCENARIOS if each.name == name)
    with faults.around(marking):
        scenario.work(root)
