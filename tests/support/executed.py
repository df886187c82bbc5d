"""The verifier in its local mode, for tests that have code of scenarios executed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Thread

from stages.common.execution import Execution, Result, settings_of, verifier


@contextmanager
def local_verifier() -> Iterator[Callable[[Execution], Result]]:
    """A function that executes, one program after the other; the same program is executed once."""
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()
    opened = verifier(settings_of({}, unsafe_local=True))
    results: dict[str, Result] = {}
    try:
        run = asyncio.run_coroutine_threadsafe(opened.__aenter__(), loop).result()

        def execute(execution: Execution) -> Result:
            if execution.digest not in results:
                results[execution.digest] = asyncio.run_coroutine_threadsafe(run(execution), loop).result()
            return results[execution.digest]

        try:
            yield execute
        finally:
            asyncio.run_coroutine_threadsafe(opened.__aexit__(None, None, None), loop).result()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
