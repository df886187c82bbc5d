"""Having the verifier run the code in an answer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from stages.common.grading.items import Item
from stages.evaluate.journal import Answer
from stages.evaluate.packs import Pack
from stages.evaluate.scoring import pending

if TYPE_CHECKING:
    from stages.common.execution.client import Run


async def executed(run: Run, pack: Pack, item: Item, answer: Answer, *, alone: bool) -> Answer:
    """The answer with what came of its code.

    Args:
        alone: nothing else is at work. Otherwise what ran out of time is not kept: it is to be run again, alone.

    Raises:
        UnavailableError: there is no verifier to be had.
    """
    results = dict(answer.executions)
    for execution in pending(pack, item, answer):
        result = await run(execution)
        if alone or result.outcome != "timeout":
            results[execution.digest] = result.to_json()
    return replace(answer, executions=results)
