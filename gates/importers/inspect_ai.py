"""Inspect: logs of version 2, .eval (a zip) and .json.

A log is one pack, an epoch a repeat. Without --metric it is judged by the first score of its results; `--metric NAME`
is a score's name there. A sample that ended in an error, or that its scorer left unscored, is missing; one that met a
limit scores 0. Read from what inspect_ai 0.3.23 to 0.3.285 wrote.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gates.errors import UsageError
from gates.evidence import totals
from gates.importers import source
from gates.importers.inspect_conditions import TOOL as TOOL
from gates.importers.inspect_conditions import Metric, conditions, generation, recorded
from gates.importers.inspect_log import is_log, opened
from gates.importers.source import SAY, Choice, Imported, Source
from gates.records import Row, Totals

_WORDS = {"C": 1.0, "P": 0.5, "I": 0.0, "N": 0.0, "yes": 1.0, "true": 1.0, "no": 0.0, "false": 0.0}
"""As Inspect's own value_to_float reads them."""


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
    config = generation(header, about)
    rows, contents, notes = _rows(header, about, samples, metric, where)
    return Imported(
        pack=source.pack_name(name.rpartition("/")[2]),
        conditions=conditions(header, about, config, metric, contents),
        totals=totals(rows) if rows else _totals_alone(header, about, metric, where),
        rows=tuple(rows) or None,
        repeats=_epochs(about, where) if rows else 1,
        recorded=recorded(header, about, config, metric),
        notes=tuple(notes),
    )


def _metric(header: Mapping[str, Any], chosen: str | None, where: str) -> Metric:
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
    rest = ", ".join(each for each in dict.fromkeys(names) if each != wanted)
    others = f"choose with --metric from: {rest}" if rest else f"have its scorer give scores from 0 to 1; or {SAY}"
    reducer = entry.get("reducer") or "mean"
    why = "the log states no mean of this score" if reducer == "mean" else f"the log makes {reducer} of its epochs"
    value = stated.get("value") if isinstance(stated, dict) and reducer == "mean" else None
    return Metric(
        name=str(scorer),
        key=wanted if scorer != wanted else None,
        entry=entry,
        stated=None if value is None else source.share(value, where=field, remedy=others),
        unstated=why,
        others=others,
    )


def _rows(
    header: Mapping[str, Any],
    about: Mapping[str, Any],
    samples: Iterator[tuple[str, Any]],
    metric: Metric,
    where: str,
) -> tuple[list[Row], str | None, list[str]]:
    """The rows, in the order of items and epochs; the digest of what was asked; notes."""
    epochs = _epochs(about, where)
    rows: dict[tuple[str, int], Row] = {}
    counted: dict[str, list[float]] = defaultdict(list)
    asked: dict[str, str] = {}
    unscored = []
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
        elif not sample.get("error"):
            unscored.append(f"{place}, scores.{metric.key or metric.name}.value")
        content = source.identity(_content(sample.get("input")), sample.get("target"), sample.get("choices"))
        if asked.setdefault(item, content) != content:
            source.refuse(f"the sample {item} is another one in another epoch", f"{place}, input")
    if not rows:
        return [], None, ["totals alone, for the log has no samples"]
    notes = []
    if unscored:
        if metric.entry.get("scored_samples") != len(counted):
            source.refuse(f"it has no score {metric.key or metric.name}", unscored[0])
        notes.append(f"{len(unscored)} samples got no score, as the log itself counts them: missing")
    if metric.stated is not None and counted:
        found = math.fsum(math.fsum(each) / len(each) for each in counted.values()) / len(counted)
        source.agree(metric.stated, found, where=f"{where}, results.scores, {metric.key or metric.name}")
    elif metric.stated is None:
        notes.append(f"{metric.unstated}: each answer counts as it is")
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


def _row(sample: Mapping[str, Any], item: str, epoch: int, metric: Metric, where: str) -> tuple[Row, float | None]:
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
        value = _value(scores[name], key, f"{where}, scores.{name}.value", metric.others)
    if stopped:
        return source.row(item, None, outcome="infra", **about), value
    if limit:
        return source.row(item, 0, outcome="truncated", **about), value
    if value is None:
        return source.row(item, None, outcome="infra", **about), None
    ended = "truncated" if value == 0 and _stop(sample) in ("max_tokens", "model_length") else "scored"
    return source.row(item, value, outcome=ended, **about), value


def _value(score: Any, key: str | None, where: str, others: str) -> float | None:
    """None where the scorer found that it cannot tell, which Inspect writes as NaN, and before that as nothing."""
    value = source.table(score, where=where).get("value")
    if isinstance(value, dict):
        if key is None or key not in value:
            source.refuse(f"it holds several: {', '.join(map(str, value))}", where, remedy=others)
        value, where = value[key], f"{where}.{key}"
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
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


def _totals_alone(header: Mapping[str, Any], about: Mapping[str, Any], metric: Metric, where: str) -> Totals:
    """The stated mean. Before it counted what it scored, Inspect counted the answers that were not errors."""
    field = f"{where}, results.scores, {metric.key or metric.name}"
    if metric.stated is None:
        source.refuse("there are neither samples nor a mean", field)
    results = source.table(header.get("results"), where=f"{where}, results")
    every, done = (
        source.count(results.get(each) or 0, where=f"{where}, results.{each}")
        for each in ("total_samples", "completed_samples")
    )
    epochs = _epochs(about, where)
    scored, unscored = metric.entry.get("scored_samples"), metric.entry.get("unscored_samples") or 0
    items = source.count(done // epochs if scored is None else scored, where=f"{field}, scored_samples", least=1)
    missing = max(0, every - done) // epochs + source.count(unscored, where=f"{field}, unscored_samples")
    overall = source.score(metric.stated, items)
    return Totals(overall=overall, categories={"all": overall}, missing=missing)
