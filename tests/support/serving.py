"""A chat model with random weights, and the embedded server over it, in this process or in one of its own."""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx

from registry.manifests import Shape
from registry.recipes import Evaluate
from stages.evaluate import engines
from stages.evaluate.client import Client
from stages.evaluate.server.api import build
from stages.evaluate.server.model import Completion, Generator, Prompt
from stages.evaluate.server.parsing import Parsers
from tests.support import moe

PROJECT = Path(__file__).resolve().parents[2]


def embedded(project: Path) -> engines.Description:
    """The embedded engine as a recipe that says nothing of it gets it."""
    shape = Shape(family="qwen3_moe", layers=2, experts=4, top_k=2, quantization=None, tensor_bytes=0)
    return engines.describe(Evaluate(packs=["any"], engine="embedded"), project, shape, where="a test")


def template(*, on: str = "", off: str = "<think>\\n\\n</think>\\n\\n") -> str:
    """A chat template that offers tools.

    Args:
        on, off: what it writes at the start of the assistant's turn, thinking on and off.
    """
    return (
        "{%- if tools %}<|im_start|>system\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
        "{%- for message in messages %}<|im_start|>{{ message.role + '\n' + message.content }}<|im_end|>\n{% endfor %}"
        "{%- if add_generation_prompt %}<|im_start|>assistant\n"
        f"{{{{- '{off}' if enable_thinking is defined and enable_thinking is false else '{on}' }}}}"
        "{%- endif %}"
    )


def write_chat_model(folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """An untrained model whose template can switch thinking off."""
    moe.write_model(folder, seed=seed, **{"max_position_embeddings": 1024} | changes)
    (folder / "chat_template.jinja").write_text(template(), encoding="utf-8")
    return folder


def application(generator: Generator, parsers: Parsers | None = None) -> Any:
    """The server's application; each prompt is answered at once and alone."""

    def submit(prompt: Prompt) -> Future[Completion]:
        future: Future[Completion] = Future()
        future.set_result(generator.complete([prompt])[0])
        return future

    return build(generator, parsers or Parsers(), submit, name="candidate", version="test")


@asynccontextmanager
async def connected(app: Any) -> AsyncIterator[Client]:
    """A client of an application, without a network between them."""
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://server") as http:
        yield Client(http, "candidate")
