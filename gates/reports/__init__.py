"""Reports: one model of what is to be said of a verdict, and what it is written as."""

from gates.reports.building import Load, build, deciding
from gates.reports.markdown import markdown
from gates.reports.model import Ancestor, Condition, Flip, PackResult, Part, Report, Subject


def render(report: Report, kind: str) -> bytes:
    """The report as one of `KINDS`."""
    if kind == "json":
        return report.to_bytes()
    subject = report.subject
    return markdown(report.verdict, candidate=subject.candidate, baseline=subject.baseline).encode()


KINDS = ("md", "json")

__all__ = [
    "KINDS",
    "Ancestor",
    "Condition",
    "Flip",
    "Load",
    "PackResult",
    "Part",
    "Report",
    "Subject",
    "build",
    "deciding",
    "render",
]
