"""A vLLM server that somebody else has started: it is asked as it is, and neither started nor ended here.

Its version is its own word, and its parsers are proved like any other's. Which weights it has, and under which further
flags, it does not say: the name that it serves them by, or their folder, must be the candidate's, and the flags are
those that the recipe states. Evidence records that this was stated.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from gates.errors import UsageError
from registry.recipes import Evaluate
from registry.store import Candidate
from stages.evaluate.engines import vllm
from stages.evaluate.engines.server import Description, Engine

KEY = "SLUICE_API_KEY"
"""Names the variable with the key that the server wants, if it wants one (vLLM: --api-key)."""
STATED = ("reasoning_parser", "tool_parser", "server_flags", "chat_template", "tokenizer")
"""The conditions that rest on the recipe's word, and on that of who started the server on the candidate."""
MARK = "started elsewhere"
_PATIENCE = 30.0
"""Seconds for what a server says of itself."""


def describe(
    settings: Evaluate, candidate: Candidate, base_url: str, *, longest: int | None, where: str
) -> Description:
    """
    Args:
        base_url: with or without /v1 behind it.
        longest: tokens that the candidate can hold, by its own config; None if it does not say.
        where: the step, for messages.

    Raises:
        UsageError: no vLLM answers there, it serves something else, or holds another length than the recipe says.
    """
    if settings.engine == "embedded":
        raise UsageError("the step asks for engine: embedded", where=where, remedy="leave that out, or --base-url")
    flags = vllm.flags(settings, where)
    address = _address(base_url)
    version = _told(address, "/version").get("version")
    if not isinstance(version, str):
        raise _no_vllm(address, "it does not say its version")
    model = _serving(_told(address, "/v1/models").get("data"), candidate, address)
    _demand_length(model.get("max_model_len"), _stated_length(flags), longest, address)
    return Description(
        engine="vllm",
        version=version.partition("+")[0],
        device=None,
        reasoning_parser=settings.reasoning_parser,
        tool_parser=settings.tool_parser,
        server_flags=flags,
        program=None,
        base_url=address,
        model=str(model["id"]),
    )


@contextmanager
def start(description: Description, folder: Path, *, keep: Sequence[int] = ()) -> Iterator[Engine]:  # noqa: ARG001
    """There is nothing to start."""
    assert description.base_url is not None
    yield Engine(description.base_url, None, model=description.model, key=os.environ.get(KEY))


def _address(base_url: str) -> str:
    parts = urlsplit(base_url)
    if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.query:
        raise UsageError(
            "--base-url is no address of a server",
            where="--base-url",  # the address itself may hold a password
            remedy=f"write it as http://127.0.0.1:8000, without a name or key in it; a key goes into {KEY}",
        )
    return base_url.rstrip("/").removesuffix("/v1")


def _told(address: str, path: str) -> dict[str, Any]:
    import httpx

    key = os.environ.get(KEY)
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(address + path, headers=headers, timeout=_PATIENCE, trust_env=False)
        value = answer.json() if answer.is_success else None
    except httpx.RequestError as error:
        raise UsageError(
            f"no server answers: {error}",
            where=address + path,
            remedy="start it, or correct --base-url; the stages' containers have no network, so run this outside of "
            "them: .venv-eval/bin/python -m stages.evaluate --base-url …",
        ) from None
    except ValueError:
        value = None
    if answer.status_code in (401, 403):
        what = "refuses the key" if key else "wants a key"
        raise UsageError(f"the server {what} ({answer.status_code})", where=address, remedy=f"set {KEY}")
    if not isinstance(value, dict):
        raise _no_vllm(address, f"{path} answers {answer.status_code}")
    return value


def _no_vllm(address: str, why: str) -> UsageError:
    return UsageError(
        f"this is no vLLM server: {why}",
        where=address,
        remedy="start vLLM; of other servers the parsers cannot be proved, which is done before scores are taken",
    )


def _serving(models: object, candidate: Candidate, address: str) -> Mapping[str, Any]:
    """The server's entry for the candidate: served by its name, or from its folder."""
    found = [each for each in models if isinstance(each, dict) and "id" in each] if isinstance(models, list) else []
    folder = candidate.resolved()
    for each in found:
        root = each.get("root")
        same = isinstance(root, str) and Path(root).is_dir() and folder.samefile(root)
        if same or each["id"] == candidate.name:
            return each
    raise UsageError(
        f"the server does not serve {candidate.name}, but {', '.join(str(each['id']) for each in found) or 'nothing'}",
        where=address,
        remedy=f"start it on {candidate.folder}, or with --served-model-name {candidate.name} where that is elsewhere",
    )


def _stated_length(flags: Mapping[str, Any]) -> object:
    return next((value for flag, value in flags.items() if flag.replace("_", "-") == "max-model-len"), None)


def _demand_length(held: object, stated: object, longest: int | None, address: str) -> None:
    if isinstance(held, int) and (held != stated if stated is not None else held < (longest or 0)):
        raise UsageError(
            f"the server holds {held} tokens, and not {longest if stated is None else stated}",
            where=address,
            remedy=f"state the flags that it was started with, such as server_flags: {{max-model-len: {held}}}",
        )
