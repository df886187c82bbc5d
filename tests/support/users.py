"""Work done by somebody who may not do everything, whoever runs the tests: to root nothing is forbidden."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.processes import end, start

_ORDINARY = 12345


def ordinary(work: Callable[[], Any], *, owns: Path) -> int:
    """Runs `work` in a process of its own as an ordinary user to whom `owns` and all in it belong; its exit status.

    What `work` imports must be imported already: the interpreter's own folders may be closed to that user.
    """
    user = _ORDINARY if os.getuid() == 0 else os.getuid()
    owns.parent.chmod(0o755)
    for path in (owns, *owns.rglob("*")):
        os.chown(path, user, -1, follow_symlinks=False)

    def run() -> None:
        if os.getuid() == 0:
            os.setgroups([])
            os.setuid(user)
        work()

    return end(start(run))
