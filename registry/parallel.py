"""Work on many files side by side: one progress bar, and when one fails the others stop."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import TypeVar

from registry.bulk import Advance
from registry.progress import progress

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
    from concurrent.futures import ThreadPoolExecutor, as_completed
    from threading import Event

    stopped = Event()
    with progress(what, total=sum(sizes.values()), unit="B") as bar:

        def advance(count: int) -> None:
            if stopped.is_set():
                raise _Stopped
            bar.advance(count)

        if sum(sizes.values()) < small:
            return {name: work(name, advance) for name in sizes}
        with ThreadPoolExecutor(workers) as pool:
            largest_first = sorted(sizes, key=lambda name: -sizes[name])
            futures = {name: pool.submit(work, name, advance) for name in largest_first}
            try:
                for future in as_completed(futures.values()):
                    future.result()
            except BaseException as error:
                if not finish or not isinstance(error, Exception):
                    stopped.set()
                pool.shutdown(cancel_futures=True)
                raise
            return {name: futures[name].result() for name in sizes}


class _Stopped(Exception):
    """Another file's work failed, or the user stopped it."""
