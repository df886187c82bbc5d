"""Results of other tools, read as evidence: bytes in, rows and conditions out.

    lm_eval     lm-eval: results_*.json, and samples_*.jsonl beside it
    inspect_ai  Inspect: logs, .eval and .json
    benchlocal  BenchLocal: summary.json of the app, the result file of benchlocal-cli
    evalplus    EvalPlus: *_eval_results.json
    totals      scores alone, in a YAML file that a person writes

An importer keeps the conditions that its source states. The others stay unknown, which agrees with nothing known.
It is a module with `TOOL`, `recognises(files)` and `read(files, choice)`; it knows its files by what is in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

from gates.errors import InvalidEvidence, UsageError
from gates.importers import benchlocal, evalplus, inspect_ai, lm_eval, totals
from gates.importers.source import AS_WRITTEN, Choice, Imported, Source, first_letter, one_of, parsed, unwrapped

_IMPORTERS: tuple[ModuleType, ...] = (lm_eval, inspect_ai, benchlocal, evalplus, totals)

_MISSHAPEN = (ArithmeticError, AttributeError, IndexError, KeyError, RecursionError, TypeError, ValueError)
"""What a field of another kind than expected comes to, where no importer looked at it closely."""

TOOLS: dict[str, ModuleType] = {each.TOOL: each for each in _IMPORTERS}
"""The importers by the name of their tool, as `--from` has it."""


def read(files: Sequence[Source], *, tool: str | None = None, choice: Choice | None = None) -> list[Imported]:
    """The evidence in `files`, all of one tool.

    Args:
        tool: one of TOOLS; without it the tool whose files these are.

    Raises:
        UsageError: no importer knows them, or they are not whole, or a choice has to be made.
        InvalidEvidence: what they say cannot be: NaN, an item twice, totals that are not those of the rows.
    """
    if not files:
        raise UsageError("there is no file to read", remedy="registry evidence add NAME FILE…")
    for file in files:
        unwrapped(file)
    found = TOOLS.get(tool) if tool is not None else _recognised(files)
    if found is None:
        raise UsageError(f"there is no importer {tool!r}", remedy=f"choose from {', '.join(TOOLS)}")
    choice = choice or Choice()
    if choice.model is not None and found is not benchlocal:
        raise UsageError(
            f"--model chooses in files of BenchLocal, and these are of {found.TOOL}", remedy="leave it out"
        )
    if choice.metric is not None and found in (benchlocal, totals):
        raise UsageError(f"files of {found.TOOL} have no metrics to choose from", remedy="leave --metric out")
    try:
        imported: list[Imported] = found.read(files, choice)
        for each in imported:
            each.written()
    except _MISSHAPEN as error:
        raise InvalidEvidence(
            f"this is not as {found.TOOL} writes it: {type(error).__name__}, {error}",
            where=", ".join(file.name for file in files[:4]),
            remedy=AS_WRITTEN,
        ) from None
    finally:
        parsed.cache_clear()
    if choice.task is None or found is lm_eval:  # which also takes a task out of a group
        return imported
    wanted = one_of(choice.task, dict.fromkeys(each.pack for each in imported), what="task", where=files[0].name)
    return [each for each in imported if each.pack == wanted]


def _recognised(files: Sequence[Source]) -> ModuleType:
    for importer in _IMPORTERS:
        if importer.recognises(files):
            return importer
    for file in files:
        if first_letter(file) == b"{" and not file.name.endswith(".jsonl"):
            parsed(file)  # says what keeps it from being JSON
    raise UsageError(
        "this is no result of a tool that is known",
        where=", ".join(file.name for file in files[:4]),
        remedy=f"--from says whose it is: {', '.join(TOOLS)}; then the error says what is wrong with it",
    )
