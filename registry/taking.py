"""Files brought into a step's folder, with their digests: linked, cloned or copied, whichever costs least.

    a blob of the same digest           linked: costs the hash, and no bytes
    the file itself (--move)            linked, if nothing else has a name for it; its source keeps its name
    a clone (btrfs, XFS)                shares its bytes with the source until either changes
    a copy                              into room that is set aside for all files before the first byte

A shard that is done is noted (`notes/`), so that whoever runs this again after a kill does not read it again. A note
holds for a source with the same device, inode, size and times of change; anything else is read anew.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gates import canonical
from gates.errors import BusyError, IntegrityError, SluiceError, UsageError
from registry import bulk, fs, locks, output
from registry.manifests import File
from registry.parallel import each_file

if TYPE_CHECKING:
    from registry.bulk import Advance
    from registry.objects import Objects

MARGIN = 64 << 20
"""Bytes that stay free beside what is taken: manifests, links, logs."""

_TRUSTED = " trusted"
"""How a note marks that the file is a link to a blob that was not read again."""

_WORTH_A_CLONE = 1 << 20
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_LINK = {errno.ENOENT, errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.EOPNOTSUPP}


@contextlib.contextmanager
def refused_whole(store: Objects, place: Work, work: str, where: str) -> Iterator[None]:
    """The end of a step: its folder is gone then, be the model in it committed or refused for what it is.

    What fails otherwise is kept, to be continued.

    Args:
        work: the step's digest.
        where: the source, for messages.
    """
    try:
        yield
    except BusyError:
        raise
    except SluiceError as error:
        if error.where:  # the copy is gone in a moment, and never was what anybody could mend
            error.where = error.where.replace(str(place.model), where, 1)
        store.discard(work)
        raise
    store.discard(work)


@dataclass(frozen=True, slots=True)
class Work:
    """One step's folder: the model as far as it is there, and notes of which of its files are done."""

    store: Objects
    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model"

    def note(self, name: str, file: File, source: str) -> None:
        """Writes down that the file `name` of the model is done: its bytes are on the disk.

        The note itself may be lost or torn by a power cut; then it is none, and the file is read again.

        Args:
            source: says of what it was made.
        """
        text = canonical.dumps({"name": name, "digest": file.digest, "size": file.size, "source": source})
        path = self._noted(name)
        fs.make_folders(path.parent)
        fs.replace_work(path, [text])

    def done(self, name: str, source: str) -> File | None:
        """The file, if a note says that it was made of `source`, and it is there."""
        try:
            path = self._noted(name)
            noted = canonical.loads(fs.contents(path), where=str(path))
            if noted["source"] == source and os.lstat(self.model / name).st_size == noted["size"]:
                return File(digest=noted["digest"], size=noted["size"])
        except (OSError, IntegrityError, KeyError, TypeError, ValueError):
            pass  # a note that cannot be read is none
        return None

    def _noted(self, name: str) -> Path:
        return self.folder / "notes" / f"{canonical.digest(name.encode())}.json"


@dataclass(frozen=True, slots=True)
class Taken:
    """A file of the work's model, and the state of the source that it was taken from."""

    file: File
    state: str


def take(work: Work, what: str, files: Mapping[str, Path], *, move: bool = False) -> dict[str, Taken]:
    """Brings `files` into the work's model; all of them are durable there at the end, under their names.

    Args:
        what: what is done, for people.
        files: by name in the model. With `move`, they keep their names too; removing these is the caller's.

    Raises:
        UsageError: the disk has no room for them (nothing is written then), or a file changed while it was read.
    """
    before = {name: state_of(path) for name, path in files.items()}
    done = {name: file for name in files if (file := _done(work, name, before[name], move=move))}
    missing = {name: path for name, path in files.items() if name not in done}
    for name in missing:
        fs.make_folders((work.model / name).parent)
        fs.remove_tree(work.model / name)
    before |= {name: state_of(path) for name, path in missing.items()}  # to lose a link is a change of the file's
    twins = _twins(work.store, missing)
    linked = {name for name in missing if name not in twins and _shared(missing[name], work.model / name, move=move)}
    before |= {name: state_of(files[name]) for name in linked}  # to gain one, too
    sizes = {name: path.stat().st_size for name, path in missing.items()}
    new = {name: size for name, size in sizes.items() if name not in twins and name not in linked}

    def one(name: str, advance: Advance) -> File:
        source, read = missing[name], 0
        changed = UsageError(
            "the file changed while it was read",
            where=str(source),
            remedy="wait until it is whole; then run this again",
        )

        def told(count: int) -> None:
            nonlocal read
            read += count
            if read > sizes[name]:  # whoever writes as fast as this reads would keep it busy for ever
                raise changed
            advance(count)

        def check(size: int) -> None:
            if state_of(source) != before[name] or size != sizes[name]:
                raise changed
            if name in linked and locks.written(source):  # what becomes a blob, nobody may go on writing
                raise changed

        file = _taken(work, name, source, twins.get(name), name in linked, told, check, move=move)
        if name.endswith(".safetensors"):
            trusted = name in twins and not move
            work.note(name, file, before[name] + _TRUSTED * trusted)
        return file

    try:
        reserve(work, new, movable=not move)
        taken = done | each_file(what, sizes, one)
    except BaseException:
        _free_unfinished(work, missing, before, move=move)
        raise
    return {name: Taken(taken[name], before[name]) for name in files}


def state_of(path: Path) -> str:
    """What a file is taken by without being read again: it differs after any change that the file system notes."""
    state = path.stat()
    return f"{state.st_dev} {state.st_ino} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns}"


def reserve(work: Work, sizes: Mapping[str, int], *, movable: bool = False) -> None:
    """Sets room aside for files of the work's model, by name.

    Raises:
        UsageError: there is too little; nothing is set aside then.
    """
    disk = os.statvfs(work.folder)
    needed, free = sum(sizes.values()), disk.f_bavail * disk.f_frsize
    too_little = UsageError(
        f"the disk is too full: {output.size(needed)} are to be written and {output.size(MARGIN)} to stay free; "
        f"there are {output.size(free)}",
        where=str(work.store.layout.root),
        remedy=f"free {output.size(max(0, needed + MARGIN - free))} or more (registry df, registry gc)"
        + (", or add with --move from the same file system" if movable else ""),
    )
    if needed and needed + MARGIN > free:
        raise too_little
    try:
        for name, size in sizes.items():
            bulk.reserve(work.model / name, size)
    except OSError as error:
        for name in sizes:
            fs.remove_tree(work.model / name)
        if error.errno in _FULL:  # a quota, or another writer was faster
            raise too_little from None
        raise


def _taken(
    work: Work,
    name: str,
    source: Path,
    twin: str | None,
    linked: bool,
    advance: Advance,
    check: Callable[[int], None],
    *,
    move: bool,
) -> File:
    """The file, durable under its name in the work's model. `check` is told how many bytes it had once it is read."""
    target = work.model / name
    if twin is not None:
        blob, same = work.store.layout.blob(twin), True
        try:
            if move:  # nobody has its bytes but the blob, once the source is removed
                digest, size, same = bulk.hash_beside(source, blob, advance)
            else:
                digest, size = bulk.hash_file(source, advance)
        except FileNotFoundError:  # gc has just taken the blob away, before a byte was read
            digest, size, same = "", 0, False
        else:
            check(size)  # before the link: that changes the source, if it is the blob already
        if same and digest == twin and _linked(blob, target):
            return File(digest=digest, size=size)
        advance(-size)  # it only looked like that blob, or gc has just taken that away
        fs.remove_tree(target)
        bulk.reserve(target, size)
    if linked:
        digest, size = bulk.hash_file(target, advance)
        fs.sync_file(target)
    else:
        digest, size = bulk.fill(source, target, advance)
    check(size)
    return File(digest=digest, size=size)


def _twins(store: Objects, files: Mapping[str, Path]) -> dict[str, str]:
    """For each file that looks like a blob that is there, that blob's digest."""
    sizes = {name: path.stat().st_size for name, path in files.items()}
    by_size: dict[int, list[Path]] = defaultdict(list)
    for blob in _blobs(store):
        with contextlib.suppress(FileNotFoundError):  # taken away by gc at this moment, here and below
            by_size[blob.stat().st_size].append(Path(blob.path))
    found = {}
    for name, path in files.items():
        for blob_path in by_size[sizes[name]]:
            with contextlib.suppress(FileNotFoundError):
                if bulk.alike(path, blob_path, sizes[name]):
                    found[name] = blob_path.name
                    break
    return found


def _blobs(store: Objects) -> Iterator[os.DirEntry[str]]:
    root = store.layout.root / "blobs" / "sha256"
    for folder in fs.entries(root):
        with os.scandir(root / folder) as entries:
            yield from (entry for entry in entries if len(entry.name) == 64 and entry.is_file(follow_symlinks=False))


def _shared(source: Path, target: Path, *, move: bool) -> bool:
    """Whether `target` now is the source itself (to move it) or a clone of it, without a byte written."""
    state = os.lstat(source)
    # a file with another name could be written to through that name, once it is a blob
    if move and state.st_nlink == 1 and _linked(source, target):
        return True
    return state.st_size >= _WORTH_A_CLONE and bulk.clone(source, target)


def _linked(source: Path, target: Path) -> bool:
    try:
        fs.link_work(source, target)
    except OSError as error:
        if error.errno in _NO_LINK:
            return False
        raise
    return True


def _done(work: Work, name: str, state: str, *, move: bool) -> File | None:
    """The file, if it was taken from a source in this state. To be moved, one that was trusted is not done."""
    return work.done(name, state) or (None if move else work.done(name, state + _TRUSTED))


def _free_unfinished(work: Work, files: Mapping[str, Path], before: Mapping[str, str], *, move: bool) -> None:
    """Gives back the room of what is not done. What fails here is no matter: the next attempt does it again."""
    for name in files:
        try:
            if _done(work, name, before[name], move=move) is None:
                fs.remove_tree(work.model / name)
        except OSError:
            return
