"""What casting measured, kept shard by shard: a shard that stays is not measured again."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gates import canonical
from gates.errors import IntegrityError
from registry import fs
from stages.quantize.fp8 import Noise


class Journal:
    """Notes in a folder beside the model, one a shard; without a folder, in memory alone.

    Shards in `target` that have no note are removed, because what they cost is not known.

    Args:
        noise: by the name of the new tensor; filled while shards are written.
    """

    def __init__(self, folder: Path | None, target: Path, noise: dict[str, Noise]) -> None:
        self._folder, self._noise = folder, noise
        self._sealed: set[str] = set()
        for shard in sorted(target.glob("*.safetensors")) if target.is_dir() else ():
            if folder is None or not (folder / f"{shard.name}.json").is_file():
                fs.remove_tree(shard)

    def seal(self, shard: str, names: Iterable[str]) -> None:
        """Notes what the tensors of a shard cost, before it counts as finished."""
        self._sealed.add(shard)
        if self._folder is None:
            return
        found = {name: [self._noise[name].lost, self._noise[name].power] for name in names if name in self._noise}
        fs.make_folders(self._folder)
        fs.write_content(self._folder / f"{shard}.json", canonical.dumps(found))

    def complete(self) -> dict[str, Noise]:
        """Of every tensor: as measured now or, for shards that stayed, as noted.

        Raises:
            IntegrityError: a note is damaged.
        """
        for note in sorted(self._folder.glob("*.json")) if self._folder and self._folder.is_dir() else ():
            if note.name.removesuffix(".json") not in self._sealed:
                self._take(note)
        return self._noise

    def _take(self, note: Path) -> None:
        found = canonical.loads(note.read_bytes(), where=str(note))
        try:
            self._noise |= {name: Noise(float(lost), float(power)) for name, (lost, power) in found.items()}
        except (AttributeError, TypeError, ValueError):
            raise IntegrityError(
                "the note on a finished shard is damaged", where=str(note), remedy="remove it and run this again"
            ) from None
