"""The container of a step, through the engine's API: what it writes is handed on, and in the end it is removed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from gates.errors import UsageError
from registry.running.lines import Lines

if TYPE_CHECKING:
    from docker.models.containers import Container

SECONDS_TO_END = 15
_ENGINE_STARTS = 15
_LOOK = 0.5
"""Seconds."""


def follow(container: Container, lines: Lines) -> None:
    """Hands on what the container writes until it has ended, across an engine that is started again meanwhile."""
    from requests.exceptions import ChunkedEncodingError
    from requests.exceptions import ConnectionError as NoConnection
    from urllib3.exceptions import HTTPError

    failing: float | None = None
    while True:
        try:
            hand_on(container, lines, follow=True)
            container.reload()
            failing = None
        except (NoConnection, ChunkedEncodingError, HTTPError):
            failing = failing or time.monotonic()
            if time.monotonic() - failing > _ENGINE_STARTS:
                raise
        if failing is None and container.status not in ("running", "paused"):
            return
        time.sleep(_LOOK)


def hand_on(container: Container, lines: Lines, *, follow: bool) -> None:
    """Hands on what the container has written, but for what `lines` was given of it before."""
    known = lines.fed
    for data in container.logs(stream=True, follow=follow):
        lines.feed(data[known:])
        known = max(0, known - len(data))


def remove(container: Container) -> None:
    """Whatever state it is in; SIGTERM first, so that the stage ends its server and says so."""
    from docker.errors import APIError, NotFound

    try:
        container.stop(timeout=SECONDS_TO_END)
        container.remove(force=True)
    except NotFound:
        return
    except APIError as error:
        if error.status_code != 409:  # it is being removed already
            raise


@contextmanager
def in_our_words() -> Iterator[None]:
    """
    Raises:
        UsageError: instead of what the engine's client raises.
    """
    from docker.errors import DockerException, NotFound
    from requests import RequestException
    from urllib3.exceptions import HTTPError

    try:
        yield
    except NotFound:
        raise UsageError(
            "the container was removed while it ran", remedy="run this again: it goes on where it was"
        ) from None
    except (DockerException, RequestException, HTTPError) as error:
        raise UsageError(
            f"the container engine fails: {reason(error)}", remedy="see `docker info`; then run this again"
        ) from None


def reason(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
