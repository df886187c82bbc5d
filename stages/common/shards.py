"""The shards of a new checkpoint: where every tensor lies is known before a byte is written, so each has its place."""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from registry import fs
from registry.checkpoint import SINGLE
from registry.tensors import DTYPES

_SYNC = 256 << 20
"""Bytes after which a shard begins to become durable, so that little is left to wait for at its end."""


@dataclass(frozen=True, slots=True)
class Product:
    """A tensor of the new checkpoint. `dtype` is called as safetensors calls it, such as BF16."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """Bytes."""
        return math.prod(self.shape) * DTYPES[self.dtype]


class Layout:
    """One new shard."""

    def __init__(self, metadata: Mapping[str, str], products: Iterable[Product]) -> None:
        self.products: dict[str, Product] = {}
        self._offsets: dict[str, tuple[int, int]] = {}
        position = 0
        # the largest numbers first: so each tensor is aligned to its own (sorting keeps the order of equal ones)
        for product in sorted(products, key=lambda product: -DTYPES[product.dtype]):
            self.products[product.name] = product
            self._offsets[product.name] = (position, position + product.size)
            position += product.size
        self.header = self._header(metadata)
        self.size = len(self.header) + position
        """Bytes of the file."""

    def begin(self, name: str) -> int:
        """The tensor's first byte, from the start of the file."""
        return len(self.header) + self._offsets[name][0]

    def is_at(self, path: Path) -> bool:
        """Whether a complete shard of this layout is there already."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        with path.open("rb") as file:
            return file.read(len(self.header)) == self.header

    def _header(self, metadata: Mapping[str, str]) -> bytes:
        entries: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
        for name, product in self.products.items():
            entries[name] = {
                "dtype": product.dtype,
                "shape": list(product.shape),
                "data_offsets": list(self._offsets[name]),
            }
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


class ShardFile:
    """A shard that is being written under a temporary name, by several threads at their own places."""

    def __init__(
        self,
        path: Path,
        layout: Layout,
        changes: int,
        syncing: ThreadPoolExecutor,
        seal: Callable[[str, Iterable[str]], object],
    ) -> None:
        self.layout = layout
        self._path, self._syncing, self._seal = path, syncing, seal
        self._temporary = fs.beside(path)
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._left, self._unsynced = changes, 0
        self._waits: list[Future[None]] = []

    def write(self, data: Any, position: int) -> None:
        view, written = memoryview(data), 0
        while written < len(view):
            written += os.pwrite(self._file(), view[written:], position + written)
        with self._lock:
            self._unsynced += written
            if self._unsynced >= _SYNC:
                self._unsynced = 0
                self._waits.append(self._syncing.submit(fs.sync_file, self._temporary))

    def done(self) -> None:
        """One change is written; after the last one the shard becomes durable and gets its name."""
        with self._lock:
            self._left -= 1
            if self._left == 0:
                self._waits.append(self._syncing.submit(self._finish))

    def durable(self) -> None:
        for wait in self._waits:
            wait.result()

    def close(self) -> None:
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def _finish(self) -> None:
        self._file()  # of empty tensors alone, nothing was written yet
        self._seal(self._path.name, self.layout.products)
        fs.rename_file(self._temporary, self._path)
        self.close()

    def _file(self) -> int:
        with self._lock:
            if self._descriptor is None:
                descriptor = os.open(self._temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
                self._descriptor = descriptor
                os.pwrite(descriptor, self.layout.header, 0)
                os.truncate(descriptor, self.layout.size)
            return self._descriptor


def packed(groups: Iterable[tuple[Product, ...]], size: int) -> list[str]:
    """The shard of each group of tensors, if shards are filled in order up to `size` bytes of tensors.

    A group is not torn apart, and one that is larger than `size` has a shard for itself.
    """
    numbers, number, filled = [], 0, 0
    for group in groups:
        added = sum(product.size for product in group)
        if filled and filled + added > size:
            number, filled = number + 1, 0
        filled += added
        numbers.append(number)
    if number == 0:
        return [SINGLE] * len(numbers)
    return [f"model-{each + 1:05d}-of-{number + 1:05d}.safetensors" for each in numbers]


def index_of(layouts: Mapping[str, Layout], metadata: Mapping[str, Any]) -> bytes:
    """The index of these shards. `metadata` is what another index had there; sizes in it are made new or left out."""
    products = {
        name: (shard, product) for shard, layout in layouts.items() for name, product in layout.products.items()
    }
    kept = {key: value for key, value in metadata.items() if key != "total_parameters"}
    kept["total_size"] = sum(product.size for _, product in products.values())
    weight_map = {name: products[name][0] for name in sorted(products)}
    return (json.dumps({"metadata": kept, "weight_map": weight_map}, indent=2) + "\n").encode()
