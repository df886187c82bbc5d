"""The embedded engine's process: a small OpenAI-compatible server, for a first try without vLLM.

    python -m stages.evaluate.embedded --model FOLDER [--port 0] [--reasoning-parser qwen3|none] …
    python -m stages.evaluate.embedded --describe

It listens on 127.0.0.1 only, says where in one JSON line on stdout, and ends at SIGTERM or as soon as its stdin is
closed: so it never outlives the program that started it, however that ends.

`transformers serve` is not used: it answers one request at a time on a CPU and refuses `structured_outputs`, without
which the parsers cannot be proved.
"""

from __future__ import annotations

import argparse
import json
import os
import queue
import socket
import sys
import threading
import time
from concurrent.futures import Future
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stages.evaluate.server.model import Completion, Generator, Prompt

    Queue = queue.SimpleQueue[tuple[Prompt, "Future[Completion]"]]

REVISION = 2
"""To be raised whenever this server could answer anything differently: evidence of two revisions is not compared."""

MODEL_NAME = "candidate"
LARGEST_BATCH = 32
GATHERING = 0.01
"""Seconds that a request waits for others to be answered with."""


def main() -> None:
    options = _options()
    if options.describe:
        sys.stdout.write(json.dumps(describe()) + "\n")
        return
    threading.Thread(target=_end_with_stdin, daemon=True).start()
    serve(options)


def describe() -> dict[str, Any]:
    """What this engine is here, as far as it bears on answers. Nothing heavy is imported: this takes milliseconds."""
    torch_version = version("torch")
    device = "cuda" if os.environ.get("SLUICE_DEVICE") != "cpu" and _gpu_for(torch_version) else "cpu"
    return {
        "engine": "embedded",
        "engine_version": f"{REVISION} (transformers {version('transformers')}, torch {torch_version})",
        "device": device,
        "dtype": "bfloat16" if device == "cuda" else "float32",
    }


def serve(options: argparse.Namespace) -> None:
    """Loads the model, then answers until it is stopped. This thread generates; another one speaks HTTP."""
    import uvicorn

    from stages.evaluate.server.api import build
    from stages.evaluate.server.model import Generator, LoadError
    from stages.evaluate.server.parsing import Parsers

    try:
        generator = Generator(options.model, device=options.device, dtype=options.dtype)
    except LoadError as error:
        sys.exit(str(error))
    waiting: Queue = queue.SimpleQueue()

    def submit(prompt: Prompt) -> Future[Completion]:
        future: Future[Completion] = Future()
        waiting.put((prompt, future))
        return future

    parsers = Parsers(_parser(options.reasoning_parser), _parser(options.tool_call_parser))
    app = build(generator, parsers, submit, name=MODEL_NAME, version=describe()["engine_version"])
    # Named as TCP, or asyncio would not set TCP_NODELAY and each answer would wait 40 ms for an acknowledgement.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", options.port))
    # Not in the main thread uvicorn leaves the signals alone, and SIGTERM ends the process at once: it has no state.
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False, lifespan="off"))
    threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True).start()
    while not server.started:
        time.sleep(0.005)
    sys.stdout.write(json.dumps({"port": listening.getsockname()[1]}) + "\n")
    sys.stdout.flush()
    _generate(generator, waiting)


def _generate(generator: Generator, waiting: Queue) -> None:
    """Answers what waits, in batches, for ever."""
    while True:
        batch = [waiting.get()]
        deadline = time.monotonic() + GATHERING
        while len(batch) < LARGEST_BATCH:
            try:
                batch.append(waiting.get(timeout=max(0, deadline - time.monotonic())))
            except queue.Empty:
                break
        batch = [each for each in batch if each[1].set_running_or_notify_cancel()]  # some have hung up
        if not batch:
            continue
        try:
            completions = generator.complete([prompt for prompt, _ in batch])
        except Exception as error:  # noqa: BLE001 - whatever it is, those who wait are told, and the next batch is tried
            for _, future in batch:
                future.set_exception(error)
            continue
        for (_, future), completion in zip(batch, completions, strict=True):
            future.set_result(completion)


def _end_with_stdin() -> None:
    """Ends the process when the other end of stdin is closed, which the kernel does for whoever dies."""
    while os.read(0, 4096):
        pass
    os._exit(0)


def _gpu_for(torch_version: str) -> bool:
    """Whether there is an NVIDIA GPU and a torch that could use it, found out without importing torch."""
    return Path("/dev/nvidiactl").exists() and not torch_version.endswith("+cpu")


def _parser(name: str) -> str | None:
    return None if name == "none" else name


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m stages.evaluate.embedded", description="The embedded engine.")
    parser.add_argument("--describe", action="store_true", help="say what this engine is, as JSON, and end")
    parser.add_argument("--model", type=Path, help="the checkpoint's folder")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--reasoning-parser", choices=("qwen3", "none"), default="none")
    parser.add_argument("--tool-call-parser", choices=("hermes", "none"), default="none")
    options = parser.parse_args()
    if not options.describe and options.model is None:
        parser.error("--model is missing")
    return options


if __name__ == "__main__":
    main()
