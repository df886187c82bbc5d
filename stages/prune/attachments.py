"""What a prune leaves beside the model for people and for `registry compare`: the scores, and a picture of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from gates import canonical
from registry.choices import SCORES
from registry.recipes import Prune

if TYPE_CHECKING:
    from stages.prune.criteria import Choice

HEAT_MAP = "scores.svg"


def attachments(choices: Sequence[Choice], settings: Prune) -> dict[str, bytes]:
    """The files, by name.

    scores.json holds the criterion and, for each layer with experts, what each expert scored, how many tokens were
    routed to it (null where no data were looked at) and which stay. scores.svg is the same as a heat map.
    """
    layers = [
        {"layer": each.layer, "scores": each.scores, "counts": each.counts, "kept": each.kept} for each in choices
    ]
    scores = {
        "criterion": settings.criterion,
        "renormalize_router": settings.renormalize_router,
        "layers": layers,
    }
    return {SCORES: canonical.dumps(scores), HEAT_MAP: heat_map(choices, settings.criterion).encode()}


def unasked(choices: Sequence[Choice]) -> str | None:
    """How many experts no token was routed to, in a sentence; None if there are none."""
    silent = [(each.layer, each.counts.count(0)) for each in choices if each.counts and 0 in each.counts]
    if not silent:
        return None
    layers = ", ".join(str(layer) for layer, _ in silent[:8]) + (" …" if len(silent) > 8 else "")
    return (
        f"{sum(count for _, count in silent)} of {sum(len(each.scores) for each in choices)} experts saw no token and "
        f"score 0 (layers {layers}): a larger or broader mix would tell more of them"
    )


def heat_map(choices: Sequence[Choice], criterion: str) -> str:
    """Layers (downwards) by experts, as SVG: the darker, the higher an expert scores within its layer.

    Colours are ranks, not sizes: each layer's experts in eight equal classes, because scores grow by orders of
    magnitude from the first layer to the last.
    """
    experts = max((len(each.scores) for each in choices), default=0)
    wide, high = max(4, min(16, 1024 // max(experts, 1))), 10
    width, height = wide * experts, high * len(choices)
    cells: dict[str, list[str]] = {colour: [] for colour in (*_RAMP, _GONE, _SILENT)}
    rows: list[str] = []
    for row, choice in enumerate(choices):
        y = row * high
        for expert, colour in enumerate(_colours(choice)):
            cells[colour].append(f"M{expert * wide} {y}h{wide}v{high}h-{wide}z")
        rows.append(f'<text x="-4" y="{y + 8}" text-anchor="end" font-size="8">{choice.layer}</text>')
        rows.append(
            f"<g><title>{_told(choice)}</title>" + _box(0, y, width, high, "none", 'pointer-events="all"') + "</g>"
        )
    paths = [f'<path fill="{colour}" d="{"".join(each)}"/>' for colour, each in cells.items() if each]
    heading = f"{criterion.replace('_', ' ')}: layer by expert"
    page = max(width, 450) + 46, height + 62
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-30 -26 {page[0]} {page[1]}" width="{page[0]}" '
        f'height="{page[1]}" font-family="sans-serif" font-size="11" role="img" aria-label="{heading}">'
        f"{_box(-30, -26, *page, '#fff')}"
        f'<text y="-10">{heading}</text>{"".join(paths)}{_box(0, 0, width, height, "none", _LINE)}{"".join(rows)}'
        f'<g transform="translate(0 {height + 12})">{_legend()}</g></svg>\n'
    )


_RAMP = ("#e3eef7", "#cadeee", "#a9cae3", "#83b1d5", "#5b96c4", "#387aaf", "#1c5c93", "#0b3d6b")
_GONE = "#f4c7ae"
_SILENT = "#ffffff"
_LINE = 'stroke="#999" stroke-width="0.5"'


def _colours(choice: Choice) -> list[str]:
    """The colour of each expert: its rank within the layer, or why it has none."""
    size, kept = len(choice.scores), set(choice.kept)
    order = sorted(range(size), key=lambda expert: (choice.scores[expert], -expert))
    colours = [""] * size
    for rank, expert in enumerate(order):
        colours[expert] = _RAMP[rank * len(_RAMP) // size] if expert in kept else _GONE
    for expert, count in enumerate(choice.counts or ()):
        if count == 0:
            colours[expert] = _SILENT
    return colours


def _told(choice: Choice) -> str:
    told = f"layer {choice.layer}: {len(choice.kept)} of {len(choice.scores)} experts stay"
    return told if choice.counts is None else f"{told}, {choice.counts.count(0)} saw no token"


def _box(x: int, y: int, width: int, height: int, fill: str, more: str = "") -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" fill="{fill}" {more}/>'


def _legend() -> str:
    ramp = "".join(_box(14 * number, 0, 14, 10, colour) for number, colour in enumerate(_RAMP))
    return (
        f'{ramp}<text x="118" y="9">stays, by rank in its layer</text>'
        f'{_box(270, 0, 14, 10, _GONE)}<text x="290" y="9">removed</text>'
        f'{_box(345, 0, 14, 10, _SILENT, _LINE)}<text x="365" y="9">saw no token</text>'
    )
