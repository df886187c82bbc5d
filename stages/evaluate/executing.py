"""Having the verifier run the code in answers."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING

from stages.common.grading.items import Item
from stages.evaluate.journal import Answer
from stages.evaluate.packs import Pack
from stages.evaluate.scoring import pending

if TYPE_CHECKING:
    from stages.common.execution import Execution, Result
    from stages.common.execution.client import Run


def once(run: Run) -> Run:
    """`run`, but what was executed already is not executed again: a reference solution for every repeat of its item.

    What ran out of time is, whenever it is asked for.
    """
    kept: dict[str, Result] = {}
    turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def run_once(execution: Execution) -> Result:
        async with turns[execution.digest]:
            if execution.digest in kept:
                return kept[execution.digest]
            result = await run(execution)
            if result.outcome != "timeout":
                kept[execution.digest] = result
            return result

    return run_once


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
