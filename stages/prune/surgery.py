"""Take experts out of a checkpoint on disk.

The experts that stay keep their bytes and move up to fill the gaps: of 0 … 7 with 1 and 4 removed, 2 is called 1 and 5
is called 3. Where all experts of a layer lie in one tensor, theirs are the slices that stay. The router keeps their
rows and its correction bias their numbers, config.json states how many they are, and every other tensor is as it was.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from stages.common.checkpoint import Checkpoint
from stages.common.rewriting import Change, Product, Span, dropped, kept, rewrite


def write_pruned(
    source: Checkpoint,
    staying: Mapping[int, Sequence[int]],
    target: Path,
    *,
    drop_mtp: bool = False,
    advance: Callable[[float], object] = lambda _: None,
) -> None:
    """Writes `source` with the experts of `staying` alone to the folder `target`.

    Args:
        staying: for each layer that has experts, multi-token-prediction layers among them, those that stay, ascending;
            as many in every layer.
        drop_mtp: leaves the multi-token-prediction layers out, and config.json says that there are none.
        advance: is told how many bytes of the source's tensors are done.

    Raises:
        IntegrityError: the source is damaged, or has an expert twice.
    """
    counts = {len(experts) for experts in staying.values()}
    assert len(counts) == 1, "config.json states one number for all layers"
    changes = [change for name in source.tensors for change in _changes(source, name, staying, drop_mtp)]
    config = source.architecture.count_changes(counts.pop())
    if drop_mtp and source.architecture.mtp_layers:
        config |= source.architecture.mtp_changes(0)
    rewrite(source, target, changes, config=config, advance=advance)


def _changes(source: Checkpoint, name: str, staying: Mapping[int, Sequence[int]], drop_mtp: bool) -> list[Change]:
    part = source.architecture.part(name)
    if part is not None and part.mtp and drop_mtp:
        return [dropped(name)]
    if part is None or part.kind == "other":
        return [kept(source, name)]
    assert part.layer is not None
    experts = staying[part.layer]
    if part.kind != "expert":
        return _slices(source, name, experts)
    if part.expert not in experts:
        return [dropped(name)]
    prefix = source.architecture.layer_prefix(part.layer)
    before, _, after = name.removeprefix(prefix).partition(f".{part.expert}.")
    return [kept(source, name, rename=f"{prefix}{before}.{experts.index(part.expert)}.{after}")]


def _slices(source: Checkpoint, name: str, experts: Sequence[int]) -> list[Change]:
    """What the tensor holds for the experts that stay, and what it holds for the others: their axis is the first in
    every family."""
    tensor = source.tensors[name]
    size = math.prod(tensor.shape[1:])
    spans = [Span(begin=expert * size, end=(expert + 1) * size) for expert in range(tensor.shape[0])]
    stay = tuple(spans[expert] for expert in experts)
    product = Product(name, tensor.dtype, (len(experts), *tensor.shape[1:]))
    return [Change(name, (product,), spans=stay), dropped(name, tuple(span for span in spans if span not in stay))]
