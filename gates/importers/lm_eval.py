"""lm-eval: results_*.json, and with --log_samples a samples_*.jsonl for each task.

Each task is a pack, and a group (mmlu) is one, with its tasks as categories. Without --metric a task is judged by the
first metric of its results, with its first filter. Read from what 0.4.5 and 0.4.13 wrote.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from gates.errors import SluiceError, UsageError
from gates.evidence import totals
from gates.importers import source
from gates.importers.lm_eval_conditions import TOOL, Task, conditions, recorded
from gates.importers.source import Choice, Imported, Source
from gates.records import Row, Score, Totals

_STAMP = re.compile(r"_(\d{4}-\d\d-\d\dT[\d:.-]+)$")


def recognises(files: Sequence[Source]) -> bool:
    return any(_is_results(file) for file in files)


def read(files: Sequence[Source], choice: Choice) -> list[Imported]:
    """The results files among `files`, each with its samples. Raises as `gates.importers.read`."""
    results = [file for file in files if _is_results(file)]
    if not results:
        raise UsageError(
            "there is no results_*.json of lm-eval here",
            where=", ".join(file.name for file in files[:4]),
            remedy="give it with its samples: the two lie side by side",
        )
    samples = [file for file in files if file not in results]
    taken: list[Source] = []
    imported = []
    for file in results:
        own = [each for each in samples if len(results) == 1 or _stamp(each) == _stamp(file)]
        found, used = _results(file, own, choice)
        imported += found
        taken += used
    if left := [each.name for each in samples if each not in taken and choice.task is None]:
        raise UsageError(
            f"no task here has the samples {left[0]}",
            where=", ".join(file.name for file in results),
            remedy="give only the samples that were written with these results, under the names they got",
        )
    return imported


def _is_results(file: Source) -> bool:
    if file.name.endswith(".jsonl") or file.data.lstrip()[:1] != b"{":
        return False
    try:
        value = source.parsed(file)
    except SluiceError:
        return False
    return isinstance(value.get("results"), dict) and isinstance(value.get("configs"), dict)


def _results(file: Source, samples: Sequence[Source], choice: Choice) -> tuple[list[Imported], list[Source]]:
    run = source.parsed(file)
    for field in ("results", "configs"):
        source.table(run.get(field), where=f"{file.name}, {field}")
    groups = {
        group: list(map(str, tasks))
        for group, tasks in source.table(run.get("group_subtasks") or {}, where=f"{file.name}, group_subtasks").items()
        if isinstance(tasks, list) and tasks
    }
    inside = {task for tasks in groups.values() for task in tasks}
    top = [name for name in [*groups, *(task for task in run["configs"] if task not in groups)] if name not in inside]
    if choice.task is not None:
        top = [source.one_of(choice.task, [*top, *sorted(inside)], what="task", where=file.name)]
    if not top:
        raise UsageError("there are no tasks in these results", where=f"{file.name}, results", remedy=source.WRONG_FILE)
    imported, used = [], []
    for name in top:
        leaves = [_task(run, leaf, samples, choice, file.name) for leaf in _leaves(name, groups, file.name)]
        imported.append(_imported(run, name, leaves, grouped=name in groups))
        used += [leaf.samples for leaf in leaves if leaf.samples is not None]
    return imported, used


def _leaves(name: str, groups: Mapping[str, list[str]], where: str, depth: int = 0) -> list[str]:
    if depth > 16:
        source.refuse("its groups hold each other", f"{where}, group_subtasks, {name}")
    if name not in groups:
        return [name]
    return list(dict.fromkeys(leaf for each in groups[name] for leaf in _leaves(each, groups, where, depth + 1)))


def _task(run: Mapping[str, Any], name: str, samples: Sequence[Source], choice: Choice, file: str) -> Task:
    where = f"{file}, results, {name}"
    values = source.table(run["results"].get(name), where=where)
    config = source.table(run["configs"].get(name), where=f"{file}, configs, {name}")
    keys = [tuple(key.split(",", 1)) for key in values if "," in key and "_stderr," not in key]
    metric, filtered = _chosen(keys, choice.metric, where)
    field = f"{where}, {metric},{filtered}"
    if metric == "bypass":
        raise UsageError(
            "these answers were never scored (predict_only)", where=field, remedy="run lm-eval with scoring"
        )
    better = _of(run, "higher_is_better", name).get(metric, True)
    if better is False:
        raise UsageError(
            f"of {metric} less is better", where=field, remedy=f"choose with --metric from: {_names(keys)}"
        )
    size = _of(run, "n-samples", name).get("effective", values.get("samples", values.get("sample_len")))
    listed = [
        each for each in config.get("metric_list") or [] if isinstance(each, dict) and each.get("metric") == metric
    ]
    own = _samples_of(name, samples, [str(task) for task in run["configs"]])
    if size is None and own is None:
        source.refuse("nothing says how many items these are", f"{file}, n-samples, {name}")
    return Task(
        name=name,
        metric=metric,
        filter=filtered,
        filters=tuple(dict.fromkeys(each for _, each in keys)),
        averaged=not listed or listed[0].get("aggregation", "mean") == "mean",
        stated=source.share(values[f"{metric},{filtered}"], where=field),
        items=source.count(size, where=f"{file}, n-samples, {name}", least=1) if size is not None else 0,
        samples=own,
    )


def _chosen(keys: Sequence[tuple[str, ...]], metric: str | None, where: str) -> tuple[str, str]:
    for found in keys:
        if metric is None or metric in (found[0], ",".join(found)):
            return found[0], found[1]
    raise UsageError(
        f"there is no metric {metric!r} here" if metric else "there is no metric here",
        where=where,
        remedy=f"choose with --metric from: {_names(keys)}",
    )


def _names(keys: Sequence[tuple[str, ...]]) -> str:
    return ", ".join(",".join(each) for each in keys) or "none"


def _of(run: Mapping[str, Any], field: str, task: str) -> dict[str, Any]:
    every = run.get(field)
    one = every.get(task) if isinstance(every, dict) else None
    return one if isinstance(one, dict) else {}


def _samples_of(task: str, samples: Sequence[Source], tasks: Sequence[str]) -> Source | None:
    """By the file's name: samples_TASK_TIME.jsonl, or as before 0.4.3 MODEL_TASK.jsonl."""
    named = []
    for file in samples:
        stem = _STAMP.sub("", file.name.removesuffix(".jsonl").removesuffix(".json"))
        of = stem.removeprefix("samples_")
        ends = [each for each in tasks if of == each or of.endswith(f"_{each}")]
        if ends and max(ends, key=len) == task:
            named.append(file)
    if len(named) > 1:
        raise UsageError(
            f"two files hold samples of {task}",
            where=", ".join(file.name for file in named),
            remedy="give those of one run",
        )
    return named[0] if named else None


def _stamp(file: Source) -> str:
    found = _STAMP.search(file.name.removesuffix(".jsonl").removesuffix(".json"))
    return found[1] if found else ""


def _imported(run: Mapping[str, Any], name: str, leaves: Sequence[Task], *, grouped: bool) -> Imported:
    rows: list[Row] = []
    notes: list[str] = []
    contents: dict[str, str] = {}
    whole = True
    for leaf in leaves:
        found = _rows(leaf, category=leaf.name if grouped else "all") if leaf.samples is not None else None
        if found is None:
            whole = False
            why = "its samples are not here" if leaf.samples is None else f"{leaf.metric} is no mean of its samples"
            notes.append(f"{leaf.name}: totals alone, for {why}")
            continue
        rows += found[0]
        contents[leaf.name] = found[1]
        if any(filtered != leaf.filter for filtered in leaf.filters):
            notes.append(f"{leaf.name}: read by {leaf.metric} with the filter {leaf.filter}")
    found_totals = totals(rows) if whole else _totals_alone(leaves, grouped=grouped)
    notes += _other_mean(run, name, leaves, found_totals) if grouped else []
    hashes = [_hash(run, leaf) or contents.get(leaf.name) for leaf in leaves]
    return Imported(
        pack=source.pack_name(name),
        conditions=conditions(run, leaves, source.identity(TOOL, hashes) if None not in hashes else None),
        totals=found_totals,
        rows=tuple(rows) if whole else None,
        recorded=recorded(run, leaves),
        notes=tuple(notes),
    )


def _other_mean(run: Mapping[str, Any], group: str, leaves: Sequence[Task], found: Totals) -> list[str]:
    """A group may state the mean of its tasks' means; here each item counts the same."""
    keys = {f"{leaf.metric},{leaf.filter}" for leaf in leaves}
    stated = _of(run, "results", group).get(keys.pop()) if len(keys) == 1 else None
    here = found.overall.points / found.overall.of
    if not isinstance(stated, int | float) or abs(stated - here) <= 1e-6:
        return []
    return [f"{group}: the results state {stated:.4f}; over all items it is {here:.4f}, and that is kept"]


def _rows(task: Task, *, category: str) -> tuple[list[Row], str] | None:
    """The rows, and the digest of the items they are of; None where the metric is not a mean over the samples."""
    assert task.samples is not None
    samples = _lines(task.samples)
    place: Counter[str] = Counter()
    values: dict[str, tuple[float, str]] = {}
    for number, (where, sample) in enumerate(samples):
        doc = str(source.count(sample.get("doc_id", number), where=f"{where}, doc_id"))
        filtered = sample.get("filter")
        if filtered is None:  # before 0.4.8 the samples of each filter follow each other, and do not say which it is
            filtered = task.filters[min(place[doc], len(task.filters) - 1)]
        place[doc] += 1
        if filtered != task.filter:
            continue
        if doc in values:
            source.refuse(f"the item {doc} is there twice", f"{where}, doc_id")
        if task.metric not in sample:
            source.refuse(f"it has no {task.metric}", where)
        value = sample[task.metric]
        if not task.averaged or isinstance(value, list | dict | str):
            return None
        asked = sample.get("doc_hash") or source.identity(sample.get("doc"), sample.get("target"))
        values[doc] = source.share(value, where=f"{where}, {task.metric}"), str(asked)
    if task.items and len(values) != task.items:
        source.refuse(f"there are {len(values)} samples, and the results say {task.items}", task.samples.name)
    if not values:
        source.refuse(f"there are no samples with the filter {task.filter}", task.samples.name)
    source.agree(
        task.stated,
        math.fsum(value for value, _ in values.values()) / len(values),
        where=f"{task.samples.name}, {task.metric},{task.filter}",
    )
    prefix = f"{task.name}/" if category != "all" else ""
    rows = [
        source.row(prefix + doc, value, outcome="scored", category=category)
        for doc, (value, _) in sorted(values.items(), key=lambda each: int(each[0]))
    ]
    return rows, source.identity({doc: asked for doc, (_, asked) in values.items()})


def _lines(file: Source) -> list[tuple[str, dict[str, Any]]]:
    """Each sample and where it stands: a JSON object a line, or (before 0.4.3) one list."""
    if file.data.lstrip()[:1] == b"[":
        every = source.listed(source.value_of(file.data, where=file.name), where=file.name)
        placed = [(f"{file.name}, [{number}]", each) for number, each in enumerate(every)]
        return [(where, source.table(each, where=where)) for where, each in placed]
    found = []
    for number, line in enumerate(file.data.splitlines(), 1):
        if line.strip():
            where = f"{file.name}, line {number}"
            found.append((where, source.table(source.value_of(line, where=where), where=where)))
    return found


def _hash(run: Mapping[str, Any], leaf: Task) -> str | None:
    """What lm-eval says of all documents, prompts and targets of a task."""
    stated = (run.get("task_hashes") or {}).get(leaf.name) if isinstance(run.get("task_hashes"), dict) else None
    return stated if isinstance(stated, str) and stated else None


def _totals_alone(leaves: Sequence[Task], *, grouped: bool) -> Totals:
    if any(leaf.items == 0 for leaf in leaves):
        source.refuse("nothing says how many items these are", f"n-samples, {leaves[0].name}")
    each = {leaf.name: source.score(leaf.stated, leaf.items) for leaf in leaves}
    overall = Score(
        points=math.fsum(score.points for score in each.values()),
        of=sum(leaf.items for leaf in leaves),
        items=sum(leaf.items for leaf in leaves),
    )
    return Totals(overall=overall, categories=each if grouped else {"all": overall}, missing=0)
