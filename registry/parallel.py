"""Work on many files side by side: one progress bar, and when one fails the others stop."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from registry.bulk import Advance
from registry.progress import progress

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

Result = TypeVar("Result")

WORKERS = min(16, 1 + (len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1))
"""Hashing leaves Python's lock free, so each keeps a core busy, and one waits for the disk meanwhile; more than a disk
can feed would be no faster."""

SMALL = 32 << 20
"""Bytes; less than this is done in order by the calling thread."""


def each_file(
    what: str,
    sizes: Mapping[str, int],
    work: Callable[[str, Advance], Result],
    *,
    workers: int = WORKERS,
    small: int = SMALL,
    finish: bool = False,
) -> dict[str, Result]:
    """What `work` gives for each file, by its name; the largest begin first.

    Args:
        what: what is done, for the progress bar.
        sizes: the bytes that there are to do for each file.
        work: is given a name, and what to tell how many bytes came.
        finish: whether files that are begun are finished, though another failed.

    Raises:
        whatever the first `work` that fails raises; the others are stopped where they next tell how far they are.
    """
    from concurrent.futures import as_completed

    stopped = threading.Event()
    with progress(what, total=sum(sizes.values()), unit="B") as bar:

        def advance(count: int) -> None:
            if stopped.is_set():
                raise _Stopped
            bar.advance(count)

        if sum(sizes.values()) < small:
            return {name: work(name, advance) for name in sizes}
        with pool(workers) as threads:
            try:
                largest_first = sorted(sizes, key=lambda name: -sizes[name])
                futures = {name: threads.submit(work, name, advance) for name in largest_first}
                for future in as_completed(futures.values()):
                    future.result()
            except BaseException as error:
                if not finish or not isinstance(error, Exception):
                    stopped.set()
                raise
            return {name: futures[name].result() for name in sizes}


@contextmanager
def pool(workers: int, begin: Callable[[], object] = lambda: None) -> Iterator[ThreadPoolExecutor]:
    """Threads, none of which is at work any more when the context is left; what has not begun by then is cancelled.

    A `ThreadPoolExecutor` alone does not know of a thread whose start was interrupted (SIGINT, SIGTERM), and does not
    wait for it.

    Args:
        begin: is called first in each thread.
    """
    from concurrent.futures import ThreadPoolExecutor

    known: list[threading.Thread] = []

    def enter() -> None:
        known.append(threading.current_thread())
        begin()

    with ThreadPoolExecutor(workers, initializer=enter) as threads:
        try:
            yield threads
        finally:
            threads.shutdown(cancel_futures=True)  # who is not known by now finds nothing to do
            for thread in known:
                thread.join()


class _Stopped(Exception):
    """Another file's work failed, or the user stopped it."""
