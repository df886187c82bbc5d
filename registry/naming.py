"""A candidate's name: the folder that is built complete under a temporary name and gets its own by one rename, and the
log's entry that follows.

A process killed between the two leaves the entry to the next one that makes, finds or promotes the candidate: the
newest entry about a name must state the manifest that the name has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from registry import fs, plain
from registry.manifests import File
from registry.objects import Objects


def build(store: Objects, files: dict[str, File], extras: dict[str, File], digest: str) -> Path:
    """A candidate's folder, complete and durable, under a temporary name as deep below the root as its own."""
    folder = fs.beside(store.layout.staging / digest)
    fs.make_folders(folder)
    fs.new_link(folder / "manifest", f"../../manifests/{digest}.json")
    folders = {folder}
    for part, contents in (("model", files), ("attachments", extras)):
        for name, file in contents.items():
            path = folder / part / name
            fs.make_folders(path.parent)
            depth = len(path.relative_to(folder).parts) + 1
            blob = store.layout.blob(file.digest).relative_to(store.layout.root)
            fs.new_link(path, "../" * depth + blob.as_posix())
            folders.add(path.parent)
    for each in sorted(folders, reverse=True):
        fs.sync_folder(each)
    return folder


def restore(store: Objects, name: str, digest: str) -> None:
    """Gives `name` back to the candidate with this manifest, whatever has taken it; attachments do not come back."""
    folder, target = build(store, store.manifest(digest).files, {}, digest), store.layout.candidate(name)
    try:
        try:
            fs.rename_folder(folder, target)
        except FileExistsError:
            fs.exchange(folder, target)
    finally:
        fs.remove_tree(folder)
    write_log(store, name)


def write_log(store: Objects, name: str) -> None:
    """Adds the log's entry about the candidate `name`, unless the newest one states its manifest already.

    All that it says stands in the candidate's folder, so that whoever writes it after a kill writes the same.
    """
    candidate = store.candidate(name)
    attached = plain.attachments(store.layout, candidate.name)
    about = {"attachments": attached} if attached else {}

    def following(newest: dict[str, Any] | None) -> dict[str, Any] | None:
        before = newest["manifest"] if newest else None
        if before == candidate.digest:
            return None
        return {"manifest": candidate.digest, "op": candidate.manifest.inputs.op, "replaced": before, **about}

    store.log.follow("candidate", {"name": name}, following)
