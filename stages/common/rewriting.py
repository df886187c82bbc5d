"""Write a checkpoint from another, with every tensor accounted for.

    changes = [kept(checkpoint, name) for name in checkpoint.tensors]
    rewrite(checkpoint, target, changes, config={}, advance=bar.advance)

The new one keeps names, order, shards and every file that is no tensor. Each tensor of the source must be named by
exactly one change: kept, renamed, made into others, or dropped on purpose. One that is forgotten is an error, never a
silent copy or a silent loss. A few tensors are in memory at a time, whatever the model's size.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gates.errors import IntegrityError
from registry import fs
from registry.checkpoint import CONFIG, INDEX
from registry.tensors import DTYPES, Tensor, read_metadata
from stages.common.checkpoint import TORCH_DTYPES, Checkpoint
from stages.common.config import edited

_COPY = 16 << 20
_WORKERS = min(4, os.cpu_count() or 1)


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


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of the tensor `source`. Without `make`, its bytes are copied to the one product there is."""

    source: str
    products: tuple[Product, ...]
    make: Callable[[torch.Tensor], Sequence[torch.Tensor]] | None = None


def kept(checkpoint: Checkpoint, name: str, *, rename: str | None = None) -> Change:
    """The tensor stays as it is, bit by bit, perhaps under another name."""
    tensor = checkpoint.tensors[name]
    return Change(name, (Product(rename or name, tensor.dtype, tensor.shape),))


def dropped(name: str) -> Change:
    return Change(name, ())


def rewrite(
    source: Checkpoint,
    target: Path,
    changes: Sequence[Change],
    *,
    config: Mapping[str, Any],
    advance: Callable[[float], object] = lambda _: None,
) -> None:
    """Writes the checkpoint that `changes` make of `source` to the folder `target`.

    A target that an interrupted call left is finished: shards that are complete in it stay, everything else is written
    again.

    Args:
        config: the top-level keys of config.json that change, with their new values.
        advance: is told how many bytes of the source's tensors are done.

    Raises:
        IntegrityError: a tensor of the source is in no change or in several, two products have one name, or a product
            is not of the dtype and shape that were announced; nothing is written in the first three cases.
    """
    _account(source, changes)
    shards = _layouts(source, {change.source: change for change in changes})
    fs.make_folders(target)
    _clear(target, keep=shards.keys())
    for shard, layout in shards.items():
        _write_shard(source, target / shard, layout, advance)
    advance(sum(source.tensors[change.source].size for change in changes if not change.products))
    for name, path in source.files.items():
        if name not in source.shards and name not in (CONFIG, INDEX):
            fs.make_folders((target / name).parent)
            fs.copy_in(path, target / name, lambda _: None)
    text = source.files[CONFIG].read_bytes().decode()  # read_text would make other line ends of \r\n
    fs.write_new(target / CONFIG, edited(text, dict(config)).encode())
    if INDEX in source.files:
        fs.write_new(target / INDEX, _index(source.files[INDEX], shards))


def _account(source: Checkpoint, changes: Sequence[Change]) -> None:
    named = Counter(change.source for change in changes)
    _refuse([name for name in source.tensors if name not in named], "is not accounted for: no change names it", source)
    _refuse([name for name, count in named.items() if count > 1], "is accounted for more than once", source)
    _refuse([name for name in named if name not in source.tensors], "is in a change, but not in the source", source)
    products = Counter(product.name for change in changes for product in change.products)
    _refuse([name for name, count in products.items() if count > 1], "would be written more than once", source)


def _refuse(names: list[str], what: str, source: Checkpoint) -> None:
    if names:
        more = f" ({len(names)} tensors in all)" if len(names) > 1 else ""
        raise IntegrityError(f"tensor {names[0]} {what}{more}", where=str(source.folder))


def _layouts(source: Checkpoint, changes: dict[str, Change]) -> dict[str, _Layout]:
    """The new shards by name; one of which nothing is left is not written."""
    of_shard: dict[str, list[Change]] = {shard: [] for shard in source.shards}
    for name, shard in source.weight_map.items():
        of_shard[shard].append(changes[name])
    layouts = {shard: _Layout(read_metadata(source.files[shard]), group) for shard, group in of_shard.items()}
    return {shard: layout for shard, layout in layouts.items() if layout.products}


class _Layout:
    """Where everything lies in one new shard: known beforehand, so that each tensor is written at its place."""

    def __init__(self, metadata: dict[str, str], changes: list[Change]) -> None:
        self.changes = [change for change in changes if change.products]
        self.products: dict[str, Product] = {}
        self._offsets: dict[str, tuple[int, int]] = {}
        products = [product for change in changes for product in change.products]
        position = 0
        # the largest numbers first: so each tensor is aligned to its own (sorting keeps the order of equal ones)
        for product in sorted(products, key=lambda product: -DTYPES[product.dtype]):
            self.products[product.name] = product
            self._offsets[product.name] = (position, position + product.size)
            position += product.size
        self.header = self._header(metadata)
        self.size = len(self.header) + position

    def begin(self, name: str) -> int:
        """The tensor's first byte, from the start of the file."""
        return len(self.header) + self._offsets[name][0]

    def is_at(self, path: Path) -> bool:
        """Whether a complete shard of this layout is there already."""
        if not path.is_file() or path.stat().st_size != self.size:
            return False
        with path.open("rb") as file:
            return file.read(len(self.header)) == self.header

    def _header(self, metadata: dict[str, str]) -> bytes:
        entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
        for name, product in self.products.items():
            entries[name] = {
                "dtype": product.dtype,
                "shape": list(product.shape),
                "data_offsets": list(self._offsets[name]),
            }
        text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def _write_shard(source: Checkpoint, path: Path, layout: _Layout, advance: Callable[[float], object]) -> None:
    if layout.is_at(path):
        advance(sum(source.tensors[change.source].size for change in layout.changes))
        return
    temporary = fs.beside(path)
    descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(descriptor, layout.header, 0)
        os.truncate(descriptor, layout.size)

        def write(change: Change) -> int:
            for product, data in _products(source, change):
                position = layout.begin(product.name)
                for part in data:
                    position += _write_at(descriptor, part, position)
            return source.tensors[change.source].size

        # threads, because reading, casting and writing all release the interpreter's lock
        workers = ThreadPoolExecutor(_WORKERS)
        try:
            for done in workers.map(write, layout.changes):
                advance(done)
        finally:
            workers.shutdown(cancel_futures=True)  # at the first failure, or when the stage is told to end
    finally:
        os.close(descriptor)
    fs.rename_file(temporary, path)


def _products(source: Checkpoint, change: Change) -> Iterator[tuple[Product, Iterator[Any]]]:
    """Each product with its bytes, in parts."""
    if change.make is None:
        yield change.products[0], _parts(source.tensors[change.source])
        return
    where = f"{source.folder}, tensor {change.source}"
    tensors = change.make(source.tensor(change.source))
    if len(tensors) != len(change.products):
        raise IntegrityError(f"{len(tensors)} tensors were made of it, not {len(change.products)}", where=where)
    for product, tensor in zip(change.products, tensors, strict=True):
        if tensor.dtype != TORCH_DTYPES[product.dtype] or tuple(tensor.shape) != product.shape:
            made = f"{tensor.dtype} {list(tensor.shape)}"
            raise IntegrityError(f"{product.name} was made as {made}, not {product.dtype} {product.shape}", where=where)
        yield product, iter([tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data])


def _parts(tensor: Tensor) -> Iterator[bytes]:
    with tensor.file.open("rb") as file:
        file.seek(tensor.begin)
        left = tensor.size
        while left:
            part = file.read(min(left, _COPY))
            if not part:
                raise IntegrityError("the file ends within a tensor", where=str(tensor.file))
            left -= len(part)
            yield part


def _write_at(descriptor: int, data: Any, position: int) -> int:
    view, written = memoryview(data), 0
    while written < len(view):
        written += os.pwrite(descriptor, view[written:], position + written)
    return written


def _clear(target: Path, *, keep: Any) -> None:
    """Removes what an interrupted call left, but for shards. It is never written over in place: a file of the step may
    be a blob of the registry too, by then."""
    for path in target.iterdir():
        if path.name not in keep:
            fs.remove_tree(path)


def _index(source: Path, shards: dict[str, _Layout]) -> bytes:
    index = json.loads(source.read_bytes())
    metadata = {key: value for key, value in (index.get("metadata") or {}).items() if key != "total_parameters"}
    products = {name: (shard, product) for shard, layout in shards.items() for name, product in layout.products.items()}
    metadata["total_size"] = sum(product.size for _, product in products.values())
    weight_map = {name: products[name][0] for name in sorted(products)}
    return (json.dumps({"metadata": metadata, "weight_map": weight_map}, indent=2) + "\n").encode()
