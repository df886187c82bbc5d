"""How a candidate comes into being: blobs, then the manifest, then the candidate's folder, then the log's entry.

Each is durable before the next begins (`registry.naming` has the last two).
"""

from __future__ import annotations

import errno
import os
import platform
import re
import secrets
import stat
import unicodedata
from pathlib import Path

from gates.errors import BusyError, IntegrityError, UsageError
from registry import bulk, fs, generations, naming
from registry.layout import checked_name
from registry.manifests import FORMAT, File, Inputs, Manifest
from registry.objects import Candidate, Objects
from registry.parallel import each_file

LOCK_WAIT = 60.0
"""Seconds that one process waits while another gives the same name to a candidate, or promotes it."""

_CLAIM = "claim"
_START = secrets.token_hex(8)

_FILE = re.compile(r'[^-. \\:*?"<>|]([^\\:*?"<>|]*[^. \\:*?"<>|])?')
"""A name that every system can have, and that neither hides nor looks like an option."""
_LONGEST = 200
"""Bytes."""


def made(store: Objects, name: str, inputs: Inputs, *, replace: bool = False) -> Candidate | None:
    """The candidate `name`, if it is made from `inputs`; None if it is still to be made.

    Raises:
        UsageError: it is made from something else, and `replace` is not given or a channel serves it; or `name` is
            a channel's.
    """
    if generations.current(store.layout, checked_name(name)) is not None:
        raise UsageError(f"{name} is the name of a channel", remedy="choose another name for the candidate")
    if not os.path.lexists(store.layout.candidate(name)):
        return None
    try:
        there = store.candidate(name)
    except IntegrityError:
        if not replace:
            raise
        refuse_served(store, name)
        return None
    differences = there.manifest.inputs.differences(inputs)
    if not differences:
        naming.write_log(store, name)
        return there
    if not replace:
        listed = "".join(f"\n  {line}" for line in differences)
        raise UsageError(
            f"{name} is made from something else (there / asked for):{listed}",
            where=str(store.layout.candidate(name)),
            remedy="choose another name, or make it again with --replace",
        )
    refuse_served(store, name)
    return None


def commit(
    store: Objects,
    name: str,
    inputs: Inputs,
    model: Path,
    *,
    attachments: Path | None = None,
    replace: bool = False,
    known: dict[str, File] | None = None,
    stated: Manifest | None = None,
) -> Candidate:
    """Makes the files below `model` the candidate `name`.

    The files become blobs without being copied, so `model` must lie on the registry's file system (in a step's folder);
    they are read-only afterwards. A candidate made already from the same inputs is found, and `model` is not looked at.

    Args:
        attachments: a folder of files to keep beside the model; no part of its identity.
        replace: whether a candidate of this name that was made from other inputs gives way.
        known: the digests and sizes of all files below `model`, if they were just taken.
        stated: the manifest of a candidate that was made elsewhere; it keeps it.

    Raises:
        UsageError: the name is taken by something else (`made`), or a file's name cannot be kept.
        IntegrityError: `model` is no whole checkpoint or not what is stated, or what it was made from is missing.
        BusyError: another process works on the name, or where `model` lies.
    """
    found = made(store, checked_name(name), inputs, replace=replace)
    if found is not None:
        return found
    from registry.checkpoint import inspect

    _check_origin(store, inputs)
    shape = inspect(model)
    files = _take(store, name, model, known)
    extras = _take(store, name, attachments, None) if attachments and attachments.is_dir() else {}
    manifest = stated or Manifest(format=FORMAT, inputs=inputs, shape=shape, files=files)
    if (manifest.shape, manifest.files) != (shape, files):
        raise IntegrityError("the model is not the one that its manifest states", where=str(model))
    sources = {file.digest: model / each for each, file in files.items()}
    if attachments:
        sources |= {file.digest: attachments / each for each, file in extras.items()}
    _place(store, name, manifest, extras, sources, step=model.parent, replace=replace)
    return store.candidate(name)


def assemble(store: Objects, name: str, inputs: Inputs, files: dict[str, File], *, replace: bool = False) -> Candidate:
    """Makes the candidate `name` of files that are blobs already.

    Raises:
        UsageError: the name is taken by something else (`made`), or a file's name cannot be kept.
        IntegrityError: together they are no whole checkpoint, or what it was made from is missing.
    """
    found = made(store, checked_name(name), inputs, replace=replace)
    if found is not None:
        return found
    from registry.checkpoint import inspect

    _check_origin(store, inputs)
    refuse_unsafe(list(files), where=store.layout.candidate(name))
    folder = naming.build(store, files, {}, inputs.identity())
    try:
        shape = inspect(folder / "model")
    finally:
        fs.remove_tree(folder)
    manifest = Manifest(format=FORMAT, inputs=inputs, shape=shape, files=files)
    _place(store, name, manifest, {}, {}, step=None, replace=replace)
    return store.candidate(name)


def claim(folder: Path) -> None:
    """Marks a step's folder as this process's work. Of several in the same folder, where locks do not lock, the last
    alone may commit: what the others wrote there, it may have begun to write again.
    """
    fs.make_folders(folder)
    fs.replace_link(folder / _CLAIM, _this_process())


def link_in(path: Path, blob: Path, digest: str) -> None:
    """Makes a step's file, whose SHA-256 is `digest`, a blob.

    Raises:
        UsageError: it lies on another file system than the registry.
    """
    fs.make_folders(blob.parent)
    try:
        fs.link_in(path, blob, digest)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        raise UsageError(
            "this file is on another file system than the registry, so it cannot become part of it",
            where=str(path),
            remedy="work in the registry's staging folder; in containers, mount the registry's root once, as a whole",
        ) from None


def refuse_served(store: Objects, name: str) -> None:
    """
    Raises:
        UsageError: a channel serves `name`; its verdict belongs to the manifest that the name has now.
    """
    for channel, served in generations.served(store.layout).items():
        if served == name:
            raise UsageError(
                f"{name} is served by the channel {channel}, so it cannot be replaced",
                remedy=f"choose another name, or promote another candidate to {channel} first",
            )


def refuse_unsafe(names: list[str], *, where: Path | str) -> None:
    """
    Raises:
        UsageError: a file's name (relative, with /) cannot be kept on every file system, or two would be one there.
    """
    folded: dict[str, str] = {}
    for name in names:
        if not all(_keepable(part) for part in name.split("/")):
            raise UsageError(
                f"the file name {name!r} cannot be kept",
                where=str(where),
                remedy=f'rename it: up to {_LONGEST} bytes, none of \\ : * ? " < > |, nothing that cannot be seen, '
                "and no . - or space where it begins or ends",
            )
        other = folded.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise UsageError(
                f"the files {other!r} and {name!r} differ by case alone", where=str(where), remedy="rename one"
            )


def _keepable(part: str) -> bool:
    return part.isprintable() and _FILE.fullmatch(part) is not None and len(part.encode()) <= _LONGEST


def _check_origin(store: Objects, inputs: Inputs) -> None:
    """A candidate never refers to a parent or to calibration rows that are not there."""
    if inputs.parent is not None:
        store.manifest(inputs.parent)
    if inputs.mix is not None:
        store.read(inputs.mix.rows)


def _take(store: Objects, name: str, folder: Path, known: dict[str, File] | None) -> dict[str, File]:
    """Makes every file below `folder` a blob."""
    paths = _regular_files(folder)
    refuse_unsafe(list(paths), where=folder)

    def one(relative: str, advance: bulk.Advance) -> File:
        path, file = paths[relative], known[relative] if known is not None else None
        if file is None:
            digest, size = bulk.hash_file(path, advance)
            file = File(digest=digest, size=size)
        else:
            advance(file.size)
        link_in(path, store.layout.blob(file.digest), file.digest)
        return file

    return each_file(f"commit {name}", {relative: path.stat().st_size for relative, path in paths.items()}, one)


def _regular_files(folder: Path) -> dict[str, Path]:
    found = {}
    for base, folders, names in fs.walk(folder):
        for entry in (*folders, *names):
            path = Path(base, entry)
            mode = path.lstat().st_mode
            if stat.S_ISREG(mode):
                found[path.relative_to(folder).as_posix()] = path
            elif not stat.S_ISDIR(mode):
                raise IntegrityError("neither a file nor a folder", where=str(path), remedy="leave files alone here")
    return dict(sorted(found.items()))


def _place(
    store: Objects,
    name: str,
    manifest: Manifest,
    extras: dict[str, File],
    sources: dict[str, Path],
    *,
    step: Path | None,
    replace: bool,
) -> None:
    """Gives the candidate its name and logs it. `sources` are the files in the step's folder by digest."""
    folder = naming.build(store, manifest.files, extras, manifest.identity())
    try:
        with store.locked(f"candidate-{name}", wait=LOCK_WAIT, busy=f"another process works on the name {name}"):
            # asked again, for what was true before may not be true any more; once it has the name, that logs it
            while made(store, name, manifest.inputs, replace=replace) is None:
                _rely_on(store, manifest, extras, sources)
                _refuse_claimed(step)
                fs.write_content(store.layout.manifest(manifest.identity()), manifest.to_bytes())
                _take_name(store, name, folder, replace=replace)
    finally:
        fs.remove_tree(folder)


def _rely_on(store: Objects, manifest: Manifest, extras: dict[str, File], sources: dict[str, Path]) -> None:
    """Renews all that the manifest names, and makes a blob again what gc has just taken away.

    From here to the candidate's name takes moments, and gc spares what was renewed minutes ago
    (docs/decisions/0017-what-gc-may-remove.md).

    Raises:
        IntegrityError: gc has removed what is not in the step's folder.
    """
    inputs = manifest.inputs
    needed = [store.layout.manifest(inputs.parent)] if inputs.parent else []
    needed += [store.layout.blob(inputs.mix.rows)] if inputs.mix else []
    files = [*manifest.files.values(), *extras.values()]
    for path in (*needed, *(store.layout.blob(file.digest) for file in files)):
        try:
            fs.renew(path)
        except FileNotFoundError:
            source = sources.get(path.name)
            if source is None or not source.is_file():
                raise IntegrityError(
                    "this is gone, though the candidate needs it", where=str(path), remedy="run this again"
                ) from None
            link_in(source, path, path.name)


def _refuse_claimed(step: Path | None) -> None:
    """Asked when every file is a blob. Whoever claims the folder later gives its names to other files."""
    try:
        other = step is not None and str((step / _CLAIM).readlink()) != _this_process()
    except OSError:
        return  # nobody claimed it
    if other:
        raise BusyError(
            "another process works on the same step, though locks should keep it out",
            where=str(step),
            remedy="wait for it; then run this again (registry doctor says whether locks lock here)",
        )


def _this_process() -> str:
    return f"{platform.node()}-{os.getpid()}-{_START}"


def _take_name(store: Objects, name: str, folder: Path, *, replace: bool) -> None:
    target = store.layout.candidate(name)
    try:
        fs.rename_folder(folder, target)
    except FileExistsError:
        if not replace:
            return  # somebody else just took it; asked again, `made` says who
        try:
            fs.exchange(folder, target)
        except FileNotFoundError:
            return  # somebody else just removed it; the name is free when this is asked again
        try:
            refuse_served(store, name)  # promoted at the same moment, where locks do not work
        except UsageError:
            fs.exchange(folder, target)
            raise
