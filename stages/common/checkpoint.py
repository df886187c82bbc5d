"""Read a checkpoint tensor by tensor: nothing is in memory but what was asked for.

    checkpoint = Checkpoint(folder)
    checkpoint.tensors                                   every tensor's name, dtype, shape and place
    checkpoint.tensor("model.layers.0.mlp.gate.weight")  a torch tensor

`stages.common.rewriting` writes another checkpoint from one.
"""

from __future__ import annotations

from pathlib import Path

import torch

from gates.errors import IntegrityError
from registry.checkpoint import CONFIG, read_config
from registry.families import family_of
from registry.tensors import Tensor, read_header

TORCH_DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I32": torch.int32,
    "F32": torch.float32,
    "I64": torch.int64,
    "F64": torch.float64,
}


class Checkpoint:
    """A folder with config.json and safetensors, read lazily.

    Raises:
        IntegrityError: it is damaged.
        UsageError: a family that Sluice does not know.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = {
            path.relative_to(folder).as_posix(): path.resolve() for path in folder.rglob("*") if path.is_file()
        }
        """Every file by its name. Links are followed once, here: the folder may be replaced while it is read."""
        self.config = read_config(folder)
        self.family = family_of(self.config, where=str(folder / CONFIG))
        self.tensors: dict[str, Tensor] = {}
        """In the order of the shards and of the tensors in them."""
        self.weight_map: dict[str, str] = {}
        """The shard of each tensor."""
        for shard in self.shards:
            header = read_header(self.files[shard])
            self.tensors |= header
            self.weight_map |= dict.fromkeys(header, shard)

    @property
    def shards(self) -> list[str]:
        """The names of the files with tensors."""
        return sorted(name for name in self.files if name.endswith(".safetensors"))

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.size for tensor in self.tensors.values())

    def tensor(self, name: str) -> torch.Tensor:
        """The tensor `name`, in memory of its own.

        Raises:
            IntegrityError: there is none, or its file was cut since the header was read.
        """
        entry = self.tensors.get(name)
        if entry is None:
            raise IntegrityError(f"there is no tensor {name}", where=str(self.folder))
        buffer = bytearray(entry.size)
        with entry.file.open("rb") as file:
            file.seek(entry.begin)
            if file.readinto(buffer) != entry.size:
                raise IntegrityError("the file ends within this tensor", where=f"{entry.file}, tensor {name}")
        dtype = TORCH_DTYPES[entry.dtype]
        flat = torch.frombuffer(buffer, dtype=dtype) if buffer else torch.empty(0, dtype=dtype)
        return flat.view(entry.shape)
