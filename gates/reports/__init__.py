"""Reports: one model of what is to be said of a verdict, and what it is written as."""

from gates.reports.building import Load, build, deciding
from gates.reports.html import html, page_of_all, picture
from gates.reports.junit import junit
from gates.reports.markdown import markdown
from gates.reports.model import Ancestor, Condition, Flip, PackResult, Part, Report, Subject
from gates.reports.overview import Entry, Made, Overview
from gates.reports.training import Trained, Training

_WRITERS = {"md": markdown, "json": Report.to_bytes, "junit": junit, "html": html}

KINDS = tuple(_WRITERS)


def render(report: Report, kind: str) -> bytes:
    """The report as one of `KINDS`."""
    return _WRITERS[kind](report)


__all__ = [
    "KINDS",
    "Ancestor",
    "Condition",
    "Entry",
    "Flip",
    "Load",
    "Made",
    "Overview",
    "PackResult",
    "Part",
    "Report",
    "Subject",
    "Trained",
    "Training",
    "build",
    "deciding",
    "page_of_all",
    "picture",
    "render",
]
