"""The engine, through its API: what the container of a step writes is handed on, and in the end it is removed."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from gates.errors import UsageError
from registry.running.lines import Lines

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container
    from docker.models.networks import Network
    from docker.models.volumes import Volume

SECONDS_TO_END = 15
_ENGINE_STARTS = 15
_ENGINE_ANSWERS = 60
_LOOK = 0.5
"""Seconds."""
_ENGINE = (
    "start Docker, or join the group that may use it (`docker info` says more; DOCKER_HOST and DOCKER_CONTEXT name an "
    "engine); or --local"
)


def connected() -> DockerClient:
    """The engine that the command docker talks to, for Compose does: DOCKER_HOST, DOCKER_CONTEXT, `docker context use`.

    Raises:
        UsageError: it does not answer.
    """
    try:
        import docker
        from requests import RequestException
    except ImportError:
        raise UsageError("the Python package docker is not installed", remedy="make envs; or --local") from None
    # the package finds no context where there is no config.json, and takes the usual engine for one that is not there
    ask = ["docker", "context", "inspect", "--format", "{{.Endpoints.docker.Host}}"]
    asked = subprocess.run(ask, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if asked.returncode:
        raise UsageError(f"the command docker names no engine: {reason(asked.stderr)}", remedy=_ENGINE)
    host = asked.stdout.strip()
    try:
        # of another address the package reads the context's certificates too
        there = os.environ | ({"DOCKER_HOST": host} if host.startswith("unix:") else {})
        engine = docker.from_env(timeout=_ENGINE_ANSWERS, environment=there)
        engine.ping()
    # the last three are of an address, or a configuration, that is none
    except (docker.errors.DockerException, RequestException, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"no container engine answers: {reason(error)}", remedy=_ENGINE) from None
    return engine


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


def discard(left: Network | Volume) -> None:
    """Removes it, unless somebody else's container uses it."""
    from docker.errors import APIError

    with suppress(APIError):
        left.remove()


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


def reason(error: Exception | str) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
