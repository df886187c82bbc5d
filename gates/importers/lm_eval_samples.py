"""Samples of lm-eval: which of its files hold those of a task, and the rows that they are."""

from __future__ import annotations

import io
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from gates.errors import UsageError
from gates.importers import source
from gates.importers.lm_eval_conditions import Task
from gates.importers.source import Source
from gates.records import Row

_STAMP = re.compile(r"_(\d{4}-\d\d-\d\dT[\d:.-]+)$")


def samples_of(task: str, samples: Sequence[Source], tasks: Sequence[str]) -> Source | None:
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


def stamp(file: Source) -> str:
    found = _STAMP.search(file.name.removesuffix(".jsonl").removesuffix(".json"))
    return found[1] if found else ""


def rows_of(task: Task, *, category: str) -> tuple[list[Row], str] | None:
    """The rows, and the digest of the items they are of; None where the metric is not a mean over the samples."""
    assert task.samples is not None
    place: Counter[str] = Counter()
    values: dict[str, tuple[float, str]] = {}
    for number, (where, sample) in enumerate(lines(task.samples)):
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
        values[doc] = source.share(value, where=f"{where}, {task.metric}", whole=task.whole), str(asked)
    if len(values) != task.items:
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


def lines(file: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each sample and where it stands: a JSON object a line, or (before 0.4.3) one list."""
    if source.first_letter(file) == b"[":
        every = source.listed(source.value_of(file.data, where=file.name), where=file.name)
        for number, each in enumerate(every):
            where = f"{file.name}, [{number}]"
            yield where, source.table(each, where=where)
        return
    for number, line in enumerate(io.BytesIO(file.data), 1):
        if line.strip():
            where = f"{file.name}, line {number}"
            yield where, source.table(source.value_of(line, where=where), where=where)
