"""The conditions under which a candidate is asked, as its evidence states them. Nothing is started for that."""

from __future__ import annotations

import json
from pathlib import Path

from gates import canonical
from gates.errors import UsageError
from gates.records import Conditions
from registry.recipes import Evaluate
from registry.store import Candidate
from stages.evaluate import client
from stages.evaluate.engines import Description
from stages.evaluate.packs import Pack


def conditions(candidate: Candidate, pack: Pack, settings: Evaluate, description: Description) -> Conditions:
    """
    Raises:
        UsageError: the candidate has no chat template, tokenizer or config.
    """
    return Conditions(
        engine=description.engine,
        engine_version=description.version,
        server_flags=description.server_flags,
        reasoning_parser=description.reasoning_parser,
        tool_parser=description.tool_parser,
        chat_template=canonical.digest(_chat_template(candidate.folder)),
        tokenizer=canonical.digest(_file(candidate.folder, "tokenizer.json")),
        sampling={"temperature": float(settings.temperature), **client.UNCHANGED, "seed": "the number of the repeat"},
        thinking="on" if settings.thinking else "off",
        pack=pack.digest,
        grader=pack.grader.digest,
        dataset=pack.dataset,
        max_tokens=pack.max_tokens,
        max_length=longest(candidate.folder),
    )


def _chat_template(folder: Path) -> bytes:
    """The candidate's own template, from where transformers and vLLM take it."""
    if (folder / "chat_template.jinja").is_file():
        return _file(folder, "chat_template.jinja")
    template = json.loads(_file(folder, "tokenizer_config.json")).get("chat_template")
    if not isinstance(template, str):
        raise UsageError(
            "the candidate has no chat template, so it cannot be asked as a chat",
            where=str(folder),
            remedy="add the candidate again with its chat_template.jinja",
        )
    return template.encode()


def longest(folder: Path) -> int | None:
    """How many tokens the model holds, by its own config; None if that does not say."""
    config = json.loads(_file(folder, "config.json"))
    return config.get("text_config", config).get("max_position_embeddings")


def _file(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except OSError as error:
        raise UsageError(f"the candidate has no {name}: {error.strerror}", where=str(folder)) from None
