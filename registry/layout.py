"""Where things lie below a registry's root (format 1). Paths and names only; nothing here touches a disk."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from gates.errors import UsageError

ROOT = Path("models")
"""The root where neither --root nor the environment names one."""

ROOT_VARIABLE = "SLUICE_ROOT"

IN_CONTAINER = "/models"
"""Where compose.yaml mounts the root."""

FORMAT = 1

KIND = "sluice-registry"
"""What format.json says that a registry is."""

_FOLDERS = (
    "blobs/sha256",
    "manifests",
    "candidates",
    "evidence",
    "verdicts",
    "retractions",
    "waivers",
    "channels",
    "generations",
    "log",
    "mixes",
    "datasets",
    "staging",
    "trash",
    "leases",
    "locks",
)

RECORDS = ("evidence", "verdicts", "retractions", "waivers")
"""The folders of what is recorded about candidates, by manifest. It comes and goes with the manifest."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
_DIGEST = re.compile(r"[0-9a-f]{64}")


def called_outside() -> str | None:
    """In a container of compose.yaml: what the root is called outside, as .env says it, which may be relative to the
    project's folder. None: this is no container."""
    return os.environ.get("SLUICE_MODELS") if os.environ.get(ROOT_VARIABLE) == IN_CONTAINER else None


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths below `root`. Links inside are relative, so that a registry can be mounted or moved anywhere."""

    root: Path

    @property
    def marker(self) -> Path:
        return self.root / "format.json"

    @property
    def candidates(self) -> Path:
        return self.root / "candidates"

    @property
    def channels(self) -> Path:
        return self.root / "channels"

    @property
    def log(self) -> Path:
        return self.root / "log"

    @property
    def staging(self) -> Path:
        return self.root / "staging"

    @property
    def trash(self) -> Path:
        """What gc takes away lies here for a moment, before it is removed or put back."""
        return self.root / "trash"

    @property
    def mixes(self) -> Path:
        """What was frozen of mixes, by the digest of what defines them."""
        return self.root / "mixes"

    def mix(self, definition: str) -> Path:
        return self.mixes / f"{checked_digest(definition)}.json"

    @property
    def datasets(self) -> Path:
        """What is kept of public sets that packs ask, by the digest of what names them."""
        return self.root / "datasets"

    def dataset(self, definition: str) -> Path:
        return self.datasets / f"{checked_digest(definition)}.json"

    @property
    def leases(self) -> Path:
        return self.root / "leases"

    def lease(self, device: str) -> Path:
        """The file whose lock is the lease on a device: `cpu`, or a GPU's UUID (a part's may hold slashes)."""
        return self.leases / f"{device.replace('/', '_')}.lock"

    @property
    def locks(self) -> Path:
        return self.root / "locks"

    def folders(self) -> tuple[Path, ...]:
        """Every folder that a new registry has."""
        return tuple(self.root / name for name in _FOLDERS)

    def blob(self, digest: str) -> Path:
        return self.root / "blobs" / "sha256" / checked_digest(digest)[:2] / digest

    def manifest(self, digest: str) -> Path:
        return self.root / "manifests" / f"{checked_digest(digest)}.json"

    def candidate(self, name: str) -> Path:
        return self.candidates / checked_name(name)

    def model(self, name: str) -> Path:
        """The folder that vLLM and transformers load: the model and nothing else."""
        return self.candidate(name) / "model"

    def evidence(self, manifest: str) -> Path:
        return self.root / "evidence" / checked_digest(manifest)

    def verdicts(self, manifest: str) -> Path:
        return self.root / "verdicts" / checked_digest(manifest)

    def retractions(self, manifest: str) -> Path:
        return self.root / "retractions" / checked_digest(manifest)

    def waivers(self, manifest: str) -> Path:
        return self.root / "waivers" / checked_digest(manifest)

    def records(self, manifest: str) -> dict[str, Path]:
        """The folders of everything that is recorded about a candidate, by kind."""
        return {kind: self.root / kind / checked_digest(manifest) for kind in RECORDS}

    def channel(self, name: str) -> Path:
        return self.channels / checked_name(name)

    def channel_target(self, candidate: str) -> str:
        """What a channel's symlink holds."""
        return f"../candidates/{checked_name(candidate)}/model"

    def generations(self, channel: str) -> Path:
        return self.root / "generations" / checked_name(channel)

    def step(self, inputs: str) -> Path:
        """Work in progress, named by the digest of the step's inputs."""
        return self.staging / checked_digest(inputs)

    def lock(self, name: str) -> Path:
        return self.locks / f"{name}.lock"


def checked_name(name: str) -> str:
    """`name`, if a candidate or channel may be called so.

    Raises:
        UsageError: it may not.
    """
    if not is_name(name):
        raise UsageError(
            f"{name!r} is not a name", remedy="use up to 64 of a-z 0-9 . _ - and begin with a letter or a digit"
        )
    return name


def is_name(name: str) -> bool:
    return _NAME.fullmatch(name) is not None


def checked_digest(digest: str) -> str:
    if not _DIGEST.fullmatch(digest):
        raise UsageError(f"{digest!r} is not a SHA-256 digest", remedy="give all of its 64 hexadecimal digits")
    return digest


def numbered(number: int) -> str:
    """The file name of a log entry or a generation."""
    return f"{number:08d}.json"
