"""BenchLocal: summary.json of the app, and the result file of benchlocal-cli.

The app's summary holds several models (--model) and one pack; benchlocal-cli's holds one model and several packs. What
the provider or the bench itself got wrong is missing, where both count it as failed. The app states the categories'
scores and not which scenario is in which, and weighs them into a total of its own: where that is not the mean of the
scenarios, the totals it states are kept alone, for they are what people know as the pack's score. Read from what
benchlocal-cli 0.9.9 wrote, and from the source of the app (protocol 1); no run of the app was at hand.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from gates.errors import SluiceError, UsageError
from gates.evidence import totals
from gates.importers import source
from gates.importers.source import Choice, Imported, Source
from gates.records import Row, Score, Totals

TOOL = "benchlocal"

_ROUNDED = 0.5 + 1e-9
"""The app rounds its totals to whole numbers."""
_SHARES = {"pass": 1.0, "partial": 0.5, "fail": 0.0}
_CUT = {"token_limit", "agent_loop_exhausted"}
_BROKEN = {
    "agent_runner_crashed",
    "agent_runner_timeout",
    "http_error",
    "model_endpoint_unreachable",
    "result_json_malformed",
    "server_error",
    "timeout",
    "verifier_not_implemented",
}
"""Failures of the server or the bench, in benchlocal-cli's words."""


def recognises(files: Sequence[Source]) -> bool:
    return all(_kind(file) is not None for file in files)


def read(files: Sequence[Source], choice: Choice) -> list[Imported]:
    """Each file. Raises as `gates.importers.read`."""
    found: list[Imported] = []
    for file in files:
        kind = _kind(file)
        if kind is None:
            raise UsageError(
                "this is neither a summary.json of BenchLocal nor a result of benchlocal-cli",
                where=file.name,
                remedy="the app writes summary.json into the folder of each run",
            )
        found += [_summary(source.parsed(file), choice, file.name)] if kind == "app" else _run(file, choice)
    return found


def _kind(file: Source) -> str | None:
    try:
        value = source.parsed(file)
    except SluiceError:
        return None
    if {"benchPackId", "resultsByModel", "scores"} <= value.keys():
        return "app"
    return "cli" if {"schema_version", "packs", "model"} <= value.keys() else None


def _summary(run: Mapping[str, Any], choice: Choice, where: str) -> Imported:
    pack = source.text(run.get("benchPackId"), where=f"{where}, benchPackId")
    by_model = source.table(run.get("resultsByModel"), where=f"{where}, resultsByModel")
    model = source.one_of(choice.model, by_model, what="model", where=f"{where}, resultsByModel")
    place = f"{where}, resultsByModel, {model}"
    results = source.listed(by_model[model], where=place)
    expected = source.count(run.get("scenarioCount", len(results)), where=f"{where}, scenarioCount", least=1)
    if run.get("cancelled") or run.get("error") or len(results) != expected:
        raise UsageError(
            f"this run was not finished: {len(results)} of {expected} scenarios are there",
            where=place,
            remedy="resume it in BenchLocal, and give its summary.json then",
        )
    rows = [_scenario(each, f"{place}[{number}]") for number, each in enumerate(results)]
    _check_ids(rows, place)
    scores = source.table(run.get("scores"), where=f"{where}, scores").get(model)
    stated = source.table(scores, where=f"{where}, scores, {model}") if scores is not None else None
    judged, kept, notes = _judged(rows, stated, f"{where}, scores, {model}")
    attempts = run.get("runsPerTest") or 1
    said = {"tool": TOOL, "model": model, "categories": _categories(stated, f"{where}, scores, {model}")}
    return Imported(
        pack=source.pack_name(pack),
        conditions=source.known(pack=source.identity(TOOL, pack, attempts)),
        totals=judged,
        rows=kept,
        recorded=source.plain({name: value for name, value in said.items() if value}),
        notes=tuple(notes),
    )


def _scenario(given: Any, where: str) -> Row:
    result = source.table(given, where=where)
    item = source.text(result.get("scenarioId"), where=f"{where}, scenarioId")
    status = result.get("status")
    if status not in _SHARES:
        source.refuse(f"{status!r} is none of {', '.join(_SHARES)}", f"{where}, status")
    if result.get("errorType"):
        return source.row(item, None, outcome="infra")
    score = result.get("score")
    points = _SHARES[status] if score is None else source.share(score, where=f"{where}, score", whole=100)
    return source.row(item, points, outcome="scored")


def _check_ids(rows: Sequence[Row], where: str) -> None:
    seen: set[tuple[str, int]] = set()
    for row in rows:
        if (row.item, row.repeat) in seen:
            source.refuse(f"the scenario {row.item} is there twice", where)
        seen.add((row.item, row.repeat))


def _judged(
    rows: Sequence[Row], stated: Mapping[str, Any] | None, where: str
) -> tuple[Totals, tuple[Row, ...] | None, list[str]]:
    """The rows and their sums; or, where the pack weighs its scenarios, the stated totals alone."""
    if stated is None:
        return totals(rows), tuple(rows), ["the summary states no total: that of its scenarios is kept"]
    total = 100 * source.share(stated.get("totalScore"), where=f"{where}, totalScore", whole=100)
    mean = 100 * math.fsum(row.points or 0 for row in rows) / len(rows)
    if abs(total - mean) <= _ROUNDED:
        return totals(rows), tuple(rows), _errors(rows)
    if any(row.outcome == "infra" for row in rows):
        source.refuse(
            "some scenarios ended in an error, and the stated total is not the mean of all",
            where,
            remedy="run those again in BenchLocal, and give its summary.json then",
        )
    overall = Score(points=total, of=100, items=len(rows))
    note = f"totals alone: the stated total is {total:g}, and the mean of the scenarios {mean:.1f}"
    return Totals(overall=overall, categories={}, missing=0), None, [note]


def _errors(rows: Sequence[Row]) -> list[str]:
    count = sum(row.outcome == "infra" for row in rows)
    return [f"{count} of {len(rows)} answers ended in an error: missing here, failed in BenchLocal"] if count else []


def _categories(stated: Mapping[str, Any] | None, where: str) -> dict[str, float]:
    """The scores, from 0 to 100, by category; nothing says how many scenarios each has."""
    found = {}
    for number, each in enumerate((stated or {}).get("categories") or []):
        place = f"{where}, categories[{number}]"
        category = source.table(each, where=place)
        name = source.text(category.get("id"), where=f"{place}, id")
        found[name] = 100 * source.share(category.get("score"), where=f"{place}, score", whole=100)
    return found


def _run(file: Source, choice: Choice) -> list[Imported]:
    run = source.parsed(file)
    where = file.name
    if choice.model is not None:
        source.one_of(choice.model, [str(run.get("model"))], what="model", where=where)
    if "negative-control" in (run.get("model"), run.get("endpoint")):
        source.refuse("these are junk answers that probed the graders (--negative-control)", f"{where}, model")
    packs = source.listed(run.get("packs"), where=f"{where}, packs")
    found, left = [], []
    for number, each in enumerate(packs):
        place = f"{where}, packs[{number}]"
        pack = source.table(each, where=place)
        if not pack.get("skipped") and pack.get("scenarios"):
            found.append(_pack(run, pack, place))
        else:
            left.append(f"{pack.get('pack_id')} is left out: it was not run ({pack.get('status') or 'skipped'})")
    if not found:
        raise UsageError("no pack here has scenarios", where=f"{where}, packs", remedy="run the packs first")
    return [replace(found[0], notes=(*left, *found[0].notes)), *found[1:]]


def _pack(run: Mapping[str, Any], pack: Mapping[str, Any], where: str) -> Imported:
    name = source.text(pack.get("pack_id"), where=f"{where}, pack_id")
    asked = [
        (source.table(each, where=f"{where}, scenarios[{number}]"), f"{where}, scenarios[{number}]")
        for number, each in enumerate(source.listed(pack.get("scenarios"), where=f"{where}, scenarios"))
    ]
    rows = source.of_one_category(_asked(each, place) for each, place in asked)
    _check_ids(rows, where)
    repeats = max(row.repeat for row in rows) + 1
    _check_complete(rows, pack, repeats, where)
    sampling = {source.identity(each.get("sampling_params")): each.get("sampling_params") for each, _ in asked}
    one = next(iter(sampling.values())) if len(sampling) == 1 else None
    said = dict(one) if isinstance(one, dict) else {}
    limit = said.pop("max_tokens", None)
    thinking, doubt = _thinking(run, pack, name)
    scenarios = zip(rows, (each for each, _ in asked), strict=True)
    return Imported(
        pack=source.pack_name(name),
        conditions=source.known(
            sampling=source.settings(said) if "temperature" in said else None,
            thinking=thinking,
            pack=source.identity(
                TOOL, name, pack.get("version"), run.get("thinking_control"), run.get("reasoning_effort")
            ),
            grader=source.identity(TOOL, run.get("runner_version"), name, pack.get("upstream_commit")),
            dataset=source.identity(TOOL, {row.item: each.get("raw_scenario") for row, each in scenarios}),
            max_tokens=limit if type(limit) is int and limit > 0 else None,
        ),
        totals=totals(rows),
        rows=tuple(rows),
        repeats=repeats,
        notes=(*_part(pack, rows), *doubt, *_errors(rows)),
        recorded=source.plain(
            {"tool": "benchlocal-cli", "tool_version": run.get("runner_version"), "model": run.get("model")}
        ),
    )


def _thinking(run: Mapping[str, Any], pack: Mapping[str, Any], name: str) -> tuple[str | None, list[str]]:
    """As it was asked for; unknown where the answers say otherwise, which benchlocal-cli looks at."""
    thinking = pack.get("thinking_enabled")
    if not isinstance(thinking, bool):
        return None, []
    observed = run.get("thinking_validity")
    seen = observed.get(name) if isinstance(observed, dict) else None
    status = seen.get("status", "ok") if isinstance(seen, dict) else "ok"
    asked = "on" if thinking else "off"
    if status != "ok":
        return None, [f"{name}: thinking was to be {asked}, and the answers say otherwise ({status}): unknown"]
    return asked, []


def _part(pack: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    whole, items = pack.get("catalog_scenario_count"), len({row.item for row in rows})
    return [f"{items} of the {whole} scenarios of the pack were run"] if whole is not None and whole != items else []


def _asked(scenario: Mapping[str, Any], where: str) -> Row:
    item = source.text(scenario.get("id"), where=f"{where}, id")
    result = source.table(scenario.get("result"), where=f"{where}, result")
    passed, failure = result.get("passed"), result.get("failure_mode")
    if not isinstance(passed, bool):
        source.refuse(f"{passed!r} says neither true nor false", f"{where}, result.passed")
    tokens = result.get("tokens_completion")
    raw = scenario.get("raw_scenario")
    category = raw.get("category") if isinstance(raw, dict) else None
    about: dict[str, Any] = {
        "repeat": source.count(scenario.get("repeat_index", 1), where=f"{where}, repeat_index", least=1) - 1,
        "category": category if isinstance(category, str) and category.strip() else "all",
        "tokens": tokens if type(tokens) is int and tokens >= 0 else None,
    }
    if passed:
        return source.row(item, 1, outcome="scored", **about)
    if failure in _BROKEN:
        return source.row(item, None, outcome="infra", **about)
    return source.row(item, 0, outcome="truncated" if failure in _CUT else "scored", **about)


def _check_complete(rows: Sequence[Row], pack: Mapping[str, Any], repeats: int, where: str) -> None:
    """Every scenario is there in every repeat, and what the pack states is what the rows come to."""
    items = {row.item for row in rows}
    if len(rows) != len(items) * repeats:
        source.refuse(f"{len(rows)} of {len(items) * repeats} answers are there", f"{where}, scenarios")
    passed = sum(row.points == 1 for row in rows)
    stated = pack.get("passed")
    if stated is not None and source.count(stated, where=f"{where}, passed") != passed:
        source.refuse(f"{stated} passed, it says, and {passed} scenarios did", f"{where}, passed")
    size = pack.get("scenario_count")
    if size is not None and source.count(size, where=f"{where}, scenario_count") != len(items):
        source.refuse(f"{size} scenarios, it says, and {len(items)} are there", f"{where}, scenario_count")
