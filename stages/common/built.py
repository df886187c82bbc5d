"""Whether the code that runs is the code that lies in the project's folder: an image holds what it was built from."""

from __future__ import annotations

from pathlib import Path

import stages

PACKAGES = ("gates", "registry", "stages")


def differing(project: Path, here: Path = Path(stages.__file__).parent.parent) -> list[str]:
    """The modules that `project` has otherwise than `here`, where this code runs; none, if `project` holds no code."""
    if not all((project / package / "__init__.py").is_file() for package in PACKAGES) or project.samefile(here):
        return []
    theirs, ours = _modules(project), _modules(here)
    return sorted(name for name in theirs.keys() | ours.keys() if theirs.get(name) != ours.get(name))


def _modules(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for package in PACKAGES
        for path in (folder / package).rglob("*.py")
    }
