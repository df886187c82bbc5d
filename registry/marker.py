"""format.json: what makes a folder a registry, and says how it is laid out."""

from __future__ import annotations

import contextlib
import os

from gates.errors import IntegrityError, SluiceError, UsageError
from gates.records import Record
from registry import fs
from registry.layout import FORMAT, KIND, Layout


class Format(Record):
    kind: str
    format: int


def create(layout: Layout) -> None:
    """Makes the folders of a registry, then its marker. One that is there already stays as it is.

    Raises:
        UsageError: there is something else.
    """
    if layout.marker.exists():
        return
    _refuse_inside_another(layout)
    _refuse_foreign(layout)
    for folder in layout.folders():
        fs.make_folders(folder)
    with contextlib.suppress(FileExistsError):
        fs.write_new(layout.marker, Format(kind=KIND, format=FORMAT).to_bytes())


def check(layout: Layout) -> None:
    """
    Raises:
        UsageError: there is no registry, or a newer Sluice made it.
        IntegrityError: the marker is damaged.
    """
    try:
        data = fs.contents(layout.marker)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            "there is no registry here", where=str(layout.root), remedy=f"registry init --root {layout.root}"
        ) from None
    stated = Format.from_bytes(data, where=str(layout.marker))
    if stated.kind != KIND:
        raise UsageError(f"format.json marks a {stated.kind!r}, not a {KIND}", where=str(layout.marker))
    if stated.format < 1:
        raise IntegrityError(f"format.json states the format {stated.format}", where=str(layout.marker))
    if stated.format > FORMAT:
        raise UsageError(
            f"this registry has format {stated.format}; this Sluice knows formats up to {FORMAT}",
            where=str(layout.marker),
            remedy="use the newer Sluice that made it",
        )


def _refuse_inside_another(layout: Layout) -> None:
    """What lies in a registry is its own: gc and doctor there would look at the files of two."""
    for folder in layout.root.resolve().parents:
        try:
            check(Layout(folder))
        except (SluiceError, OSError):
            continue
        raise UsageError(
            f"this lies inside the registry {folder}", where=str(layout.root), remedy="name a folder outside of it"
        )


def _refuse_foreign(layout: Layout) -> None:
    """Hidden files may be there (.gitignore), and the empty folders of an init that was interrupted."""
    if not layout.root.exists():
        return
    if not layout.root.is_dir():
        raise UsageError("this is not a folder", where=str(layout.root), remedy="name another")
    ours = {folder.relative_to(layout.root).parts[0] for folder in layout.folders()}
    for name in fs.entries(layout.root):
        path = layout.root / name
        if name not in ours or any(files for _, _, files in os.walk(path)):
            raise UsageError(
                "this folder is not a registry, and it is not empty", where=str(path), remedy="name an empty folder"
            )
