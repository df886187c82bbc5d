"""Inspect: logs of version 2, .eval (a zip) and .json.

A log is one pack, an epoch a repeat. Without --metric it is judged by the first score of its results; `--metric NAME`
is a score's name there. A sample that ended in an error is missing; one that met a limit scores 0. Read from what
inspect_ai 0.3.285 wrote.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gates.errors import UsageError
from gates.evidence import totals
from gates.importers import source
from gates.importers.inspect_log import is_log, opened
from gates.importers.source import Choice, Imported, Source
from gates.records import Row, Totals

TOOL = "inspect"

_ENGINES = {"vllm": "vllm", "sglang": "sglang", "hf": "transformers"}
"""Providers that run the model themselves. Behind the others is a server of which nothing is stated."""
_WORDS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
"""As Inspect's own value_to_float reads them."""
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
class _Metric:
    """`name` of the scorer's value that is read, its `key` where the value is a table, and the mean that is stated."""

    name: str
    key: str | None
    entry: Mapping[str, Any]
    stated: float | None


def recognises(files: Sequence[Source]) -> bool:
    return all(is_log(file) for file in files)


def read(files: Sequence[Source], choice: Choice) -> list[Imported]:
    """Each log. Raises as `gates.importers.read`."""
    return [_log(file, choice) for file in files]


def _log(file: Source, choice: Choice) -> Imported:
    header, samples = opened(file)
    where = file.name
    if header.get("version") != 2:
        raise UsageError(
            f"this is a log of version {header.get('version')!r}, and 2 is read",
            where=f"{where}, version",
            remedy="convert it: inspect log convert",
        )
    if header.get("invalidated"):
        source.refuse("somebody marked this log as invalid", f"{where}, invalidated")
    about = source.table(header.get("eval"), where=f"{where}, eval")
    metric = _metric(header, choice.metric, where)
    name = source.text(about.get("task"), where=f"{where}, eval.task")
    config = _generation(header, about)
    rows, contents, notes = _rows(header, about, samples, metric, where)
    return Imported(
        pack=source.pack_name(name.rpartition("/")[2]),
        conditions=_conditions(header, about, config, metric, contents),
        totals=totals(rows) if rows else _totals_alone(metric, where),
        rows=tuple(rows) or None,
        repeats=_epochs(about, where) if rows else 1,
        recorded=_recorded(header, about, config, metric),
        notes=tuple(notes),
    )


def _metric(header: Mapping[str, Any], chosen: str | None, where: str) -> _Metric:
    results = header.get("results")
    if not isinstance(results, dict) or not results.get("scores"):
        raise UsageError(
            f"this log has no scores (its status is {header.get('status')!r})",
            where=f"{where}, results.scores",
            remedy="finish it with inspect eval-retry, or score it with inspect score",
        )
    entries = [
        source.table(each, where=f"{where}, results.scores")
        for each in source.listed(results["scores"], where=f"{where}, results.scores")
    ]
    names = [source.text(each.get("name"), where=f"{where}, results.scores, name") for each in entries]
    wanted = names[0] if chosen is None else source.one_of(chosen, dict.fromkeys(names), what="metric", where=where)
    entry = entries[names.index(wanted)]
    scorer = entry.get("scorer") or wanted
    metrics = source.table(entry.get("metrics") or {}, where=f"{where}, results.scores, {wanted}, metrics")
    stated = next((metrics[each] for each in ("accuracy", "mean") if each in metrics), None)
    field = f"{where}, results.scores, {wanted}"
    reducer = entry.get("reducer") or "mean"
    value = stated.get("value") if isinstance(stated, dict) and reducer == "mean" else None
    return _Metric(
        name=str(scorer),
        key=wanted if scorer != wanted else None,
        entry=entry,
        stated=None if value is None else source.share(value, where=field),
    )


def _rows(
    header: Mapping[str, Any],
    about: Mapping[str, Any],
    samples: Iterator[tuple[str, Any]],
    metric: _Metric,
    where: str,
) -> tuple[list[Row], str | None, list[str]]:
    """The rows, in the order of items and epochs; the digest of what was asked; notes."""
    epochs = _epochs(about, where)
    rows: dict[tuple[str, int], Row] = {}
    counted: dict[str, list[float]] = defaultdict(list)
    asked: dict[str, str] = {}
    cut = 0.0
    for place, sample in samples:
        item = _id(source.table(sample, where=place).get("id"), f"{place}, id")
        epoch = source.count(sample.get("epoch", 1), where=f"{place}, epoch", least=1)
        if epoch > epochs:
            source.refuse(f"epoch {epoch} of {epochs}", f"{place}, epoch")
        if (item, epoch) in rows:
            source.refuse(f"the sample {item}, epoch {epoch} is there twice", f"{place}, id")
        rows[item, epoch], value = _row(sample, item, epoch, metric, place)
        if value is not None:
            counted[item].append(value)
            cut += value - (rows[item, epoch].points or 0)
        content = source.identity(_content(sample.get("input")), sample.get("target"), sample.get("choices"))
        if asked.setdefault(item, content) != content:
            source.refuse(f"the sample {item} is another one in another epoch", f"{place}, input")
    if not rows:
        return [], None, ["totals alone, for the log has no samples"]
    notes = []
    if metric.stated is not None and counted:
        found = math.fsum(math.fsum(each) / len(each) for each in counted.values()) / len(counted)
        source.agree(metric.stated, found, where=f"{where}, results.scores, {metric.key or metric.name}")
    elif metric.stated is None:
        notes.append("the log states no mean of this score: its rows are kept as they are")
    if cut:
        notes.append(f"samples that met a limit score 0 here; the log gives them {cut:g} points in all")
    absent = _absent(about, rows, epochs, where)
    if absent:
        notes.append(f"{len(absent)} samples are not in the log (its status is {header.get('status')}): missing")
    for item, epoch in absent:
        rows[item, epoch] = source.row(item, None, repeat=epoch - 1, outcome="infra", category=_same(rows, item))
    if all(row.outcome == "infra" for row in rows.values()):
        notes.append("no sample got an answer")
    return source.of_one_category(rows[key] for key in sorted(rows)), source.identity(asked), notes


def _row(sample: Mapping[str, Any], item: str, epoch: int, metric: _Metric, where: str) -> tuple[Row, float | None]:
    """The row, and what the log itself gives the sample."""
    given = source.table(sample.get("metadata") or {}, where=f"{where}, metadata").get("category")
    about: dict[str, Any] = {
        "repeat": epoch - 1,
        "category": given if isinstance(given, str) and given.strip() else "all",
        "tokens": _tokens(sample.get("model_usage")),
    }
    scores = source.table(sample.get("scores") or {}, where=f"{where}, scores")
    limit = sample.get("limit") if isinstance(sample.get("limit"), dict) else None
    stopped = sample.get("error") or sample.get("invalidation") or (limit and limit.get("type") == "operator")
    value = None
    name, key = (metric.key, None) if metric.key in scores else (metric.name, metric.key)
    if name in scores and not sample.get("error"):
        value = _value(scores[name], key, f"{where}, scores.{name}.value")
    if stopped:
        return source.row(item, None, outcome="infra", **about), value
    if limit:
        return source.row(item, 0, outcome="truncated", **about), value
    if value is None:
        source.refuse(f"it has no score {metric.key or metric.name}", f"{where}, scores")
    ended = "truncated" if value == 0 and _stop(sample) in ("max_tokens", "model_length") else "scored"
    return source.row(item, value, outcome=ended, **about), value


def _value(score: Any, key: str | None, where: str) -> float:
    value = source.table(score, where=where).get("value")
    if isinstance(value, dict):
        if key is None or key not in value:
            source.refuse(f"it holds {', '.join(map(str, value))}; choose one with --metric", where)
        value, where = value[key], f"{where}.{key}"
    return source.share(_number(value, where) if isinstance(value, str) else value, where=where)


def _number(word: str, where: str) -> float:
    for each in (word, word.lower()):
        if each in _WORDS:
            return _WORDS[each]
    try:
        return float(word)
    except ValueError:
        source.refuse(f"{word[:40]!r} is no score", where)


def _id(value: Any, where: str) -> str:
    return source.text(str(value) if type(value) is int else value, where=where)


def _stop(sample: Mapping[str, Any]) -> Any:
    output = sample.get("output")
    choices = output.get("choices") if isinstance(output, dict) else None
    return choices[0].get("stop_reason") if choices and isinstance(choices[0], dict) else None


def _tokens(usage: Any) -> int | None:
    if not isinstance(usage, dict):
        return None
    counts = [each.get("output_tokens") for each in usage.values() if isinstance(each, dict)]
    whole = [each for each in counts if type(each) is int and 0 <= each < 2**53]
    return sum(whole) if whole and len(whole) == len(counts) else None


def _content(given: Any) -> Any:
    """What was asked: messages have an id that differs from run to run."""
    if not isinstance(given, list):
        return given
    return [{name: each[name] for name in each if name != "id"} if isinstance(each, dict) else each for each in given]


def _absent(
    about: Mapping[str, Any], rows: Mapping[tuple[str, int], Row], epochs: int, where: str
) -> list[tuple[str, int]]:
    dataset = source.table(about.get("dataset") or {}, where=f"{where}, eval.dataset")
    there = {item for item, _ in rows}
    named = dataset.get("sample_ids")
    ids = {_id(each, f"{where}, eval.dataset.sample_ids") for each in named} if isinstance(named, list) else there
    if strange := sorted(there - ids):
        source.refuse(f"the sample {strange[0]} is not one of the dataset's", f"{where}, samples")
    return [(item, epoch) for item in sorted(ids) for epoch in range(1, epochs + 1) if (item, epoch) not in rows]


def _same(rows: Mapping[tuple[str, int], Row], item: str) -> str:
    return next((row.category for (name, _), row in rows.items() if name == item), "all")


def _epochs(about: Mapping[str, Any], where: str) -> int:
    config = source.table(about.get("config") or {}, where=f"{where}, eval.config")
    return source.count(config.get("epochs") or 1, where=f"{where}, eval.config.epochs", least=1)


def _totals_alone(metric: _Metric, where: str) -> Totals:
    field = f"{where}, results.scores, {metric.key or metric.name}"
    if metric.stated is None:
        source.refuse("there are neither samples nor a mean", field)
    items = source.count(metric.entry.get("scored_samples"), where=f"{field}, scored_samples", least=1)
    unscored = source.count(metric.entry.get("unscored_samples") or 0, where=f"{field}, unscored_samples")
    overall = source.score(metric.stated, items)
    return Totals(overall=overall, categories={"all": overall}, missing=unscored)


def _generation(header: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, Any]:
    """How answers were drawn: the model's own settings, over which the task's go."""
    plan = header.get("plan")
    own = about.get("model_generate_config")
    of_task = plan.get("config") if isinstance(plan, dict) else None
    merged = {**(own if isinstance(own, dict) else {}), **(of_task if isinstance(of_task, dict) else {})}
    return {name: value for name, value in merged.items() if value is not None}


def _conditions(
    header: Mapping[str, Any],
    about: Mapping[str, Any],
    config: Mapping[str, Any],
    metric: _Metric,
    contents: str | None,
) -> Any:
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
        ),
        grader=source.identity(
            TOOL, about.get("packages"), metric.name, metric.key, _scorer(about, metric), metric.entry.get("params")
        ),
        dataset=contents,
        **source.served(arguments or {}),
        max_tokens=config["max_tokens"] if type(config.get("max_tokens")) is int else None,
    )


def _scorer(about: Mapping[str, Any], metric: _Metric) -> Any:
    every = about.get("scorers") if isinstance(about.get("scorers"), list) else []
    found = [each for each in every or [] if isinstance(each, dict) and each.get("name") == metric.name]
    return found[0].get("options") if found else None


def _thinking(config: Mapping[str, Any]) -> str | None:
    body = config.get("extra_body")
    given = body.get("chat_template_kwargs") if isinstance(body, dict) else None
    enabled = given.get("enable_thinking") if isinstance(given, dict) else None
    return ("on" if enabled else "off") if isinstance(enabled, bool) else None


def _recorded(
    header: Mapping[str, Any], about: Mapping[str, Any], config: Mapping[str, Any], metric: _Metric
) -> dict[str, Any]:
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
