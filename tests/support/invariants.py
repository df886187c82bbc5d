"""What must hold in every registry at every moment, whatever was killed or raced in it."""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

from gates.records import Evidence, Verdict
from registry import generations
from registry.log import Entry
from registry.manifests import Manifest
from registry.store import Store

TEMPORARY = re.compile(r"\.tmp-[0-9a-f]{16}")


def check(root: Path) -> None:
    """Opens the registry, as any command does, and looks at everything in it."""
    store = Store.open(root)
    _names(root)
    _manifests_refer_to_whole_blobs(store)
    _candidates_are_complete(store)
    _channels_serve_what_was_promoted(store)
    _records_are_what_their_names_say(store)
    store.log.verify()


def _names(root: Path) -> None:
    """Whatever is unfinished is called so."""
    numbered, digest = r"\d{8}\.json", r"[0-9a-f]{64}"
    allowed = {
        "manifests": digest + r"\.json",
        "log": numbered,
        "staging": digest,
        "channels": r"[a-z0-9][a-z0-9._-]*",
        "candidates": r"[a-z0-9][a-z0-9._-]*",
    }
    for folder, pattern in allowed.items():
        for path in (root / folder).iterdir():
            assert re.fullmatch(pattern, path.name) or TEMPORARY.fullmatch(path.name), path
    for path in (root / "blobs/sha256").glob("*/*"):
        assert re.fullmatch(digest, path.name) or TEMPORARY.fullmatch(path.name), path


def _manifests_refer_to_whole_blobs(store: Store) -> None:
    loaded = {store.candidate(name).digest for name in store.names()}
    for path in visible(store.layout.root / "manifests"):
        data = path.read_bytes()
        assert path.stem == hashlib.sha256(data).hexdigest()
        manifest = Manifest.from_bytes(data)
        # of a model without a name, the record may be all that is left
        for file in manifest.files.values() if path.stem in loaded else ():
            blob = store.layout.blob(file.digest)
            assert not blob.is_symlink()
            assert blob.stat().st_mode & 0o222 == 0, "a blob is read-only"
            assert blob.stat().st_size == file.size
            assert hashlib.sha256(blob.read_bytes()).hexdigest() == file.digest
        if manifest.inputs.parent:
            assert store.layout.manifest(manifest.inputs.parent).is_file()
        if manifest.inputs.mix:
            assert store.layout.blob(manifest.inputs.mix.rows).is_file()


def _candidates_are_complete(store: Store) -> None:
    for name in store.names():
        candidate = store.candidate(name)
        links = {
            Path(base, file).relative_to(candidate.folder).as_posix(): Path(base, file)
            for base, _, files in os.walk(candidate.folder)
            for file in files
        }
        assert links.keys() == candidate.manifest.files.keys()
        for file, link in links.items():
            assert not link.readlink().is_absolute(), "links are relative"
            assert link.resolve() == store.layout.blob(candidate.manifest.files[file].digest).resolve()


def _channels_serve_what_was_promoted(store: Store) -> None:
    promotions = [entry.about for entry in store.log.entries() if entry.event == "promotion"]
    for path in visible(store.layout.root / "generations"):
        channel = path.name
        history = generations.kept(store.layout, channel)
        assert [each.number for each in history] == list(range(1, len(history) + 1))
        if not history:
            continue
        newest = history[-1]
        assert str(store.layout.channel(channel).readlink()) == store.layout.channel_target(newest.candidate)
        assert store.layout.channel(channel).joinpath("config.json").is_file()
        logged = [entry for entry in promotions if entry["channel"] == channel]
        assert [entry["record"] for entry in logged] == [each.identity() for each in history]
        assert store.candidate(newest.candidate).digest == newest.manifest
        for each, before in zip(history, [None, *history], strict=False):
            assert each.replaces == (before.candidate if before else None)
            if each.override:
                assert each.reason
            else:
                assert each.verdict is not None
                verdict = store.verdicts(each.manifest)[each.verdict]
                assert (verdict.verdict, verdict.candidate, verdict.policy) == ("Pass", each.manifest, each.policy)


def _records_are_what_their_names_say(store: Store) -> None:
    for kind, record in (("evidence", Evidence), ("verdicts", Verdict)):
        for path in visible(store.layout.root / kind):
            for file in visible(path):
                read = record.from_bytes(file.read_bytes())
                assert (read.identity(), read.candidate) == (file.stem, path.name)
                for blob in (getattr(read, "rows", None), getattr(read, "responses", None)):
                    assert blob is None or store.read(blob)
    for file in visible(store.layout.log):
        assert Entry.from_bytes(file.read_bytes()).seq == int(file.stem)


def visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
