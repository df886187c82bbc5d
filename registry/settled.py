"""Whether a registry is as its last command should have left it, so that nothing has to be mended before it is read.

`Store.open` mends: a marker that is damaged or of another format, a missing folder, what an interrupted gc or promotion
left. That needs all records' classes; to see that there is nothing to mend does not. When in doubt, there is.
"""

from __future__ import annotations

from typing import Any

from gates import canonical
from gates.errors import SluiceError
from registry import fs, plain, trash
from registry.layout import FORMAT, KIND, Layout

MARKER = {"kind": KIND, "format": FORMAT}


def served(layout: Layout) -> dict[str, str] | None:
    """The candidate that each channel serves, by the channel's name; None if there is something to mend.

    Of every channel the newest generation is the one that the log names, its candidate has the manifest that it states,
    and the channel's link leads there.
    """
    try:
        if fs.contents(layout.marker) != canonical.dumps(MARKER) or not _complete(layout):
            return None
        return {
            channel: name
            for channel in fs.entries(layout.root / "generations")
            if (name := _settled(layout, channel)) is not None
        }
    except (OSError, SluiceError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def _complete(layout: Layout) -> bool:
    return all(folder.is_dir() for folder in layout.folders()) and not trash.taken(layout)


def _settled(layout: Layout, channel: str) -> str | None:
    """What a channel serves; None if there is no promotion to it.

    Raises:
        ValueError, and what reading raises: there is something to mend.
    """
    every = plain.numbers(layout.generations(channel))
    if not every:
        return None
    newest, digest = plain.generation(layout, channel, every[-1])
    logged = _newest_promotion(layout, channel)
    name: str = newest["candidate"]
    manifest = plain.linked_manifest(layout.candidate(name))
    plain.content(layout.manifest(manifest), manifest, "manifest")
    if (logged["generation"], logged["record"], newest["manifest"]) != (every[-1], digest, manifest) or str(
        layout.channel(channel).readlink()
    ) != layout.channel_target(name):
        raise ValueError("a promotion was interrupted")
    return name


def _newest_promotion(layout: Layout, channel: str) -> dict[str, Any]:
    for number in reversed(plain.numbers(layout.log)):
        entry = plain.logged(layout, number, "promotion")
        if entry is not None and entry["channel"] == channel:
            return entry
    raise ValueError("a promotion is not in the log")
