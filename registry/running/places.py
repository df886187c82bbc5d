"""Where stages run: in containers, or as processes of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from gates.errors import UsageError
from registry import output
from registry.layout import called_outside
from registry.running.containers import Containers, opened
from registry.running.local import Processes
from registry.running.plan import Line

Where = Literal["containers", "local"]
Place = Containers | Processes


def placed(root: Path, project: Path, lines: Sequence[Line], where: Where | None, unsafe: bool) -> Place:
    """The place that is asked for; if none is, containers where they can be had, and what keeps them from it is said.

    Raises:
        UsageError: the chosen place lacks something.
    """
    stages = [task for line in lines for task in line.tasks if task.program]
    local = Processes(root, project, unsafe)
    place: Place = local
    if stages and called_outside() is not None:
        raise UsageError(
            "in a container there is neither an engine nor the environments of the stages",
            remedy="start `registry run` outside of containers",
        )
    if unsafe and where == "containers":
        raise UsageError("--unsafe-local-execution is for --local", remedy="leave it out: containers have a verifier")
    if where != "local" and not unsafe:
        try:
            place = opened(root, project)
            for task in stages:
                place.check(task)
        except UsageError as error:
            if where == "containers":
                raise
            output.hint(f"steps run as processes of this machine, not in containers: {error.what}")
            place = local
    if isinstance(place, Containers):
        place.check_registry()
    for task in stages:
        place.check(task)
    return place
