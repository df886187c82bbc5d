"""All stages as one view: on a terminal a bar for the step that runs and the lines above it; elsewhere the lines."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol

from registry import output


class View(Protocol):
    def begin(self, title: str) -> None:
        """A task begins; its title, such as 'v7b: prune (1 of 6)'."""

    def line(self, text: str) -> None:
        """A line that its stage wrote: a message, or JSON (progress, a preflight)."""

    def aside(self) -> AbstractContextManager[None]:
        """While it lasts, something else may write to the terminal: work in this process shows itself."""


@contextmanager
def view() -> Iterator[View]:
    if sys.stderr.isatty():
        with _live() as shown:
            yield shown
    else:
        yield _Plain()


class _Plain:
    """For logs and programs: everything, as it was written."""

    def begin(self, title: str) -> None:
        output.hint(f"── {title}")

    def line(self, text: str) -> None:
        output.hint(text)

    def aside(self) -> AbstractContextManager[None]:
        return nullcontext()


@contextmanager
def _live() -> Iterator[View]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    from rich.text import Text

    console = Console(stderr=True)
    columns = [
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TextColumn("{task.fields[amount]}", markup=False),
        TimeElapsedColumn(),
    ]
    with Progress(*columns, console=console, transient=True) as bars:
        bar = bars.add_task("", total=None, amount="", visible=False)

        class Shown:
            def begin(self, title: str) -> None:
                console.print(Text(f"── {output.printable(title)}", style="bold"))
                bars.reset(bar, total=None, description=output.printable(title), amount="", visible=True)

            def line(self, text: str) -> None:
                record = _record(text)
                if record is not None and {"total", "done"} <= record.keys():
                    bars.update(bar, total=record["total"], completed=record["done"], amount=amount(record))
                    return
                for each in told(record) if record is not None else [text]:
                    console.print(Text(output.printable(each)))

            @contextmanager
            def aside(self) -> Iterator[None]:
                bars.stop()
                try:
                    yield
                finally:
                    bars.start()

        yield Shown()


def _record(text: str) -> dict[str, Any] | None:
    """What a stage says to programs, off a terminal: an object with `what` on one line (`registry.progress`)."""
    if not text.startswith('{"what"'):
        return None
    try:
        record = json.loads(text)
    except ValueError:
        return None
    numbers = [record.get(key, 0) for key in ("total", "done", "left")]
    return record if all(isinstance(each, int | float) for each in numbers) else None


def amount(record: dict[str, Any]) -> str:
    """Beside the bar: what is done of how much, what is left of the time, and the stage's own note."""
    done, total, unit = record["done"], record["total"], record.get("unit", "")
    text = f"{output.size(int(done))} of {output.size(int(total))}" if unit == "B" else f"{done:g}/{total:g} {unit}"
    if "left" in record:
        text += f", {duration(record['left'])} left"
    return output.printable(text + (f"  {record['note']}" if record.get("note") else ""))


def told(record: dict[str, Any]) -> list[str]:
    """A report that a stage makes before it begins, in a few lines."""
    facts = [str(record[key]) for key in ("change",) if key in record]
    facts += [f"{record['tokens']:,} tokens in {record['sequences']:,} sequences"] if record.get("tokens") else []
    if "estimated_seconds" in record:
        facts.append(f"about {duration(record['estimated_seconds'])}")
    warnings = [f"warning: {each}" for each in record.get("warnings", [])]
    return [f"{record['what']}: " + ("; ".join(facts) or "sound"), *warnings]


def duration(seconds: float) -> str:
    """Seconds as people say them: 45 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
