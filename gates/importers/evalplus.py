"""EvalPlus: *_eval_results.json of humaneval and mbpp.

Without --metric a solution counts if it passes the base and the extra tests (`plus`, or `base` where only those were
run); `--metric base` counts the base tests alone. Each solution of a task is a repeat. Read from what 0.2 and 0.3
wrote; in files of 0.1 each solution is a list.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from gates.errors import SluiceError, UsageError
from gates.evidence import totals
from gates.importers import source
from gates.importers.source import Choice, Imported, Source
from gates.records import Row

TOOL = "evalplus"

_PACKS = {"HumanEval": "humaneval", "Mbpp": "mbpp"}
_RIGHT, _STATUS = {"pass", "success"}, {"pass", "success", "fail", "failed", "timeout", "timed out"}
_ENGINES = {"vllm": "vllm", "hf": "transformers"}
_NAMED = re.compile(r"_(?P<backend>[a-z]+)_temp_(?P<temperature>[0-9.]+?)(?:[._-]eval_results|-sanitized|\.json|$)")
"""What evalplus's own code generation puts into a file's name; the file itself says nothing of it."""


def recognises(files: Sequence[Source]) -> bool:
    return all(_is_result(file) for file in files)


def read(files: Sequence[Source], choice: Choice) -> list[Imported]:
    """Each file. Raises as `gates.importers.read`."""
    return [_result(file, choice) for file in files]


def _is_result(file: Source) -> bool:
    try:
        value = source.parsed(file)
    except SluiceError:
        return False
    return isinstance(value.get("eval"), dict) and not {"plan", "version"} & value.keys()


def _result(file: Source, choice: Choice) -> Imported:
    where = file.name
    result = source.parsed(file)
    solved = {
        task: _solutions(each, f"{where}, eval, {task}")
        for task, each in source.table(result.get("eval"), where=f"{where}, eval").items()
    }
    if not solved:
        raise UsageError("there are no tasks in it", where=f"{where}, eval", remedy=source.WRONG_FILE)
    extra = all(plus is not None for each in solved.values() for _, plus in each)
    metric = source.one_of(
        choice.metric or ("plus" if extra else "base"),
        ["base", "plus"] if extra else ["base"],
        what="metric",
        where=where,
    )
    repeats = _repeats(solved, where)
    rows = [
        _row(task, number, solution, plus=metric == "plus")
        for task, each in solved.items()
        for number, solution in enumerate(each)
    ]
    _check_stated(result, metric, rows, where)
    digest = result["hash"] if isinstance(result.get("hash"), str) and result["hash"] else None
    named = _NAMED.search(file.name)
    said = {"tool": TOOL, "metric": metric, "dataset_hash": digest, "backend": named["backend"] if named else None}
    return Imported(
        pack=_pack(solved, where) + ("-plus" if metric == "plus" else ""),
        conditions=source.known(
            engine=_ENGINES.get(named["backend"]) if named else None,
            sampling={"temperature": _temperature(named["temperature"], where)} if named else None,
            grader=source.identity(TOOL, metric),
            dataset=source.identity(TOOL, digest, sorted(solved)) if digest else None,
        ),
        totals=totals(rows),
        rows=tuple(rows),
        repeats=repeats,
        recorded={name: value for name, value in said.items() if value is not None},
    )


Solution = tuple[str, str | None]
"""How the base tests ended, and the extra ones if they were run."""


def _solutions(given: Any, where: str) -> list[Solution]:
    if isinstance(given, dict):  # 0.1: {"nfiles": 1, "base": [["success", […]]], "plus": [["failed", […]]]}
        base = source.listed(given.get("base"), where=f"{where}, base")
        plus = source.listed(given.get("plus") or [None] * len(base), where=f"{where}, plus")
        if len(plus) != len(base):
            source.refuse(f"{len(base)} solutions met the base tests, and {len(plus)} the extra ones", where)
        return [
            (
                _status(_first(one), f"{where}, base[{n}]"),
                None if two is None else _status(_first(two), f"{where}, plus[{n}]"),
            )
            for n, (one, two) in enumerate(zip(base, plus, strict=True))
        ]
    found = []
    for number, each in enumerate(source.listed(given, where=where)):
        place = f"{where}[{number}]"
        solution = source.table(each, where=place)
        plus_status = solution.get("plus_status")
        found.append(
            (
                _status(solution.get("base_status"), f"{place}, base_status"),
                None if plus_status is None else _status(plus_status, f"{place}, plus_status"),
            )
        )
    return found


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) and value else value


def _status(value: Any, where: str) -> str:
    if value not in _STATUS:
        source.refuse(f"{value!r} is no end of a test: {', '.join(sorted(_STATUS))}", where)
    return str(value)


def _repeats(solved: Mapping[str, Sequence[Solution]], where: str) -> int:
    counts = {task: len(each) for task, each in solved.items()}
    most = max(counts.values())
    if fewer := [task for task, count in counts.items() if count != most]:
        task = fewer[0]
        source.refuse(
            f"{counts[task]} of {most} solutions are there, the most that a task has",
            f"{where}, eval, {task}",
            remedy=f"give each task as many solutions, and evaluate again; or {source.SAY}",
        )
    if most == 0:
        source.refuse("there are no solutions in it", f"{where}, eval")
    return most


def _row(task: str, number: int, solution: Solution, *, plus: bool) -> Row:
    ends = [end for end in (solution if plus else solution[:1]) if end is not None]
    if all(end in _RIGHT for end in ends):
        return source.row(task, 1, repeat=number, outcome="scored")
    slow = any(end.startswith("time") for end in ends)
    return source.row(task, 0, repeat=number, outcome="verifier_timeout" if slow else "scored")


def _check_stated(result: Mapping[str, Any], metric: str, rows: Sequence[Row], where: str) -> None:
    """Newer files state pass@1, which is the mean over all solutions."""
    stated = result.get("pass_at_k")
    part = stated.get(metric) if isinstance(stated, dict) else None
    if isinstance(part, dict) and "pass@1" in part:
        field = f"{where}, pass_at_k, {metric}, pass@1"
        mean = sum(row.points or 0 for row in rows) / len(rows)
        source.agree(source.share(part["pass@1"], where=field), mean, where=field)


def _pack(solved: Mapping[str, Any], where: str) -> str:
    kinds = {task.partition("/")[0] for task in solved}
    if len(kinds) != 1 or not kinds <= _PACKS.keys():
        raise UsageError(
            f"these are not tasks of one set of EvalPlus: {', '.join(sorted(kinds)[:3])}",
            where=f"{where}, eval",
            remedy=source.WRONG_FILE,
        )
    return _PACKS[kinds.pop()]


def _temperature(text: str, where: str) -> float:
    try:
        return float(text)
    except ValueError:
        source.refuse(f"{text} is no temperature", f"the name of {where}")
