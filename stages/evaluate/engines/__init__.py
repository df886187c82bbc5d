"""Engines: what serves a candidate while it is asked.

An engine describes itself before it is started, so that evidence taken under the same conditions is found without
starting anything; then it serves a folder until it is stopped, and nothing of it is left. `embedded` is for a first
try, `vllm` is what ships. A server that somebody else has started (`elsewhere`) is neither started nor stopped.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from gates.errors import UsageError
from registry.manifests import Shape
from registry.recipes import Evaluate
from stages.evaluate.engines import elsewhere, embedded, vllm
from stages.evaluate.engines.server import Description, Engine

__all__ = ["Description", "Engine", "describe", "start"]

_KINDS = {"embedded": embedded, "vllm": vllm}


def describe(settings: Evaluate, project: Path, shape: Shape, *, where: str) -> Description:
    """The engine that the recipe names; where it names none, the one of SLUICE_ENGINE, or else `embedded`.

    Args:
        shape: the candidate's, since an engine may not be able to serve it here.
        where: the step, for messages.

    Raises:
        UsageError: there is no such engine, it is not installed, or it cannot serve this candidate as asked.
    """
    name = settings.engine or os.environ.get("SLUICE_ENGINE") or "embedded"
    if name not in _KINDS:
        raise UsageError(
            f"there is no engine {name!r}", where="SLUICE_ENGINE", remedy=f"choose one of {', '.join(_KINDS)}"
        )
    return _KINDS[name].describe(settings, project, shape, where=where)


def start(description: Description, folder: Path, *, keep: Sequence[int] = ()) -> AbstractContextManager[Engine]:
    """Serves `folder` as the description says, until the context ends; then nothing of it is left.

    Args:
        keep: descriptors that the server inherits: those of the lease on its device.

    Raises:
        InvalidEvidence: the server did not come up, or is not what the description says.
    """
    kind = _KINDS[description.engine] if description.base_url is None else elsewhere
    return kind.start(description, folder, keep=keep)
