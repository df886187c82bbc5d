"""What a disk may hold after the power fails: what was forced to it, and of all the rest whatever it happened to write.

The model is POSIX's, which is weaker than any file system in use. A name is durable once its folder was synced after
it, a file's bytes and mode once the file was; neither implies the other, and nothing else implies either. A rename is
whole or not there.
"""

from __future__ import annotations

import itertools
import os
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Literal


@dataclass(eq=False)
class Inode:
    kind: Literal["folder", "file", "link"]
    names: dict[str, Inode] = field(default_factory=dict)
    """A folder's, as the running system sees them."""
    target: str = ""
    kept: list[tuple[int, bytes, int]] = field(default_factory=list)
    """A file's bytes and mode each time that they were forced to the disk, with the time."""


@dataclass(frozen=True)
class Naming:
    """One change of names, atomic: what each (folder, name) leads to afterwards."""

    time: int
    names: tuple[tuple[Inode, str, Inode | None], ...]


class Recorder:
    """Stands around every call, lets it through and remembers it; `crash` then makes what a crash may leave."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.time = 0
        self.calls: list[str] = []
        self._lock = threading.Lock()
        self._above = Inode("folder")
        if root.exists():
            self._above.names[root.name] = _load(root)
        self._before = _copied(self._above)
        self._namings: list[Naming] = []
        self._synced: list[tuple[int, Inode]] = []

    def __call__(self, name: str, arguments: tuple[Any, ...], call: Callable[..., Any]) -> Any:
        with self._lock:
            at = self._place(arguments[0]) if name in ("exchange", "rename", "unlink", "rmdir", "chmod") else None
            result = call(*arguments)
            self._note(name, arguments, at)
            self.calls.append(name)
            self.time += 1
            return result

    def crash(self, time: int, out: Path, choose: Random | None) -> None:
        """Writes to `out` what may be left of the root if the power fails after so many calls.

        Args:
            choose: what decides over each thing that was not forced to the disk; None: it is lost.
        """
        synced = [(when, inode) for when, inode in self._synced if when < time]
        names = {(id(folder), name): inode for folder, name, inode in self._before}
        for naming in self._namings:
            if naming.time >= time:
                break
            durable = all(
                any(when > naming.time and inode is folder for when, inode in synced) for folder, _, _ in naming.names
            )
            if durable or (choose is not None and choose.random() < 0.5):
                names |= {(id(folder), name): inode for folder, name, inode in naming.names}
        below: dict[int, list[tuple[str, Inode]]] = {}
        for (folder, name), inode in names.items():
            if inode is not None:
                below.setdefault(folder, []).append((name, inode))
        for name, inode in below.get(id(self._above), []):
            assert name == self.root.name
            self._write(inode, out, below, time, choose, {})

    def _write(self, inode: Inode, path: Path, below: dict[int, Any], time: int, choose: Random | None, done: Any):
        if id(inode) in done and inode.kind == "file":
            os.link(done[id(inode)], path)
            return
        done[id(inode)] = path
        if inode.kind == "folder":
            path.mkdir()
            for name, child in below.get(id(inode), []):
                self._write(child, path / name, below, time, choose, done)
        elif inode.kind == "link":
            path.symlink_to(inode.target)
        else:
            data, mode = self._left(inode, time, choose)
            path.write_bytes(data)
            path.chmod(mode)

    @staticmethod
    def _left(inode: Inode, time: int, choose: Random | None) -> tuple[bytes, int]:
        """A file's bytes and mode: those forced to the disk last, or what was written since, in part or as zeros."""
        kept = [(data, mode) for when, data, mode in inode.kept if when < time]
        data, mode = kept[-1] if kept else (b"", 0o644)
        later = [(data, mode) for when, data, mode in inode.kept if when >= time]
        if choose is not None and later and choose.random() < 0.7:
            whole, mode = later[0]
            if whole != data:  # what is on the disk already stays, whatever is forced there once more
                data = choose.choice([whole, whole[: choose.randrange(len(whole) + 1)], bytes(len(whole)), data])
        return data, mode

    def _note(self, name: str, arguments: tuple[Any, ...], at: Any) -> None:
        if name == "create":
            self._names((arguments[0], Inode("file")))
        elif name == "mkdir":
            self._names((arguments[0], Inode("folder")))
        elif name == "symlink":
            self._names((arguments[1], Inode("link", target=str(arguments[0]))))
        elif name == "link":
            self._names((arguments[1], self._found(arguments[0])))
        elif name == "rename":
            self._names((arguments[0], None), (arguments[1], at))
        elif name == "exchange":
            self._names((arguments[0], self._found(arguments[1])), (arguments[1], at))
        elif name in ("unlink", "rmdir"):
            self._names((arguments[0], None))
        elif name == "sync":
            self._sync(arguments[0])
        elif name not in ("write", "allocate", "chmod", "touch", "truncate", "clone"):
            raise AssertionError(f"{name} is unknown here: say what a crash may leave of it")

    def _names(self, *changes: tuple[Path, Inode | None]) -> None:
        places = []
        for path, inode in changes:
            folder = self._place(path.parent)
            if folder is not None:  # a source outside the root is on the disk already
                places.append((folder, path.name, inode))
                if inode is None:
                    folder.names.pop(path.name, None)
                else:
                    folder.names[path.name] = inode
        if places:
            self._namings.append(Naming(self.time, tuple(places)))

    def _sync(self, descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        inode = self._place(path)
        if inode is None:
            return
        if inode.kind == "file":
            inode.kept.append((self.time, path.read_bytes(), stat.S_IMODE(path.stat().st_mode)))
        self._synced.append((self.time, inode))

    def _found(self, path: Path) -> Inode:
        """What is called so; a file from outside the root is taken to be on the disk."""
        return self._place(path) or _load(path)

    def _place(self, path: Path) -> Inode | None:
        if path == self.root.parent:
            return self._above
        if not path.is_relative_to(self.root):
            return None
        inode, there = self._above, self.root.parent
        for part in (self.root.name, *path.relative_to(self.root).parts):
            there /= part
            if part not in inode.names:
                if not os.path.lexists(there):
                    return None
                self._adopt(inode, part, there)
            inode = inode.names[part]
        return inode

    def _adopt(self, folder: Inode, name: str, path: Path) -> None:
        """What a stage wrote into its step's folder, of which nothing is known to be on the disk yet."""
        inode = _load(path)
        for each in (inode, *(below for _, _, below in _copied(inode))):
            each.kept.clear()
        folder.names[name] = inode
        changes = [(folder, name, inode), *_copied(inode)]
        self._namings.extend(Naming(self.time, (change,)) for change in changes)


def _load(path: Path) -> Inode:
    """What is there before anything happens, all of it durable."""
    state = path.lstat()
    if stat.S_ISLNK(state.st_mode):
        return Inode("link", target=str(path.readlink()))
    if stat.S_ISREG(state.st_mode):
        return Inode("file", kept=[(-1, path.read_bytes(), stat.S_IMODE(state.st_mode))])
    return Inode("folder", names={each.name: _load(each) for each in path.iterdir()})


def _copied(folder: Inode) -> list[tuple[Inode, str, Inode]]:
    """Every name at or below `folder`."""
    here = [(folder, name, inode) for name, inode in folder.names.items()]
    return here + list(itertools.chain.from_iterable(_copied(inode) for _, _, inode in here))
