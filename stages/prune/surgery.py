"""Take experts out of a checkpoint on disk.

The experts that stay keep their bytes and move up to fill the gaps: of 0 … 7 with 1 and 4 removed, 2 is called 1 and 5
is called 3. The router keeps their rows, config.json states their number, and every other tensor is as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from stages.common.checkpoint import Checkpoint
from stages.common.config import count_changes
from stages.common.rewriting import Change, Product, dropped, kept, rewrite


def write_pruned(
    source: Checkpoint,
    staying: Mapping[int, Sequence[int]],
    target: Path,
    *,
    advance: Callable[[float], object] = lambda _: None,
) -> None:
    """Writes `source` with the experts of `staying` alone to the folder `target`.

    Args:
        staying: for each layer that has experts, those that stay, ascending; as many in every layer.
        advance: is told how many bytes of the source's tensors are done.

    Raises:
        IntegrityError: the source is damaged, or has an expert twice.
    """
    counts = {len(experts) for experts in staying.values()}
    assert len(counts) == 1, "config.json states one number for all layers"
    changes = [_change(source, name, staying) for name in source.tensors]
    config = count_changes(source.family, source.config, counts.pop())
    rewrite(source, target, changes, config=config, advance=advance)


def _change(source: Checkpoint, name: str, staying: Mapping[int, Sequence[int]]) -> Change:
    expert = source.family.expert.fullmatch(name)
    if expert is not None:
        layer, number = staying[int(expert["layer"])], int(expert["expert"])
        if number not in layer:
            return dropped(name)
        renamed = name[: expert.start("expert")] + str(layer.index(number)) + name[expert.end("expert") :]
        return kept(source, name, rename=renamed)
    router = source.family.router.fullmatch(name)
    if router is not None:
        return _rows_kept(source, name, staying[int(router["layer"])])
    return kept(source, name)


def _rows_kept(source: Checkpoint, name: str, experts: Sequence[int]) -> Change:
    """The rows of the experts that stay: their axis is the first in every family."""
    tensor = source.tensors[name]
    index = torch.tensor(experts)
    product = Product(name, tensor.dtype, (len(experts), *tensor.shape[1:]))
    return Change(name, (product,), lambda router: [router.index_select(0, index)])
