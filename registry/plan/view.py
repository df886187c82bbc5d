"""A plan for people (a table, and a bar of the card with what fills it) and for programs."""

from __future__ import annotations

from itertools import groupby
from typing import Any

from registry.families import Spec
from registry.families.parts import in_whole_blocks
from registry.plan import BLOCK, RANK, Demand, Plan

_UNITS = {"GiB": 2**30, "MiB": 2**20, "KiB": 2**10}

_COLOURS = {
    "experts": "blue",
    "attention": "cyan",
    "shared experts": "bright_blue",
    "dense layers": "bright_cyan",
    "embeddings and head": "magenta",
    "routers and norms": "white",
    "scales": "bright_black",
    "MTP": "bright_magenta",
    "vision": "yellow",
    "KV cache": "green",
    "KV cache of the MTP head": "bright_green",
    "states of linear attention": "bright_green",
    "free": "bright_black",
    "over": "red",
}
_LETTERS = "#=+%o*:&@~x-"
"""What fills the bar where there are no colours, in the order of size."""


def record(plan: Plan) -> dict[str, Any]:
    """The plan as JSON; every size in bytes."""
    architecture, demand, least = plan.model.architecture, plan.demand, plan.least
    uneven = _uneven(plan)
    return {
        "family": architecture.family.model_type,
        "experts": architecture.experts,
        "top_k": architecture.top_k,
        "format": plan.terms.format,
        "mtp": plan.terms.mtp and plan.model.has_mtp,
        "weights": {written: {**parts, "total": sum(parts.values())} for written, parts in plan.weights.items()},
        "training": {
            written: {
                "weights": {**each.weights, "total": sum(each.weights.values())},
                "adapters": each.adapters,
                "streamed": each.streamed,
            }
            for written, each in plan.training.items()
        },
        "kv_cache": demand.kv_cache,
        "mtp_cache": demand.mtp_cache,
        "linear_state": demand.linear_state,
        "context": plan.load.context,
        "sequences": plan.load.sequences,
        "needed": demand.total,
        "card": plan.card.memory,
        "utilisation": str(plan.card.utilisation),
        "overhead": plan.card.overhead,
        "room": plan.card.room,
        "over": max(0, plan.over),
        "fits": plan.over <= 0,
        "uneven": uneven.name if uneven else None,
        "least_compression": {"compression": str(least.compression), "experts": least.experts} if least else None,
    }


def render(plan: Plan, *, name: str) -> list[str]:
    """The plan as lines, as wide and as colourful as the terminal is."""
    import io
    import sys

    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False)
    buffer = io.StringIO()
    page = Console(
        file=buffer,
        width=min(console.width, 100),
        color_system=console.color_system if console.is_terminal else None,  # type: ignore[arg-type]
        force_terminal=console.is_terminal,
        highlight=False,
    )
    page.print(_title(plan, name), style="bold", soft_wrap=True)
    unit = next(unit for unit, size in _UNITS.items() if plan.demand.total > size / 10 or unit == "KiB")
    page.print(_table(plan, unit))
    page.print(_bar(plan.demand, plan.card.room, unit, page.width - 1, coloured=console.is_terminal))
    for line in _sentences(plan, unit):
        page.print(line, soft_wrap=True)
    return buffer.getvalue().rstrip("\n").split("\n")


def _title(plan: Plan, name: str) -> str:
    architecture = plan.model.architecture
    return (
        f"{name}: {architecture.family.model_type}, {architecture.layers} layers, "
        f"{architecture.experts} experts, {architecture.top_k} a token"
    )


def _table(plan: Plan, unit: str) -> Any:
    from rich import box
    from rich.table import Table

    forms = {**plan.weights, **{written: each.weights for written, each in plan.training.items()}}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(unit)
    for written in forms:
        table.add_column(written, justify="right")
    for part in next(iter(forms.values())):
        sizes = [parts[part] for parts in forms.values()]
        if any(sizes):
            table.add_row(part, *(_in(unit, size) if size else "" for size in sizes))
    table.add_section()
    table.add_row("weights", *(_in(unit, sum(parts.values())) for parts in forms.values()))
    return table


def _bar(demand: Demand, room: int, unit: str, width: int, *, coloured: bool) -> Any:
    """The card as a line: each part its share, what is free, and beyond a mark what is over; then what is what."""
    from rich.text import Text

    parts = sorted(_filling(demand).items(), key=lambda item: -item[1])
    letters = dict(zip((part for part, _ in parts), "█" * len(parts) if coloured else _LETTERS, strict=True))
    letters["free"] = "·" if coloured else "."
    ends, filled = [], 0
    for part, size in [*parts, ("free", max(0, room - demand.total))]:
        filled += size
        ends.append((part, filled))
    edge = max(0, round(room / filled * width))
    cells: list[tuple[str, str]] = []
    for part, end in ends:
        for column in range(len(cells), round(end / filled * width)):
            over = column >= edge
            cells.append(("▒" if over and coloured else letters[part], _COLOURS["over" if over else part]))
    cells.insert(edge, ("|", "bold"))
    runs = ((cell, len(list(same))) for cell, same in groupby(cells))
    bar = Text.assemble(*((letter * length, style) for (letter, style), length in runs))
    lines = [bar]
    for part, size in [*parts, ("free", max(0, room - demand.total))]:
        entry = Text.assemble((letters[part], _COLOURS[part]), f" {part} {_in(unit, size)}   ")
        if size and (len(lines) == 1 or lines[-1].cell_len + entry.cell_len > width):
            lines.append(entry)
        elif size:
            lines[-1].append_text(entry)
    return Text("\n").join([*lines, Text()])


def _filling(demand: Demand) -> dict[str, int]:
    return {
        **demand.weights,
        "KV cache": demand.kv_cache,
        "KV cache of the MTP head": demand.mtp_cache,
        "states of linear attention": demand.linear_state,
    }


def _sentences(plan: Plan, unit: str) -> list[str]:
    card, load, least = plan.card, plan.load, plan.least
    several = "sequences" if load.sequences > 1 else "sequence"
    lines = [
        f"The card: {_in(unit, card.memory)} {unit} x {card.utilisation} - {_in(unit, card.overhead)} {unit} overhead "
        f"(assumed) = {_in(unit, card.room)} {unit} of room.",
        f"In {plan.terms.format}, with {load.sequences} {several} of {load.context:,} tokens: "
        f"{_in(unit, plan.demand.total)} {unit} needed, {_in(unit, abs(plan.over))} {unit} "
        + ("free." if plan.over <= 0 else "too much."),
    ]
    if plan.over > 0 and least:
        lines.append(f"It fits with compression {least.compression}: {least.experts} experts stay in each layer.")
    elif plan.over > 0:
        lines.append("No compression makes it fit: a shorter context, fewer sequences or a larger card would have to.")
    uneven = _uneven(plan)
    if uneven and plan.terms.format == "fp8-block":
        shape = " x ".join(map(str, uneven.shape))
        lines.append(
            f"But it cannot be quantised: block FP8 needs whole blocks of 128 x 128; {uneven.name} is {shape}."
        )
    return [*lines, *_of_training(plan, unit)]


def _uneven(plan: Plan) -> Spec | None:
    """A tensor for which `quantize` refuses the model."""
    wanted = ((spec, spec.part) for spec in plan.model.tensors if spec.part is not None and spec.part.quantized)
    return next((spec for spec, part in wanted if not in_whole_blocks(spec.name, spec.shape, part, BLOCK)), None)


def _of_training(plan: Plan, unit: str) -> list[str]:
    if not plan.training:
        return []
    weights = {written: sum(each.weights.values()) for written, each in plan.training.items()}
    first = plan.training["nf4-double"]
    vision = first.weights["vision"]
    tower = f", less {_in(unit, vision)} {unit} of the vision tower, which text does not need" if vision else ""
    return [
        f"To train it, experts in NF4 and all else in BF16: {_in(unit, weights['nf4-double'])} {unit} of weights with "
        f"double quantisation, {_in(unit, weights['nf4'])} {unit} without{tower}.",
        f"Besides, {_in(unit, first.adapters)} {unit} for adapters of rank {RANK} with gradients and Adam's state, "
        f"{_in(unit, first.streamed)} {unit} while it is measured as it would ship, and activations.",
    ]


def _in(unit: str, size: int) -> str:
    return f"{size / _UNITS[unit]:.2f}"
