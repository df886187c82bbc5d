"""Where every tensor and byte went: the quantised checkpoint held against its source, by kind of tensor.

Both sides are read from the headers on disk, not from what the cast was told to do, so a kind that a tool passes over
without a word shows up as what it is.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from gates import canonical
from gates.errors import IntegrityError
from registry import output
from registry.checkpoint.facts import FP8_BLOCK, is_scale
from registry.families import Architecture, Part
from registry.families.parts import SCALE_SUFFIX
from registry.tensors import Tensor
from stages.quantize.fp8 import Noise

KINDS = (
    "experts",
    "shared experts",
    "attention",
    "linear attention",
    "dense mlp",
    "router",
    "norms",
    "embeddings",
    "head",
    "vision",
    "MTP",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """The tensors of one kind that have one format.

    tensors: of the source; matrices: of the quantised checkpoint, scales not counted, which are more where experts lay
        in 3D tensors.
    before, after: bytes, scales counted.
    mean, worst: ‖w - ŵ‖ / ‖w‖ over its matrices; None where nothing was cast. worst_in names the matrix.
    """

    kind: str
    format: str
    tensors: int
    matrices: int
    before: int
    after: int
    mean: float | None
    worst: float | None
    worst_in: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    rows: tuple[Row, ...]
    layers: Mapping[str, Mapping[int, tuple[float, float]]]
    """By kind and layer: the mean and the worst relative error of its matrices."""

    @property
    def before(self) -> int:
        """Bytes of the source's tensors."""
        return sum(row.before for row in self.rows)

    @property
    def after(self) -> int:
        return sum(row.after for row in self.rows)

    def to_bytes(self) -> bytes:
        """Canonical JSON: rows, and the errors by layer."""
        layers = {
            kind: [{"layer": layer, "mean": mean, "worst": worst} for layer, (mean, worst) in sorted(found.items())]
            for kind, found in self.layers.items()
        }
        return canonical.dumps({"rows": [asdict(row) for row in self.rows], "layers": layers})


def account_of(
    architecture: Architecture,
    source: Mapping[str, Tensor],
    made: Mapping[str, Tensor],
    noise: Mapping[str, Noise],
) -> Account:
    """Every tensor of `source` and `made` in exactly one row.

    Raises:
        IntegrityError: numbers of a kind and layer were lost or came from nowhere, or what had to be quantised was not.
    """
    _refuse_lost(architecture, source, made)
    before: dict[tuple[str, str], list[Tensor]] = defaultdict(list)
    for name, tensor in source.items():
        part = _part(architecture, name)
        before[_kind(name, part), _format(part, tensor)].append(tensor)
    after: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name, tensor in made.items():
        weight = name.removesuffix(SCALE_SUFFIX) if is_scale(name) else name
        part = _part(architecture, weight)
        after[_kind(weight, part), FP8_BLOCK if part.quantized else tensor.dtype].append(name)
    rows = [_row(key, before[key], after[key], made, noise) for key in sorted(before, key=_order)]
    return Account(rows=tuple(rows), layers=_by_layer(architecture, noise))


def table(account: Account) -> list[str]:
    """The account in lines, for people."""
    head = ("kind", "tensors", "before", "after", "format", "error", "worst")
    lines = [
        (
            row.kind,
            f"{row.tensors}" if row.tensors == row.matrices else f"{row.tensors} → {row.matrices}",
            output.size(row.before),
            output.size(row.after),
            row.format,
            "" if row.mean is None else f"{row.mean:.4f}",
            "" if row.worst is None else f"{row.worst:.4f}",
        )
        for row in account.rows
    ]
    total = ("", str(sum(row.tensors for row in account.rows)), output.size(account.before), output.size(account.after))
    body = [*lines, (*total, "", "", "")]
    widths = [max(len(line[column]) for line in (head, *body)) for column in range(len(head))]
    return [_aligned(line, widths) for line in (head, *body)]


def _aligned(cells: Iterable[str], widths: list[int]) -> str:
    shown = [
        cell.ljust(width) if column in (0, 4) else cell.rjust(width)
        for column, (cell, width) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(shown).rstrip()


def _refuse_lost(architecture: Architecture, source: Mapping[str, Tensor], made: Mapping[str, Tensor]) -> None:
    """As many numbers as before in each kind and layer, and in E4M3 where they have to be."""
    counts: Counter[tuple[str, int | None]] = Counter()
    for name, tensor in source.items():
        part = _part(architecture, name)
        counts[_kind(name, part), part.layer] += math.prod(tensor.shape)
    for name, tensor in made.items():
        if is_scale(name):
            continue
        part = _part(architecture, name)
        counts[_kind(name, part), part.layer] -= math.prod(tensor.shape)
        if part.quantized and tensor.dtype != "F8_E4M3":
            raise IntegrityError(f"{name} was not quantised: {tensor.dtype}", where=str(tensor.file))
        if part.quantized and name + SCALE_SUFFIX not in made:
            raise IntegrityError(f"{name} has no scales", where=str(tensor.file))
    for (kind, layer), left in counts.items():
        if left:
            where = "" if layer is None else f" of layer {layer}"
            raise IntegrityError(
                f"{abs(left)} numbers of the {kind}{where} {'were lost' if left > 0 else 'are too many'}"
            )


def _part(architecture: Architecture, name: str) -> Part:
    part = architecture.part(name)
    if part is None:
        raise IntegrityError(f"tensor {name} belongs to no kind: it is not the family's")
    return part


def _kind(name: str, part: Part) -> str:
    if part.mtp:
        return "MTP"
    if part.role == "attention" and ".linear_attn." in name:
        return "linear attention"
    if part.role == "embeddings" and name.startswith("lm_head."):
        return "head"
    return "dense mlp" if part.role == "dense" else part.role


def _format(part: Part, tensor: Tensor) -> str:
    return FP8_BLOCK if part.quantized else tensor.dtype


def _order(key: tuple[str, str]) -> tuple[int, bool, str]:
    kind, form = key
    return KINDS.index(kind), form != FP8_BLOCK, form


def _row(
    key: tuple[str, str],
    before: list[Tensor],
    after: list[str],
    made: Mapping[str, Tensor],
    noise: Mapping[str, Noise],
) -> Row:
    errors = {name: noise[name].relative for name in after if name in noise}
    worst = max(errors, key=lambda name: errors[name], default=None)
    return Row(
        kind=key[0],
        format=key[1],
        tensors=len(before),
        matrices=sum(not is_scale(name) for name in after),
        before=sum(tensor.size for tensor in before),
        after=sum(made[name].size for name in after),
        mean=sum(errors.values()) / len(errors) if errors else None,
        worst=errors[worst] if worst is not None else None,
        worst_in=worst,
    )


def _by_layer(architecture: Architecture, noise: Mapping[str, Noise]) -> dict[str, dict[int, tuple[float, float]]]:
    errors: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for name, each in noise.items():
        part = _part(architecture, name)
        if part.layer is not None:
            errors[_kind(name, part)][part.layer].append(each.relative)
    return {
        kind: {layer: (sum(found) / len(found), max(found)) for layer, found in sorted(layers.items())}
        for kind, layers in sorted(errors.items(), key=lambda item: KINDS.index(item[0]))
    }
