"""`python -m tests.faults.full_disk FOLDER`: in a mount namespace of its own, on a file system that really fills."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

import pytest

from registry import generations, output, promotion
from registry.store import Store
from tests.faults import scenarios
from tests.support import invariants

SIZE = "160m"
"""Enough for the room that `add` wants to stay free."""


def main(folder: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "none", str(folder)], check=True)
    root = folder / "models"
    store = scenarios.judged(root)
    candidates = store.names()
    _fill(folder)

    _refused("an add is refused", lambda: store.add("toy", scenarios.source("toy", seed=5)))
    _done("a promotion has its reserve", lambda: promotion.promote(Store.open(root), "fine"))
    _fill(folder)
    _refused("without the reserve it is refused", lambda: promotion.promote(Store.open(root), "good"))
    invariants.check(root)
    assert generations.served(store.layout) == {"best": "fine"}

    garbage = folder / "models/blobs/sha256/aa" / ("aa" + "0" * 62)
    (folder / "filler").unlink()
    garbage.parent.mkdir(exist_ok=True)
    garbage.write_bytes(bytes(8 << 20))
    _fill(folder)
    _done("gc removes on a full disk", lambda: scenarios.collect(root))
    assert not garbage.exists()
    _done("and makes room", lambda: promotion.promote(Store.open(root), "good"))
    _done("a rollback too", lambda: promotion.rollback(Store.open(root)))

    (folder / "filler").unlink()
    _done("then there is room for an add", lambda: Store.open(root).add("toy", scenarios.source("toy", seed=5)))
    invariants.check(root)
    assert Store.open(root).names() == sorted([*candidates, "toy"])


def _fill(folder: Path) -> None:
    with (folder / "filler").open("ab", buffering=0) as filler:
        for size in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while filler.write(bytes(size)):
                    pass
        with pytest.raises(OSError, match="No space left"):
            filler.write(b"1")


def _done(what: str, work) -> None:
    assert output.end_with(lambda: work() and None) == 0, what


def _refused(what: str, work) -> None:
    assert output.end_with(lambda: work() and None) == 2, what


if __name__ == "__main__":
    main(Path(sys.argv[1]))
