"""A candidate's identity: what it is and what it was made from.

A manifest holds no time, host, user or duration, so the same work gives the same manifest; the log holds those.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from gates import canonical
from gates.records import Digest, Name, Record

FORMAT: Literal[1] = 1

Op = Literal["add", "derive", "prune", "train", "quantize"]


class File(Record):
    """A file of the model: where its bytes are, and how many (bytes)."""

    digest: Digest
    size: int = Field(ge=0)


class Taken(Record):
    """What a mix took from one dataset."""

    dataset: str
    count: int = Field(ge=1)


class MixUse(Record):
    """The calibration rows that a step saw. `rows` is the blob of exactly those rows, one JSON value a line."""

    name: Name
    rows: Digest
    datasets: tuple[Taken, ...]
    definition: Digest | None = None
    """What the rows followed from, where that is not at hand: the mix's text, and the digests of its local files."""


class Shape(Record):
    """The facts about a model that people choose by."""

    family: str
    layers: int = Field(ge=1)
    experts: int = Field(ge=1)
    top_k: int = Field(ge=1)
    quantization: str | None
    """None, or the format of the quantised weights, such as fp8-block."""
    tensor_bytes: int = Field(ge=0)


class Inputs(Record):
    """What a step is made from. Two steps with equal inputs make the same candidate.

    `code` is the revision of the op's code: it changes when the same inputs would give another candidate, not with
    every release. `settings` are the recipe's, with every default written out and exact decimals as text. An added
    folder has no parent: its files are its inputs (`settings["files"]` holds the digest over their names and digests).
    """

    op: Op
    parent: Digest | None
    settings: dict[str, Any]
    mix: MixUse | None = None
    seed: int | None = None
    code: str

    def differences(self, other: Inputs) -> list[str]:
        """The fields in which two steps differ, as 'settings.compression: 0.25 / 0.5'."""
        mine, theirs = _flat(self.model_dump(mode="json")), _flat(other.model_dump(mode="json"))
        return [
            f"{field}: {mine.get(field)} / {theirs.get(field)}"
            for field in sorted(mine.keys() | theirs.keys())
            if mine.get(field) != theirs.get(field)
        ]


class Manifest(Record):
    format: Literal[1] = FORMAT
    inputs: Inputs
    shape: Shape
    files: dict[str, File]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())


def files_digest(files: dict[str, File]) -> str:
    """One digest over the names and contents of a model's files."""
    return canonical.digest(canonical.dumps({name: file.digest for name, file in files.items()}))


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            k: v for key, item in value.items() for k, v in _flat(item, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: value}
