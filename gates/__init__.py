"""Gates: evidence in, verdict out. Pure and self-contained: no files, no network, no torch.

What a caller needs stands here; the modules behind it are free to move.
"""

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
