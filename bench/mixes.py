"""What the mix does: the toy pruned with every mix of mixes/toy at several depths, and scored on each of its skills.

    python bench/mixes.py [--small] [--depths 0.25,0.375,0.5] [--draws 1] [--picture docs/mixes.svg]

The mixes T-G have 120 rows, of which T % are tool calls and G % sums, facts and letters in equal parts; `narrow` is
128 rows of sums, `broad` 64 of each. Each prune is the stage's own, and each score that of the toy's own packs at
temperature 0, answered here without a server. Where two mixes keep the same experts they are scored once. Further draws
take other rows of the same mixes, by other seeds.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from measuring import PROJECT, Aim, end, machine, table

if TYPE_CHECKING:
    from registry.manifests import MixUse
    from stages.common.calibration import Batch

sys.path.insert(0, str(PROJECT))
TOY = PROJECT / "stages" / "toy" / "checkpoint"
SKILLS = ("toolcall", "arithmetic", "facts", "strings")
DEPTHS = "0.25,0.375,0.5"
SMALL = (("100-0", "50-50", "0-100"), ["0.25"])
AT_ONCE = 60
"""Questions that are answered together."""

Scores = dict[str, float]
"""Percent of the questions answered right, by skill."""


@dataclass(frozen=True, slots=True)
class Point:
    """One mix at one depth: `general` and `tokens` are the shares (0 to 1) of what is not tool calls, of its rows and
    of its tokens."""

    mix: str
    depth: str
    general: float
    tokens: float
    draws: tuple[Scores, ...]

    def mean(self, skill: str) -> float:
        return sum(scores[skill] for scores in self.draws) / len(self.draws)

    def range(self, skill: str) -> tuple[float, float]:
        found = [scores[skill] for scores in self.draws]
        return min(found), max(found)


def main() -> None:
    parser = argparse.ArgumentParser(description="What the mix does to each skill of the toy, at several depths.")
    parser.add_argument("--small", action="store_true", help="three mixes at one depth")
    parser.add_argument("--depths", default=DEPTHS, help="compressions, with commas between them")
    parser.add_argument("--draws", type=int, default=1, help="how often the rows of each mix are drawn")
    parser.add_argument("--picture", type=Path, help="where to draw it: an SVG")
    options = parser.parse_args()
    every = sorted(path.stem for path in (PROJECT / "mixes" / "toy").glob("*.yaml"))
    mixes, depths = SMALL if options.small else (every, options.depths.split(","))
    print(f"{machine()}\n")
    begun = time.perf_counter()
    points = sorted(_measured(mixes, depths, options.draws), key=lambda point: (point.depth, point.general, point.mix))
    seconds = time.perf_counter() - begun
    head = ("depth, mix", "general rows, %", "general tokens, %", *SKILLS)
    shown = [
        (
            f"{point.depth}, {point.mix}",
            f"{100 * point.general:.0f}",
            f"{100 * point.tokens:.0f}",
            *(_shown(point, skill) for skill in SKILLS),
        )
        for point in points
    ]
    print(table(head, shown) + f"\n\n{len(points) * options.draws} prunes and their scores in {seconds:.0f} s\n")
    if options.picture:
        options.picture.write_text(_picture(points), encoding="utf-8")
    at = {point.mix: point.mean("toolcall") for point in points if point.depth == depths[0]}
    ratio = at["50-50"] / max(at["0-100"], 1.0)
    end([Aim("tool calls at 0.25: 50-50, of no tool calls in the mix", ratio, 2.0, at_least=True)], small=options.small)


def _shown(point: Point, skill: str) -> str:
    least, most = point.range(skill)
    return f"{point.mean(skill):.1f}" + (f" ({least:.1f} to {most:.1f})" if least != most else "")


def _measured(mixes: Sequence[str], depths: Sequence[str], draws: int) -> list[Point]:
    import torch
    from transformers.utils import logging

    from stages.common import preflight

    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    known: dict[str, Scores] = {}
    points = []
    for mix in mixes:
        readings = [
            preflight.read(TOY, *_rows(mix, seed), sequence_length=2048, packing=False) for seed in range(draws)
        ]
        shares = readings[0].shares
        other = [share for share in shares if "toolcall" not in share.dataset]
        general = sum(share.rows for share in other) / sum(share.rows for share in shares)
        tokens = sum(share.tokens for share in other) / readings[0].tokens
        for depth in depths:
            scores = tuple(_scores(reading.batches, depth, known) for reading in readings)
            points.append(Point(mix, depth, general, tokens, scores))
            print(f"{depth} {mix}: {scores}", file=sys.stderr, flush=True)
    return points


def _rows(mix: str, seed: int) -> tuple[MixUse, bytes]:
    """What the mix takes with another seed."""
    from registry.recipes import read_mix
    from stages.common import calibration

    stated = read_mix(PROJECT / "mixes" / "toy" / f"{mix}.yaml").model_copy(update={"seed": seed})
    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        file.write(stated.model_dump_json(exclude_unset=True))
        file.flush()
        return calibration.take(file.name, PROJECT)


def _scores(batches: list[Batch], depth: str, known: dict[str, Scores]) -> Scores:
    from registry.recipes import Prune, experts_kept
    from stages.common.checkpoint import Checkpoint
    from stages.common.streaming import LayerStream
    from stages.prune import layers, surgery

    checkpoint = Checkpoint(TOY)
    settings = Prune(compression=Decimal(depth), mix="-")
    architecture = checkpoint.architecture
    keep = experts_kept(architecture.experts, settings.compression, top_k=architecture.top_k)
    with tempfile.TemporaryDirectory(prefix="bench-mixes-") as name:
        folder = Path(name)
        choices = layers.choices(LayerStream(checkpoint), settings, keep, batches, folder / "spool")
        staying = {choice.layer: choice.kept for choice in choices if choice is not None}
        if str(staying) not in known:
            surgery.write_pruned(checkpoint, staying, folder / "model")
            known[str(staying)] = _answered(folder / "model")
    return known[str(staying)]


def _answered(folder: Path) -> Scores:
    from stages.evaluate.packs import read_pack
    from stages.evaluate.server.model import Generator, Prompt
    from stages.evaluate.server.parsing import Parsers, parse

    model = Generator(folder, device="cpu", dtype="float32")
    scores = {}
    for skill in SKILLS:
        pack = read_pack(PROJECT, f"toy-{skill}")
        points = 0.0
        for first in range(0, len(pack.items), AT_ONCE):
            items = pack.items[first : first + AT_ONCE]
            asked = [
                Prompt(model.render(item.messages, item.tools, enable_thinking=True), pack.max_tokens, 0.0, 0)
                for item in items
            ]
            for item, answer in zip(items, model.complete(asked), strict=True):
                text = model.decode(answer.ids[:-1] if answer.stopped else answer.ids, skip_special=not item.tools)
                parsed = parse(text, Parsers(), thinking=True, tools=bool(item.tools))
                calls = [{"function": {"name": name, "arguments": arguments}} for name, arguments in parsed.calls]
                message = {"role": "assistant", "content": parsed.content, "tool_calls": calls}
                reason = ("tool_calls" if calls else "stop") if answer.stopped else "length"
                response = {"choices": [{"message": message, "finish_reason": reason}]}
                points += pack.grader.grade(item, [response]).points
        scores[skill] = round(100 * points / len(pack.items), 1)
    return scores


WIDTH, HEIGHT, BETWEEN = 260, 180, 44
_COLOURS = ("#d1495b", "#3b82c4", "#3f9c6d", "#c78a1e")
"""Readable on white and on black."""


def _picture(points: Sequence[Point]) -> str:
    """A plot for each depth, side by side: a line for each skill over the general share; `narrow` and `broad`, which
    are no part of that row of mixes, are left out."""
    depths = sorted({point.depth for point in points})
    parts = []
    for number, depth in enumerate(depths):
        found = [point for point in points if point.depth == depth and "-" in point.mix]
        parts.append(f'<g transform="translate({number * (WIDTH + BETWEEN)} 0)">{_plot(depth, found)}</g>')
    right = len(depths) * (WIDTH + BETWEEN) - BETWEEN
    for number, skill in enumerate(SKILLS):
        x = number * 110
        parts.append(f'<rect x="{x}" y="{HEIGHT + 46}" width="12" height="4" fill="{_COLOURS[number]}"/>')
        parts.append(f'<text x="{x + 18}" y="{HEIGHT + 52}">{escape(skill)}</text>')
    label = "the toy pruned with mixes from tool calls alone to none: score by skill"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-44 -48 {right + 60} {HEIGHT + 112}" '
        f'width="{right + 60}" height="{HEIGHT + 112}" font-family="sans-serif" font-size="11" role="img" '
        f'aria-label="{label}"><style>text{{fill:#444}}.g{{stroke:#999;stroke-opacity:.3}}'
        ".y{text-anchor:end;dominant-baseline:central}.x{text-anchor:middle}"
        "@media(prefers-color-scheme:dark){text{fill:#ccc}}</style>"
        f'<text y="-32" font-size="12">{label}</text>{"".join(parts)}</svg>\n'
    )


def _plot(depth: str, points: Sequence[Point]) -> str:
    def x(share: float) -> float:
        return round(share * WIDTH, 1)

    def y(score: float) -> float:
        return round(HEIGHT * (1 - score / 100), 1)

    parts = [f'<text y="-10">compression {depth}</text>']
    for tick in (0, 25, 50, 75, 100):
        parts.append(f'<line x1="0" x2="{WIDTH}" y1="{y(tick)}" y2="{y(tick)}" class="g"/>')
        parts.append(f'<text x="-6" y="{y(tick)}" class="y">{tick}</text>')
        parts.append(f'<text x="{x(tick / 100)}" y="{HEIGHT + 15}" class="x">{tick}</text>')
    parts.append(f'<text x="{WIDTH / 2:g}" y="{HEIGHT + 30}" class="x">general rows, %</text>')
    for number, skill in enumerate(SKILLS):
        line = " ".join(f"{x(point.general)},{y(point.mean(skill))}" for point in points)
        dots = "".join(
            f'<circle cx="{x(point.general)}" cy="{y(point.mean(skill))}" r="2.5">'
            f"<title>{escape(point.mix)}: {skill} {_shown(point, skill)}</title></circle>"
            for point in points
        )
        colour = _COLOURS[number]
        parts.append(f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<g fill="{colour}">{dots}</g>')
    return "".join(parts)


if __name__ == "__main__":
    main()
