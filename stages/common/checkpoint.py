"""Read a checkpoint tensor by tensor: nothing is in memory but what was asked for.

    checkpoint = Checkpoint(folder)
    checkpoint.tensors                                   every tensor's name, dtype, shape and place
    checkpoint.tensor("model.layers.0.mlp.gate.weight")  a torch tensor

`stages.common.rewriting` writes another checkpoint from one.
"""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

from gates.errors import IntegrityError
from registry.checkpoint import CONFIG, read_config
from registry.families import architecture_of
from registry.tensors import DTYPES, Tensor, read_header

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
        self.architecture = architecture_of(self.config, where=str(folder / CONFIG))
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
        entry = self._entry(name)
        return self.numbers(name, 0, math.prod(entry.shape)).view(entry.shape)

    def numbers(self, name: str, begin: int, end: int) -> torch.Tensor:
        """The numbers of the tensor `name` from `begin` up to `end`, counted over the whole tensor; one axis.

        Raises:
            IntegrityError: as `tensor`.
        """
        entry = self._entry(name)
        width = DTYPES[entry.dtype]
        return self.bytes_of(name, begin * width, end * width).view(TORCH_DTYPES[entry.dtype])

    def bytes_of(self, name: str, begin: int, end: int) -> torch.Tensor:
        """As `numbers`, for bytes of any dtype: uint8."""
        entry = self._entry(name)
        buffer = torch.empty(end - begin, dtype=torch.uint8)
        view, filled = memoryview(buffer.numpy()), 0
        descriptor = os.open(entry.file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            while filled < len(view):
                count = os.preadv(descriptor, [view[filled:]], entry.begin + begin + filled)
                if count == 0:
                    raise IntegrityError("the file ends within this tensor", where=f"{entry.file}, tensor {name}")
                filled += count
        finally:
            os.close(descriptor)
        return buffer

    def _entry(self, name: str) -> Tensor:
        entry = self.tensors.get(name)
        if entry is None:
            raise IntegrityError(f"there is no tensor {name}", where=str(self.folder))
        return entry
