"""Gates: evidence in, verdict out. Pure and self-contained: no files, no network, no torch.

What a caller needs stands here; the modules behind it are free to move. They are imported when they are asked for: a
list of candidates needs none of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gates.evidence import check, incomparable, totals
    from gates.policy import Policy, explain, parse_policy
    from gates.records import Conditions, Evidence, Row, Verdict, exit_code
    from gates.reports import build, render
    from gates.verdicts import judge

__all__ = [
    "Conditions",
    "Evidence",
    "Policy",
    "Row",
    "Verdict",
    "build",
    "check",
    "exit_code",
    "explain",
    "incomparable",
    "judge",
    "parse_policy",
    "render",
    "totals",
]

_MODULES = {
    "Conditions": "gates.records",
    "Evidence": "gates.records",
    "Policy": "gates.policy",
    "Row": "gates.records",
    "Verdict": "gates.records",
    "build": "gates.reports",
    "check": "gates.evidence",
    "exit_code": "gates.records",
    "explain": "gates.policy",
    "incomparable": "gates.evidence",
    "judge": "gates.verdicts",
    "parse_policy": "gates.policy",
    "render": "gates.reports",
    "totals": "gates.evidence",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
