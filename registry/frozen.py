"""Mixes whose rows are kept before any candidate was made with them, so that a container needs no network.

A record says which rows a mix's definition gave (`MixUse.definition`: its datasets at their revisions, counts and
seed); the rows are a blob. It is made once and never changed: what the Hub has under a branch tomorrow changes nothing.
"""

from __future__ import annotations

from gates.errors import IntegrityError
from registry import fs
from registry.manifests import MixUse
from registry.store import Store


def freeze(store: Store, mix: MixUse, rows: bytes) -> MixUse:
    """Keeps the rows of a mix, and gives what is recorded of it: what was recorded first, if it is frozen already."""
    assert mix.definition is not None, "what is at hand anyway is not frozen"
    store.put(rows)
    fs.make_folders(store.layout.mixes)
    try:
        fs.write_new(store.layout.mix(mix.definition), mix.to_bytes())
    except FileExistsError:
        mix = _read(store, mix.definition)
    about = {"mix": mix.name, "rows": mix.rows}
    store.log.follow("freeze", {"definition": mix.definition}, lambda newest: None if newest else about)
    return mix


def frozen(store: Store, definition: str) -> MixUse | None:
    """The mix that was frozen, or that some candidate was made with, from this definition.

    Raises:
        IntegrityError: the record is damaged.
    """
    if f"{definition}.json" in fs.entries(store.layout.mixes):
        return _read(store, definition)
    for name in fs.entries(store.layout.root / "manifests"):
        try:
            mix = store.manifest(name.removesuffix(".json")).inputs.mix
        except IntegrityError:
            continue  # `registry verify` says so
        if mix is not None and mix.definition == definition:
            return mix
    return None


def _read(store: Store, definition: str) -> MixUse:
    path = store.layout.mix(definition)
    mix = MixUse.from_bytes(fs.read(path, "frozen mix"), where=str(path))
    if mix.definition != definition:
        raise IntegrityError("this frozen mix lies where it does not belong", where=str(path))
    return mix
