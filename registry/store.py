"""The registry on disk, as its users see it: what lies in it, and how candidates come into being."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from registry import channels, commits, fs, marker, ownership, trash
from registry.layout import Layout
from registry.manifests import Inputs
from registry.objects import Candidate, Objects

__all__ = ["Candidate", "Store"]


@dataclass(frozen=True, slots=True)
class Store(Objects):
    @classmethod
    def init(cls, root: Path) -> Store:
        """Makes a registry in `root`; one that is there already stays as it is.

        Raises:
            UsageError: `root` holds something else, or cannot be written.
        """
        ownership.check(root.absolute())
        marker.create(Layout(root.absolute()))
        return cls.open(root)

    @classmethod
    def open(cls, root: Path) -> Store:
        """The registry in `root`; a promotion or a gc that was interrupted is finished first.

        Raises:
            UsageError: there is none, or a newer Sluice made it.
            IntegrityError: format.json is damaged.
        """
        layout = Layout(root.absolute())
        marker.check(layout)
        with suppress(OSError):  # to read, none of these is needed; to write, the call that needs it says so
            for folder in layout.folders():
                fs.make_folders(folder)  # copying tools leave empty folders out
            fs.make_lock(layout.lock("gc"))  # while there is room: on a full disk gc is what helps
        fs.keep_reserve(layout.root)
        store = cls(layout)
        trash.recover(store)
        channels.repair(store)
        return store

    def made(self, name: str, inputs: Inputs, *, replace: bool = False) -> Candidate | None:
        """The candidate `name`, if it is made from `inputs`. See `registry.commits.made`."""
        return commits.made(self, name, inputs, replace=replace)

    @contextmanager
    def step(self, inputs_digest: str) -> Iterator[Path]:
        """The folder for the work on one step, for this process alone. It stays, so that work goes on after a failure.

        Files that a commit has made blobs already are copies here: nothing written in this folder changes a blob.

        Raises:
            BusyError: another process works on the same step.
        """
        folder = self.layout.step(inputs_digest)
        with self.locked(f"step-{inputs_digest}", wait=0, busy="another process works on the same step"):
            fs.make_lock(lock := self.layout.lock(f"step-{inputs_digest}"))
            fs.renew(lock)  # when it began: gc spares what came since
            commits.claim(folder)
            fs.unshare(folder)
            yield folder

    def commit(
        self, name: str, inputs: Inputs, model: Path, *, attachments: Path | None = None, replace: bool = False
    ) -> Candidate:
        """Makes the files below `model` the candidate `name`, without copying them. See `registry.commits.commit`."""
        return commits.commit(self, name, inputs, model, attachments=attachments, replace=replace)

    def add(
        self, name: str, source: Path | str, *, move: bool = False, replace: bool = False, insecure: bool = False
    ) -> Candidate:
        """Takes the model in `source` (a folder, hf://…, oci://…) in as a candidate. See `registry.adding.add`."""
        from registry import adding  # here, for it needs what no command that reads does

        return adding.add(self, name, source, move=move, replace=replace, insecure=insecure)
