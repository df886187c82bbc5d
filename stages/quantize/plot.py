"""The relative error by layer, as a picture that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape

WIDTH, HEIGHT = 640, 240

_COLOURS = ("#3b82c4", "#d1495b", "#3f9c6d", "#c78a1e", "#8a63b8", "#6b7280")
"""Readable on white and on black."""


def error_plot(layers: Mapping[str, Mapping[int, tuple[float, float]]]) -> str:
    """An SVG with a line for each kind of tensor: its mean relative error by layer, and dots for the worst matrix.

    Args:
        layers: by kind and layer, mean and worst.
    """
    numbers = sorted({layer for found in layers.values() for layer in found})
    top = _above(max((worst for found in layers.values() for _, worst in found.values()), default=0.0))
    last = max(numbers, default=0)

    def x(layer: int) -> float:
        return round(layer / max(last, 1) * WIDTH, 1)

    def y(error: float) -> float:
        return round(HEIGHT - error / top * HEIGHT, 1)

    parts = [
        f'<line x1="0" x2="{WIDTH}" y1="{y(tick)}" y2="{y(tick)}" class="g"/>'
        f'<text x="-6" y="{y(tick)}" class="y">{tick:g}</text>'
        for tick in (round(top * step / 4, 10) for step in range(5))
    ]
    every = max(1, -(-len(numbers) // 16))
    parts += [f'<text x="{x(layer)}" y="{HEIGHT + 16}" class="x">{layer}</text>' for layer in numbers[::every]]
    for number, (kind, found) in enumerate(layers.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        line = " ".join(f"{x(layer)},{y(mean)}" for layer, (mean, _) in sorted(found.items()))
        dots = "".join(
            f'<circle cx="{x(layer)}" cy="{y(worst)}" r="2"><title>{escape(kind)}, layer {layer}: '
            f"mean {mean:.4f}, worst {worst:.4f}</title></circle>"
            for layer, (mean, worst) in sorted(found.items())
        )
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<g fill="{colour}" fill-opacity="0.6">{dots}</g>')
        parts.append(f'<text x="{WIDTH + 12}" y="{12 + 16 * number}" style="fill:{colour}">{escape(kind)}</text>')
    label = "relative error by layer: lines are means, dots the worst matrix"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-60 -32 {WIDTH + 190} {HEIGHT + 72}" '
        f'font-family="sans-serif" font-size="11" role="img" aria-label="{label}">'
        "<style>text{fill:#444}.g{stroke:#999;stroke-opacity:.3}.y{text-anchor:end;dominant-baseline:central}"
        ".x{text-anchor:middle}@media(prefers-color-scheme:dark){text{fill:#ccc}}</style>"
        f'<text y="-14">{label}</text>{"".join(parts)}'
        f'<text x="{WIDTH / 2:g}" y="{HEIGHT + 34}" class="x">layer</text></svg>\n'
    )


def _above(largest: float) -> float:
    """The next round number (1, 2 or 5 times a power of ten) from `largest` up; 1 for nothing."""
    if largest <= 0:
        return 1.0
    power = 10.0 ** (len(str(int(1 / largest))) * -1) if largest < 1 else 1.0
    return next(power * step for step in (1, 2, 5, 10, 20, 50, 100) if power * step >= largest)
