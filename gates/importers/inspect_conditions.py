"""What logs of Inspect state of the conditions: engine, sampling, and what makes a task itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gates.importers import source
from gates.records import Conditions

TOOL = "inspect"

_ENGINES = {"vllm": "vllm", "sglang": "sglang", "hf": "transformers"}
"""Providers that run the model themselves. Behind the others is a server of which nothing is stated."""
_NOT_SAMPLING = {
    "adaptive_connections",
    "attempt_timeout",
    "batch",
    "cache",
    "max_connections",
    "max_retries",
    "max_tokens",
    "system_message",
    "timeout",
}


@dataclass(frozen=True, slots=True)
class Metric:
    """`name` of the scorer's value that is read, its `key` where the value is a table, and the mean that is stated.

    `unstated` says why none is, `others` which else could be chosen.
    """

    name: str
    key: str | None
    entry: Mapping[str, Any]
    stated: float | None
    unstated: str
    others: str


def conditions(
    header: Mapping[str, Any],
    about: Mapping[str, Any],
    config: Mapping[str, Any],
    metric: Metric,
    contents: str | None,
) -> Conditions:
    """The conditions that are stated.

    Args:
        config: how answers were drawn (`generation`).
        contents: the digest of what was asked, if the log has its samples.
    """
    engine = _ENGINES.get(str(about.get("model")).partition("/")[0])
    arguments = about.get("model_args") if isinstance(about.get("model_args"), dict) else {}
    plan = header.get("plan") if isinstance(header.get("plan"), dict) else {}
    sampling = source.settings({name: value for name, value in config.items() if name not in _NOT_SAMPLING})
    limits = source.table(about.get("config") or {}, where="eval.config")
    return source.known(
        engine=engine,
        server_flags=source.flags(arguments or {}) if engine is not None else None,
        sampling=sampling if "temperature" in config else None,  # otherwise the server's own, which nobody states
        thinking=_thinking(config),
        pack=source.identity(
            TOOL,
            [about.get(field) for field in ("task", "task_version", "task_args")],
            [
                [step.get("solver"), step.get("params")]
                for step in (plan or {}).get("steps") or []
                if isinstance(step, dict)
            ],
            {name: value for name, value in limits.items() if name.endswith("_limit")},
            config.get("system_message"),
            _drawn(about, limits),
        ),
        grader=source.identity(
            TOOL, about.get("packages"), metric.name, metric.key, _scorer(about, metric), metric.entry.get("params")
        ),
        dataset=contents,
        **source.served(arguments or {}),
        max_tokens=config["max_tokens"] if type(config.get("max_tokens")) is int else None,
    )


def _drawn(about: Mapping[str, Any], limits: Mapping[str, Any]) -> Any:
    """Which of the dataset's samples were asked."""
    dataset = about.get("dataset") if isinstance(about.get("dataset"), dict) else {}
    ids = (dataset or {}).get("sample_ids")
    return sorted(map(str, ids)) if isinstance(ids, list) else [(dataset or {}).get("samples"), limits.get("limit")]


def _scorer(about: Mapping[str, Any], metric: Metric) -> Any:
    every = about.get("scorers") if isinstance(about.get("scorers"), list) else []
    found = [each for each in every or [] if isinstance(each, dict) and each.get("name") == metric.name]
    return found[0].get("options") if found else None


def _thinking(config: Mapping[str, Any]) -> str | None:
    body = config.get("extra_body")
    given = body.get("chat_template_kwargs") if isinstance(body, dict) else None
    enabled = given.get("enable_thinking") if isinstance(given, dict) else None
    return ("on" if enabled else "off") if isinstance(enabled, bool) else None


def recorded(
    header: Mapping[str, Any], about: Mapping[str, Any], config: Mapping[str, Any], metric: Metric
) -> dict[str, Any]:
    """What is worth knowing and need not agree."""
    packages = about.get("packages")
    said = {
        "tool": TOOL,
        "tool_version": packages.get("inspect_ai") if isinstance(packages, dict) else None,
        "model": about.get("model"),
        "metric": metric.key or metric.name,
        "status": header.get("status"),
        "task_version": about.get("task_version"),
        "seed": config.get("seed"),
    }
    return {name: source.plain(value) for name, value in said.items() if value is not None}


def generation(header: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """How answers were drawn: the model's own settings, over which the task's go."""
    plan = header.get("plan")
    own = about.get("model_generate_config")
    of_task = plan.get("config") if isinstance(plan, dict) else None
    merged = {**(own if isinstance(own, dict) else {}), **(of_task if isinstance(of_task, dict) else {})}
    return {name: value for name, value in merged.items() if value is not None}
