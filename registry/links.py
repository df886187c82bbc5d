"""Which of the steps that a registry rests on its file system refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from registry import fs


def refused(folder: Path) -> dict[str, str]:
    """Tries hard links, symbolic links, renames over a link, and the exchange of two folders in `folder`.

    Returns:
        what is refused, with the system's reason: 'hard links', 'symbolic links', 'exchange'.
    """
    place = fs.beside(folder / "probe")
    tries: dict[str, Callable[[], None]] = {
        "hard links": lambda: fs.write_new(place / "file", b"probe"),
        "symbolic links": lambda: fs.replace_link(place / "link", "file"),
        "exchange": lambda: fs.exchange_at_once(place / "one", place / "two"),
    }
    found = {}
    try:
        for name in ("one", "two"):
            fs.make_folders(place / name)
        for what, attempt in tries.items():
            try:
                attempt()
            except OSError as error:
                found[what] = error.strerror or str(error)
    finally:
        fs.remove_tree(place)
    return found
