"""How candidates were trained, as far as it is kept beside their models."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gates.errors import SluiceError
from gates.reports import Trained, Training
from gates.reports.training import FILE, ending
from gates.reports.words import visible
from registry import plain
from registry.history import Chain
from registry.store import Store


def of(store: Store, name: str, chain: Chain) -> Iterator[Trained]:
    """The trainings that made the candidate `name`, and what it was made from, what they are; the newest first.

    What is kept belongs to a name and not to a manifest: where it does not lie beside the candidate that was trained
    (whose name was taken off, or which came from elsewhere) that is said, and so is what cannot be read.
    """
    for number, (digest, manifest) in enumerate(chain):
        if manifest.inputs.op == "train":
            names = [name] if number == 0 else [each.name for each in store.sound().values() if each.digest == digest]
            kept = {each: plain.attachments(store.layout, each).get(FILE) for each in names}
            owner = next((each for each in names if kept[each]), names[0] if names else digest[:12])
            yield read(store, owner, kept.get(owner))


def read(store: Store, name: str, digest: str | None) -> Trained:
    """The training of the candidate `name`, whose record is the blob `digest`, or why there is none."""
    if digest is None:
        return Trained(of=name, unread=f"how it went is not kept here: no {FILE} lies beside it")
    try:
        return Trained(of=name, record=Training.from_bytes(store.read(digest)))
    except SluiceError as error:
        return Trained(of=name, unread=f"how it went cannot be said, for {FILE} cannot be read: {error.what}")


def logged(store: Store, entry: dict[str, Any]) -> str | None:
    """How the training ended of the candidate that a log's entry names, if its record is still there."""
    attached = entry.get("attachments")
    if entry.get("op") != "train" or not isinstance(attached, dict) or not isinstance(attached.get(FILE), str):
        return None
    record = read(store, "", attached[FILE]).record
    return visible(ending(record)) if record else None
