"""Who one is to an OCI registry: what `docker login` and `oras login` keep, exchanged by oras for what a request needs.

Docker's configuration is read here. (oras reads that of the home folder too, though DOCKER_CONFIG names another, and
which of the two it believes is left to chance.)
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gates.errors import UsageError


def answering(refused: Any, session: Any, site: str, repository: str, *, where: str) -> tuple[str | None, set[str]]:
    """What a request has to say for the registry not to refuse it as it does in `refused`.

    Args:
        refused: an answer of the registry itself (requests), with what it wants in `Www-Authenticate`.
        site: such as https://host:port.
        where: what the repository is called in messages.

    Returns:
        the header `Authorization`, None if nothing is known; and what nobody may see of it.

    Raises:
        UsageError: it wants a password sent without TLS, though it has TLS itself; or what docker keeps, or what a
            service gives for it, cannot be read.
    """
    from oras.auth import get_auth_backend
    from oras.auth.utils import parse_auth_header
    from oras.container import Container

    challenge = refused.headers.get("Www-Authenticate", "")
    kind, realm = challenge.partition(" ")[0].lower(), parse_auth_header(challenge).realm
    if kind not in ("basic", "bearer"):
        return None, set()
    if kind == "bearer" and not realm:
        raise UsageError("the registry does not say who gives tokens for it", where=where, remedy="send it elsewhere")
    if kind == "bearer" and site.startswith("https:") and not str(realm).startswith("https:"):
        raise UsageError("the registry wants credentials sent without TLS", where=where, remedy="send it elsewhere")
    secrets: set[str] = set()
    backend = get_auth_backend("basic" if kind == "basic" else "token", session)
    try:
        backend._auth_config = _docker_config()
        backend.load_configs(Container(f"{urlsplit(site).netloc}/{repository}"))
        kept = getattr(backend, "_basic_auth", None)
        if kind == "basic" and not kept:
            return None, secrets
        if kept:
            secrets |= {kept, base64.b64decode(kept).decode().partition(":")[2]}
        headers, given = backend.authenticate_request(refused, {}, refresh=True)
        found = headers.get("Authorization") if given else None
        # nothing else can stand in a header
        legible = found is None or (found.isascii() and found.isprintable())
    except (ValueError, KeyError, TypeError, AttributeError, PermissionError) as error:
        raise _unreadable(type(error).__name__, where) from None
    if not legible:
        raise _unreadable("its letters", where)
    return found, secrets | ({found.partition(" ")[2]} if found else set())


def _docker_config() -> dict[str, Any]:
    """Docker's configuration, in the form that oras keeps it in."""
    path = Path(os.environ.get("DOCKER_CONFIG") or Path.home() / ".docker") / "config.json"
    found = json.loads(path.read_bytes()) if path.is_file() else {}
    return {"auths": {}} | {key: value for key, value in found.items() if value is not None}


def _unreadable(what: str, where: str) -> UsageError:
    return UsageError(
        f"docker's credentials, or what the registry gives for them, cannot be read ({what})",
        where=where,
        remedy="docker login, or oras login",
    )
