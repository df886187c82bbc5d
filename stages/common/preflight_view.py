"""A preflight for people (a table, a bar of the mix, what is asked of the machine) and for programs."""

from __future__ import annotations

import io
import json
import sys
from typing import Any

from registry import output
from stages.common.preflight import Report, Share, on_the_way, warnings

_COLOURS = ("blue", "green", "magenta", "cyan", "yellow", "red", "bright_blue", "bright_green")
_LETTERS = "#=+%o*:@"
"""What fills the bar where there are no colours."""


def record(report: Report) -> dict[str, Any]:
    """The report as JSON: bytes, seconds, shares from 0 to 1."""
    reading, demand, free = report.reading, report.demand, report.machine
    return {
        "stage": report.stage,
        "makes": report.makes,
        "source": report.source,
        "family": report.family,
        "change": report.change,
        "datasets": [
            {
                "dataset": share.dataset,
                "rows": share.rows,
                "tokens": share.tokens,
                "share": _part(share, report),
                "cut_rows": share.cut_rows,
                "cut_tokens": share.cut_tokens,
            }
            for share in reading.shares
        ],
        "tokens": reading.tokens,
        "padded_tokens": reading.amount.padded,
        "sequences": reading.amount.sequences,
        "batches": reading.amount.batches,
        "sequence_length": report.sequence_length,
        "packing": report.packing,
        "disk": {
            "output": demand.output,
            "spool": demand.spool,
            "kept": demand.kept,
            "needed": demand.disk,
            "free": free.disk,
        },
        "memory": {"needed": demand.host, "free": free.host},
        "device": {"name": free.device_name, "needed": demand.device, "free": free.device},
        "estimated_seconds": round(demand.seconds, 3),
        "basis": demand.basis,
        "warnings": list(warnings(report)),
        "preflight_seconds": round(report.seconds, 2),
    }


def show(report: Report, *, as_json: bool) -> None:
    """The report as the result of a command: on a terminal for people, elsewhere (or if asked for) as JSON."""
    if as_json or not sys.stdout.isatty():
        output.data(record(report))
        return
    for line in render(report, sys.stdout):
        output.text(line)


def tell(report: Report) -> None:
    """The report on stderr, before the work begins: a line of JSON where that is no terminal, as progress is."""
    if not sys.stderr.isatty():
        output.hint(json.dumps({"what": f"preflight {report.makes}", **record(report)}))
        return
    for line in render(report, sys.stderr):
        output.hint(line)


def render(report: Report, stream: Any) -> list[str]:
    """The report as lines, as wide and as colourful as the terminal `stream` is."""
    from rich.console import Console

    console = Console(file=stream, highlight=False)
    buffer = io.StringIO()
    coloured = console.is_terminal and console.color_system is not None
    page = Console(
        file=buffer,
        width=min(console.width, 110),
        color_system=console.color_system if coloured else None,  # type: ignore[arg-type]
        force_terminal=console.is_terminal,
        highlight=False,
    )
    page.print(f"{report.stage} {report.makes}, from {report.source} ({report.family}): {report.change}", style="bold")
    if report.reading.shares:
        page.print(_table(report, coloured=coloured))
        page.print(_bar(report, page.width - 1, coloured=coloured))
    for line in _sentences(report):
        page.print(line, soft_wrap=True)
    for line in warnings(report):
        page.print(f"note: {line}", style="yellow", soft_wrap=True)
    return buffer.getvalue().rstrip("\n").split("\n")


def _table(report: Report, *, coloured: bool) -> Any:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    table.add_column("dataset", overflow="fold")
    for name in ("rows", "tokens", "share", "rows cut", "tokens cut"):
        table.add_column(name, justify="right", no_wrap=True)
    for number, share in enumerate(report.reading.shares):
        letter, colour = _mark(number, coloured=coloured)
        table.add_row(Text(letter, colour), Text(share.dataset), *_row(share, f"{100 * _part(share, report):.1f} %"))
    table.add_section()
    shares = report.reading.shares
    total = Share(
        dataset="all",
        rows=sum(share.rows for share in shares),
        tokens=report.reading.tokens,
        cut_rows=sum(share.cut_rows for share in shares),
        cut_tokens=sum(share.cut_tokens for share in shares),
    )
    table.add_row("", total.dataset, *_row(total, ""))
    return table


def _row(share: Share, part: str) -> list[str]:
    return [
        f"{share.rows:,}",
        f"{share.tokens:,}",
        part,
        f"{share.cut_rows:,}" if share.cut_rows else "",
        f"{share.cut_tokens:,}" if share.cut_tokens else "",
    ]


def _bar(report: Report, width: int, *, coloured: bool) -> Any:
    """The mix as a line: each dataset its share of the tokens."""
    from rich.text import Text

    bar, reached = Text(), 0
    for number, share in enumerate(report.reading.shares):
        letter, colour = _mark(number, coloured=coloured)
        reached += share.tokens
        bar.append(letter * (round(reached / report.reading.tokens * width) - len(bar)), colour)
    return bar


def _mark(number: int, *, coloured: bool) -> tuple[str, str]:
    return "█" if coloured else _LETTERS[number % len(_LETTERS)], _COLOURS[number % len(_COLOURS)]


def _sentences(report: Report) -> list[str]:
    reading, demand, free = report.reading, report.demand, report.machine
    size = output.size
    lines = []
    if reading.amount.batches:
        packed = "packed into" if report.packing else "in"
        lines.append(
            f"{reading.tokens:,} tokens {packed} {reading.amount.sequences:,} sequences of at most "
            f"{report.sequence_length:,}, {reading.amount.batches:,} batches."
        )
    lines.append(
        f"Disk: {report.makes} {size(demand.output)}, on the way there {on_the_way(demand)}; "
        f"{size(demand.disk)} at once, {size(free.disk)} free."
    )
    known = f", {size(free.host)} free" if free.host is not None else ""
    memory = f"Memory, estimated: {size(demand.host)}{known}"
    if demand.device:
        known = f", {size(free.device)} free" if free.device is not None else ""
        memory += f"; on {free.device_name} {size(demand.device)}{known}"
    lines.append(memory + ".")
    lines.append(f"Time, estimated, with nothing else at work: {_time(demand.seconds)} ({demand.basis}).")
    lines.append(f"Checked in {report.seconds:.1f} s; nothing is begun yet.")
    return lines


def _part(share: Share, report: Report) -> float:
    return share.tokens / report.reading.tokens


def _time(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
