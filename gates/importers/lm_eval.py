"""lm-eval: results_*.json, and with --log_samples a samples_*.jsonl for each task.

Each task is a pack, and a group (mmlu) is one, with its tasks as categories. Without --metric a task is judged by the
first metric of its results of which more is better, with its first filter. Read from what 0.4.4 to 0.4.13 wrote.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gates.errors import SluiceError, UsageError
from gates.evidence import totals
from gates.importers import source
from gates.importers.lm_eval_conditions import TOOL, Task, conditions, recorded
from gates.importers.lm_eval_samples import lines, rows_of, samples_of, stamp
from gates.importers.source import SAY, Choice, Imported, Source
from gates.records import Row, Score, Totals

_OF_A_HUNDRED = re.compile(r"(bleu|rouge[12L])_max")
"""Metrics of TruthfulQA that are means of scores of 100."""
_LESS = {"perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter"}
"""lm-eval's own metrics of which less is better. Before 0.4.3 results do not say so, and of ter they say otherwise."""
_OR_SAMPLES = f"run lm-eval with --log_samples, and give the samples as well; or {SAY}"


class _LessIsBetter(UsageError):
    """A task has no score, but perplexities and the like."""


def recognises(files: Sequence[Source]) -> bool:
    return any(_is_results(file) or _is_older(file) for file in files)


def read(files: Sequence[Source], choice: Choice) -> list[Imported]:
    """The results files among `files`, each with its samples. Raises as `gates.importers.read`."""
    results = [file for file in files if _is_results(file)]
    if older := [file.name for file in files if _is_older(file)]:
        raise UsageError(
            "these results are of lm-eval before 0.4, which does not say how many items a score is of",
            where=older[0],
            remedy=SAY,
        )
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
        own = [each for each in samples if len(results) == 1 or stamp(each) == stamp(file)]
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
    value = _run(file)
    return isinstance(value.get("results"), dict) and isinstance(value.get("configs"), dict)


def _is_older(file: Source) -> bool:
    value = _run(file)
    return {"results", "versions", "config"} <= value.keys() and "configs" not in value


def _run(file: Source) -> dict[str, Any]:
    """What is in a results file; nothing where it is none."""
    if file.name.endswith(".jsonl") or source.first_letter(file) != b"{":
        return {}
    try:
        return source.parsed(file)
    except SluiceError:
        return {}


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
    imported, used, left = [], [], []
    for name in top:
        own = _leaves(name, groups, file.name)
        try:
            leaves = [_task(run, leaf, samples, choice, file.name) for leaf in own]
        except _LessIsBetter as error:
            if len(top) == 1:
                raise
            left.append(f"{name} is left out: {error.what}")
            used += [each for leaf in own if (each := samples_of(leaf, samples, list(map(str, run["configs"]))))]
            continue
        imported.append(_imported(run, name, leaves, grouped=name in groups))
        used += [leaf.samples for leaf in leaves if leaf.samples is not None]
    if not imported:
        raise UsageError("there is no score in these results", where=f"{file.name}, results", remedy="; ".join(left))
    return [replace(imported[0], notes=(*left, *imported[0].notes)), *imported[1:]], used


def _leaves(name: str, groups: Mapping[str, list[str]], where: str) -> list[str]:
    """The tasks of a group, and of the groups in it, each once; a task is its own."""
    found: dict[str, None] = {}
    seen: set[str] = set()
    ahead = [name]
    while ahead:
        each = ahead.pop()
        if each in seen:
            continue
        seen.add(each)
        if each in groups:
            ahead += reversed(groups[each])
        else:
            found[each] = None
    if not found:
        source.refuse("its groups hold each other, and no task", f"{where}, group_subtasks, {name}")
    return list(found)


def _task(run: Mapping[str, Any], name: str, samples: Sequence[Source], choice: Choice, file: str) -> Task:
    where = f"{file}, results, {name}"
    values = source.table(run["results"].get(name), where=where)
    config = source.table(run["configs"].get(name), where=f"{file}, configs, {name}")
    keys = [tuple(key.split(",", 1)) for key in values if "," in key and "_stderr," not in key]
    better = _of(run, "higher_is_better", name)
    scores = [key for key in keys if better.get(key[0], True) is not False and key[0] not in {"bypass", *_LESS}]
    metric, filtered = _chosen(keys, scores, choice.metric, where)
    field = f"{where}, {metric},{filtered}"
    size = _of(run, "n-samples", name).get("effective", values.get("samples", values.get("sample_len")))
    listed = [
        each for each in config.get("metric_list") or [] if isinstance(each, dict) and each.get("metric") == metric
    ]
    own = samples_of(name, samples, [str(task) for task in run["configs"]])
    if size is None and own is not None:
        size = len({sample.get("doc_id", number) for number, (_, sample) in enumerate(lines(own))})
    elif size is None:
        raise UsageError(
            "nothing says how many items these are",
            where=f"{file}, n-samples, {name}",
            remedy=_OR_SAMPLES,
        )
    whole = _whole(metric, listed, keys)
    value = values[f"{metric},{filtered}"]
    return Task(
        name=name,
        metric=metric,
        filter=filtered,
        filters=tuple(dict.fromkeys(each for _, each in keys)),
        averaged=not listed or listed[0].get("aggregation", "mean") == "mean",
        whole=whole,
        stated=source.share(value, where=field, whole=whole, remedy=_others(scores, metric)),
        items=source.count(size, where=f"{file}, n-samples, {name}", least=1),
        samples=own,
    )


def _chosen(
    keys: Sequence[tuple[str, ...]], scores: Sequence[tuple[str, ...]], metric: str | None, where: str
) -> tuple[str, str]:
    """Of all metrics, each with its filter, the one to judge by. `scores` are those of which more is better."""
    for found in scores:
        if metric is None or metric in (found[0], ",".join(found)):
            return found[0], found[1]
    if any(metric in (None, *found, ",".join(found)) for found in keys):
        if ("bypass", "none") in keys:
            raise UsageError(
                "these answers were never scored (predict_only)", where=where, remedy="run lm-eval with scoring"
            )
        less = metric or keys[0][0]
        raise _LessIsBetter(f"of {less} less is better", where=where, remedy=_others(scores, less))
    raise UsageError(
        f"there is no metric {metric!r} here" if metric else "there is no metric here",
        where=where,
        remedy=f"choose with --metric from: {_names(scores)}",
    )


def _others(scores: Sequence[tuple[str, ...]], metric: str) -> str:
    others = [each for each in scores if each[0] != metric]
    return f"choose with --metric from: {_names(others)}" if others else "take another task, with --task"


def _whole(metric: str, listed: Sequence[Mapping[str, Any]], keys: Sequence[tuple[str, ...]]) -> int:
    """What a full score is: 100 in sacreBLEU's scores, SQuAD 2's, and some of TruthfulQA's."""
    aggregated = listed[0].get("aggregation", metric) if listed else metric
    squad = any(each[0] == "best_exact" for each in keys)
    return 100 if aggregated in ("bleu", "chrf") or squad or _OF_A_HUNDRED.fullmatch(metric) else 1


def _names(keys: Sequence[tuple[str, ...]]) -> str:
    return ", ".join(",".join(each) for each in keys) or "none"


def _of(run: Mapping[str, Any], field: str, task: str) -> dict[str, Any]:
    every = run.get(field)
    one = every.get(task) if isinstance(every, dict) else None
    return one if isinstance(one, dict) else {}


def _imported(run: Mapping[str, Any], name: str, leaves: Sequence[Task], *, grouped: bool) -> Imported:
    rows: list[Row] = []
    notes: list[str] = []
    contents: dict[str, str] = {}
    whole = True
    for leaf in leaves:
        found = rows_of(leaf, category=leaf.name if grouped else "all") if leaf.samples is not None else None
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


def _hash(run: Mapping[str, Any], leaf: Task) -> str | None:
    """What lm-eval says of all documents, prompts and targets of a task."""
    stated = (run.get("task_hashes") or {}).get(leaf.name) if isinstance(run.get("task_hashes"), dict) else None
    return stated if isinstance(stated, str) and stated else None


def _totals_alone(leaves: Sequence[Task], *, grouped: bool) -> Totals:
    each = {leaf.name: source.score(leaf.stated, leaf.items) for leaf in leaves}
    overall = Score(
        points=math.fsum(score.points for score in each.values()),
        of=sum(leaf.items for leaf in leaves),
        items=sum(leaf.items for leaf in leaves),
    )
    return Totals(overall=overall, categories=each if grouped else {"all": overall}, missing=0)
