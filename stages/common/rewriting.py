"""Write a checkpoint from another, with every number accounted for.

    changes = [kept(checkpoint, name) for name in checkpoint.tensors]
    rewrite(checkpoint, target, changes, config={}, advance=bar.advance)

The new one keeps names, order, shards (or gets shards of a size) and every file that is no tensor. Each tensor of the
source must be named by changes that cover it once from end to end: kept, renamed, made into others, or dropped on
purpose. What is forgotten is an error, never a silent copy or a silent loss.

Reading, making and writing overlap, and so does waiting for the disk: a finished shard becomes durable while the next
one is written. A few pieces of tensors are in memory at a time, whatever the size of tensors, shards and model.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gates.errors import IntegrityError
from registry import bulk, fs
from registry.checkpoint import CONFIG, INDEX
from registry.parallel import pool
from registry.tensors import DTYPES, read_metadata
from stages.common.checkpoint import TORCH_DTYPES, Checkpoint
from stages.common.config import edited
from stages.common.shards import Layout, Product, ShardFile, index_of, packed

__all__ = ["Change", "Product", "dropped", "kept", "rewrite"]

_PIECE = 8 << 20
"""Bytes of the source that a worker has in memory at a time, where a tensor can be made piece by piece."""
_WORKERS = min(8, (os.cpu_count() or 1) + 2)
"""Two more than there are processors: these wait for the disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The numbers of a tensor from `begin` up to `end`, counted over all of it: such as one expert of a 3D tensor."""

    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Change:
    """What becomes of the tensor `source`, or of spans of it. Without `make`, the bytes are copied to the one product.

    spans: the numbers that are used, in this order; None is all of them.
    rows: `make` is given the tensor as a matrix of the source's columns, a multiple of so many rows at a time, and what
        it returns is appended to the products; 0 is the tensor as a whole, in its own shape.
    """

    source: str
    products: tuple[Product, ...]
    make: Callable[[torch.Tensor], Sequence[torch.Tensor]] | None = None
    spans: tuple[Span, ...] | None = None
    rows: int = 0


def kept(checkpoint: Checkpoint, name: str, *, rename: str | None = None) -> Change:
    """The tensor stays as it is, bit by bit, perhaps under another name."""
    tensor = checkpoint.tensors[name]
    return Change(name, (Product(rename or name, tensor.dtype, tensor.shape),))


def dropped(name: str, spans: tuple[Span, ...] | None = None) -> Change:
    return Change(name, (), spans=spans)


def rewrite(
    source: Checkpoint,
    target: Path,
    changes: Sequence[Change],
    *,
    config: Mapping[str, Any],
    advance: Callable[[float], object] = lambda _: None,
    shard_size: int | None = None,
    seal: Callable[[str, Iterable[str]], object] = lambda _shard, _names: None,
) -> None:
    """Writes the checkpoint that `changes` make of `source` to the folder `target`.

    A target that an interrupted call left is finished: shards that are complete in it stay, everything else is written
    again. A shard has its name when it is complete and durable.

    Args:
        config: the top-level keys of config.json that change, with their new values.
        advance: is told how many bytes of the source's tensors are done.
        shard_size: bytes of tensors in a shard; None keeps the source's shards.
        seal: is told a shard's name and those of its tensors when the last one was made, before the shard gets that
            name; on another thread.

    Raises:
        IntegrityError: a number of the source is in no change or in several, two products have one name, or a product
            is not of the dtype and shape that were announced; nothing is written in the first three cases.
    """
    _account(source, changes)
    work = _by_shard(source, changes, shard_size)
    layouts = {shard: _layout(source, group) for shard, group in work.items()}
    fs.make_folders(target)
    _clear(target, keep=layouts.keys())
    _write_shards(source, target, work, layouts, advance, seal)
    advance(sum(_bytes(source, change) for change in changes if not change.products))
    for name, path in source.files.items():
        if name not in source.shards and name not in (CONFIG, INDEX):
            fs.make_folders((target / name).parent)
            bulk.copy_in(path, target / name, lambda _: None)
    text = source.files[CONFIG].read_bytes().decode()  # read_text would make other line ends of \r\n
    fs.write_new(target / CONFIG, edited(text, dict(config)).encode())
    if len(layouts) > 1 or (shard_size is None and INDEX in source.files):
        index = json.loads(source.files[INDEX].read_bytes()) if INDEX in source.files else {}
        fs.write_new(target / INDEX, index_of(layouts, index.get("metadata") or {}))


def _account(source: Checkpoint, changes: Sequence[Change]) -> None:
    spans: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for change in changes:
        spans[change.source] += [(span.begin, span.end) for span in _spans(source, change)]
    _refuse([name for name in source.tensors if name not in spans], "is not accounted for: no change names it", source)
    _refuse([name for name in spans if name not in source.tensors], "is in a change, but not in the source", source)
    uncovered, repeated = [], []
    for name, found in spans.items():
        size, position = math.prod(source.tensors[name].shape), 0
        for begin, end in sorted(span for span in found if span[0] < span[1]):
            if begin != position:
                (uncovered if begin > position else repeated).append(name)
            position = max(position, end)
        if position != size:
            uncovered.append(name)
        if size == 0 and len(found) > 1:
            repeated.append(name)
    _refuse(list(dict.fromkeys(repeated)), "is accounted for more than once", source)
    _refuse(list(dict.fromkeys(uncovered)), "is not accounted for: no change names a part of it", source)
    products: dict[str, int] = defaultdict(int)
    for change in changes:
        for product in change.products:
            products[product.name] += 1
    _refuse([name for name, count in products.items() if count > 1], "would be written more than once", source)


def _refuse(names: list[str], what: str, source: Checkpoint) -> None:
    if names:
        more = f" ({len(names)} tensors in all)" if len(names) > 1 else ""
        raise IntegrityError(f"tensor {names[0]} {what}{more}", where=str(source.folder))


def _spans(source: Checkpoint, change: Change) -> tuple[Span, ...]:
    tensor = source.tensors.get(change.source)
    whole = Span(begin=0, end=math.prod(tensor.shape) if tensor else 0)
    return (whole,) if change.spans is None else change.spans


def _bytes(source: Checkpoint, change: Change) -> int:
    width = DTYPES[source.tensors[change.source].dtype]
    return sum(span.end - span.begin for span in _spans(source, change)) * width


def _by_shard(source: Checkpoint, changes: Sequence[Change], shard_size: int | None) -> dict[str, list[Change]]:
    """The new shards by name; one of which nothing is left is not written."""
    order = {name: number for number, name in enumerate(source.tensors)}
    making = sorted((change for change in changes if change.products), key=lambda change: order[change.source])
    if shard_size is None:
        names = [source.weight_map[change.source] for change in making]
    else:
        names = packed((change.products for change in making), shard_size)
    work: dict[str, list[Change]] = {}
    for name, change in zip(names, making, strict=True):
        work.setdefault(name, []).append(change)
    return work


def _layout(source: Checkpoint, changes: list[Change]) -> Layout:
    metadata = read_metadata(source.files[source.weight_map[changes[0].source]])
    return Layout(metadata, [product for change in changes for product in change.products])


def _write_shards(
    source: Checkpoint,
    target: Path,
    work: Mapping[str, list[Change]],
    layouts: Mapping[str, Layout],
    advance: Callable[[float], object],
    seal: Callable[[str, Iterable[str]], object],
) -> None:
    """All changes in order, over the borders of shards: while one becomes durable, the next is written."""
    stop = threading.Event()
    open_shards: list[ShardFile] = []
    try:
        # threads, because reading, casting and writing all release the interpreter's lock
        with ThreadPoolExecutor(1) as syncing, pool(_WORKERS) as workers:
            done: list[tuple[Future[None], int]] = []
            try:
                for name, changes in work.items():
                    if layouts[name].is_at(target / name):
                        advance(sum(_bytes(source, change) for change in changes))
                        continue
                    shard = ShardFile(target / name, layouts[name], len(changes), syncing, seal)
                    open_shards.append(shard)
                    done += [(workers.submit(_do, source, shard, each, stop), _bytes(source, each)) for each in changes]
                for future, size in done:
                    future.result()
                    advance(size)
                for shard in open_shards:
                    shard.durable()
            finally:  # also at the first failure, or when the stage is told to end
                stop.set()
    except Exception:
        # An interruption ends the process. Repeated, it may leave a thread at work, and the number of a descriptor that
        # is closed under it may be another file's by then.
        for shard in open_shards:
            shard.close()
        raise


class _Stopped(Exception):
    """Another change failed, or the stage was told to end."""


def _do(source: Checkpoint, shard: ShardFile, change: Change, stop: threading.Event) -> None:
    places = {product.name: shard.layout.begin(product.name) for product in change.products}
    ends = {name: place + shard.layout.products[name].size for name, place in places.items()}
    where = f"{source.folder}, tensor {change.source}"
    for piece in _pieces(source, change):
        if stop.is_set():
            raise _Stopped
        made = change.make(piece) if change.make else [piece]
        if len(made) != len(change.products):
            raise IntegrityError(f"{len(made)} tensors were made of it, not {len(change.products)}", where=where)
        for product, tensor in zip(change.products, made, strict=True):
            if not _fits(product, tensor, change) or places[product.name] + tensor.nbytes > ends[product.name]:
                form = f"{tensor.dtype} {list(tensor.shape)}"
                raise IntegrityError(
                    f"{product.name} was made as {form}, not {product.dtype} {product.shape}", where=where
                )
            data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
            shard.write(data, places[product.name])
            places[product.name] += tensor.nbytes
    for name, place in places.items():
        if place != ends[name]:
            raise IntegrityError(f"{name} was made with {ends[name] - place} bytes too few", where=where)
    shard.done()


def _fits(product: Product, tensor: torch.Tensor, change: Change) -> bool:
    if change.make is None:
        return True  # bytes; the sum of them is held against the product's
    same = tuple(tensor.shape[1:]) == product.shape[1:] if change.rows else tuple(tensor.shape) == product.shape
    return same and tensor.dtype == TORCH_DTYPES[product.dtype]


def _pieces(source: Checkpoint, change: Change) -> Iterator[torch.Tensor]:
    """What `make` is given, piece by piece; bytes, where nothing is to be made."""
    if change.make and not change.rows:
        yield source.tensor(change.source)
        return
    entry = source.tensors[change.source]
    width = DTYPES[entry.dtype]
    columns = entry.shape[-1] if entry.shape else 1
    band = max(1, change.rows * columns)
    step = max(1, _PIECE // (band * width)) * band
    for span in _spans(source, change):
        for begin in range(span.begin, span.end, step):
            end = min(begin + step, span.end)
            if change.make:
                yield source.numbers(change.source, begin, end).view(-1, columns)
            else:
                yield source.bytes_of(change.source, begin * width, end * width)


def _clear(target: Path, *, keep: Any) -> None:
    """Removes what an interrupted call left, but for shards. It is never written over in place: a file of the step may
    be a blob of the registry too, by then."""
    for path in target.iterdir():
        if path.name not in keep:
            fs.remove_tree(path)
