"""The command that serves a candidate under the flags that it was judged with. Nothing is started here.

A score says something about what is served only if it is served as it was asked: the same parsers, the same flags. They
stand in the conditions of the evidence.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gates import canonical
from gates.errors import IntegrityError, UsageError
from gates.records import Conditions, Evidence
from registry import generations, retractions
from registry.store import Store

OFFLINE = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}
"""The environment in which vLLM fetches nothing and reports to nobody."""

HOST, PORT = "127.0.0.1", 8000

_CODE = (
    *("trust-remote-code", "tool-parser-plugin", "reasoning-parser-plugin", "middleware", "logits-processors"),
    *("worker-cls", "worker-extension-cls", "scheduler-cls", "config"),
)
"""Flags that make vLLM run code which it did not come with, or read further flags from a file."""

_BEARING = ("engine_version", "reasoning_parser", "tool_parser", "server_flags")


def command(store: Store, name: str, *, host: str = HOST, port: int = PORT) -> list[str]:
    """The words after `vllm` that serve the candidate or channel `name` as it was judged, its folder resolved once.

    Raises:
        UsageError: nothing says under which flags it was judged, or evidence disagrees.
        IntegrityError: a record is damaged.
    """
    folder = store.candidate(name).resolved()
    judged = agreed(_evidence(store, name), name=name)
    return words(
        folder,
        served_as=name,
        host=host,
        port=port,
        reasoning_parser=str(judged.reasoning_parser),
        tool_parser=str(judged.tool_parser),
        flags=judged.server_flags or {},
    )


def agreed(evidence: Mapping[str, Evidence], *, name: str) -> Conditions:
    """The conditions, as far as they bear on serving, of all evidence that was taken on vLLM.

    Raises:
        UsageError: there is none, not all of it was taken with the same flags, or one of them runs code from elsewhere.
    """
    remedy = f"evaluate {name} on vLLM, gate it and promote it again; or start vLLM with flags of your own choice"
    known = [
        each.conditions
        for each in evidence.values()
        if each.conditions.engine == "vllm" and all(getattr(each.conditions, field) is not None for field in _BEARING)
    ]
    if not known:
        raise UsageError(f"no evidence that {name} was judged by says with which flags of vLLM", remedy=remedy)
    differing = [field for field in _BEARING if len({canonical.dumps(getattr(each, field)) for each in known}) > 1]
    if differing:
        raise UsageError(f"{name} was judged with more than one {' and '.join(differing)}", remedy=remedy)
    if foreign := running_code(known[0].server_flags or {}):
        what = f"{name} was judged with --{foreign[0]}, which runs code from elsewhere; nothing is served so"
        raise UsageError(what, remedy=f"evaluate {name} without it")
    return known[0]


def words(
    folder: Path,
    *,
    served_as: str,
    host: str,
    port: int,
    reasoning_parser: str,
    tool_parser: str,
    flags: Mapping[str, Any],
) -> list[str]:
    """The words after `vllm`. A parser called `none` is left out."""
    found = ["serve", str(folder), "--host", host, "--port", str(port), "--served-model-name", served_as]
    if reasoning_parser != "none":
        found += ["--reasoning-parser", reasoning_parser]
    if tool_parser != "none":
        found += ["--enable-auto-tool-choice", "--tool-call-parser", tool_parser]
    for flag, value in sorted(flags.items()):
        found += _flag(flag, value)
    return found


def running_code(flags: Iterable[str]) -> list[str]:
    """Those of `flags` that make vLLM run code which it did not come with. It takes a flag's beginning for the flag,
    and an underscore for a dash."""
    return sorted(
        flag for flag in flags if any(each.startswith(flag.partition("=")[0].replace("_", "-")) for each in _CODE)
    )


def program() -> Path:
    """The `vllm` of the environment that VLLM names; without it, the one on the PATH, as in vLLM's own image.

    Raises:
        UsageError: there is none.
    """
    named = os.environ.get("VLLM")
    found = str(Path(named) / "bin" / "vllm") if named else shutil.which("vllm")
    if found is None or not Path(found).is_file():
        raise UsageError(
            "vLLM is not there",
            where=found or "PATH",
            remedy="VLLM=/path/to/its/environment (the folder with bin/vllm)",
        )
    return Path(found).absolute()


def _evidence(store: Store, name: str) -> Mapping[str, Evidence]:
    """What the verdict rests on by which a channel serves its candidate; of a candidate, all there is."""
    candidate = store.candidate(name)
    evidence = retractions.standing(store, candidate.digest)
    generation = generations.newest(store.layout, name)
    if generation is None or generation.verdict is None:
        return evidence
    verdict = store.verdicts(candidate.digest).get(generation.verdict)
    if verdict is None:
        raise IntegrityError(f"the verdict {generation.verdict} that {name} is served by is missing")
    return {digest: each for digest, each in evidence.items() if digest in verdict.evidence}


def _flag(flag: str, value: Any) -> list[str]:
    """A flag as vLLM's command line takes it. A dotted flag is a field of a structured option and wants its value."""
    if value is True and "." not in flag:
        return [f"--{flag}"]
    if value is False and "." not in flag:
        return [f"--no-{flag}"]
    return [f"--{flag}", str(value).lower() if isinstance(value, bool) else str(value)]
