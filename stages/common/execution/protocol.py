"""What the harness and the verifier say to each other over the socket: lines, on one connection for each execution.

The verifier says the digest of its limits; the harness, an execution; the verifier, "waiting" now and then while others
are before it, "running" when it begins, and the result, or why it is unable to execute anything of the kind.
"""

from __future__ import annotations

from stages.common.execution import values
from stages.common.execution.limits import LIMITS, REVISION
from stages.common.execution.records import LARGEST_REQUEST, Execution, Result, detail, is_detail

WAITING = b"waiting"
RUNNING = b"running"
LONGEST_LINE = LARGEST_REQUEST + LIMITS.returned


def hello() -> bytes:
    return REVISION.encode()


def result_line(result: Result) -> bytes:
    return values.dumps(result.to_json()).encode() + b"\n"


class UnableError(Exception):
    """The verifier's own fault: it cannot execute programs, or not in this language."""


def result_of(line: bytes, execution: Execution) -> Result:
    """
    Raises:
        UnableError: it says so.
        ValueError: `line` is no result of this execution.
    """
    raw = values.loads(line.decode())
    if isinstance(raw, dict) and raw.keys() == {"unable"} and is_detail(raw["unable"]):
        raise UnableError(raw["unable"])
    result = Result.from_json(raw)
    if result.outcome == "done" and len(result.values) != len(execution.calls):
        raise ValueError("a result of another execution")
    return result


def unable_line(why: str) -> bytes:
    return values.dumps({"unable": detail(why)}).encode() + b"\n"
