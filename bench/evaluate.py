"""How fast the evaluate stage asks, beside vLLM's own load generator on the same server, and what it does before.

    VLLM=/path/to/environment python bench/evaluate.py [--small] [--repeats N]

One server serves the toy. By turns it is asked by the stage's own runner (journal, grading and progress included) and
by `vllm bench serve`, with the same questions, sampling and number of requests at a time. The runner waits for whole
answers, the other streams them, as each does in use. Requests a second are the median of the turns, after a warm-up.

The phases are those of a first run: until the modules are imported, the candidate and the packs are read, the server
is ready, its parsers are proved, and the first answer is scored.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from measuring import PROJECT, Aim, end, machine, measure, table

sys.path.insert(0, str(PROJECT))

from gates.errors import UsageError
from registry import serving

if TYPE_CHECKING:
    from stages.evaluate.client import Client
    from stages.evaluate.packs import Pack

SHARE = 0.9
"""Of the requests a second that `vllm bench serve` comes to."""
PACKS = ("toy-arithmetic", "toy-facts", "toy-strings")
"""Those without tools, which `vllm bench serve` cannot offer."""
TIMES, SMALL = 10, 2
"""How often each of their 120 items is asked in one turn."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help=f"ask each item {SMALL} times a turn")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each")
    options = parser.parse_args()
    try:
        serving.program()
    except UsageError as error:
        sys.exit(str(error))
    phases = {"imported": measure("imports", [sys.executable, "-m", "stages.evaluate", "--help"]).seconds}
    with tempfile.TemporaryDirectory(prefix="bench-evaluate-") as name:
        rates = _rates(Path(name), phases, SMALL if options.small else TIMES, options.repeats)
    print(f"{machine()}\n")
    shown = [(label, f"{median(each):.1f}", f"{min(each):.1f}", f"{max(each):.1f}") for label, each in rates.items()]
    print(table(("", "requests/s", "least", "most"), shown) + "\n")
    print(table(("until", "s"), [(phase, f"{seconds:.2f}") for phase, seconds in phases.items()]) + "\n")
    ours, theirs = (median(each) for each in rates.values())
    end([Aim("requests/s, of vllm bench serve", ours / theirs, SHARE, at_least=True)], small=options.small)


def _rates(folder: Path, phases: dict[str, float], times: int, turns: int) -> dict[str, list[float]]:
    from registry.recipes import Evaluate
    from registry.store import Store
    from registry.verify import demand_whole
    from stages.evaluate import engines
    from stages.evaluate.packs import read_pack

    store = Store.init(folder / "models")
    store.add("toy", PROJECT / "stages" / "toy" / "checkpoint")
    candidate, settings = store.candidate("toy"), Evaluate(packs=list(PACKS), engine="vllm")
    with _clocked(phases, "the candidate and the packs read"):
        demand_whole(store, candidate, full=False, harm="", remedy="")
        packs = [read_pack(PROJECT, name) for name in PACKS]
        description = engines.describe(settings, PROJECT, candidate.manifest.shape, where="the bench")
    begun = time.perf_counter()
    with engines.start(description, candidate.folder) as engine:
        phases["the server ready"] = time.perf_counter() - begun
        return asyncio.run(_by_turns(engine.base_url, folder, packs, settings, phases, times, turns))


async def _by_turns(
    base_url: str, folder: Path, packs: list[Pack], settings: Any, phases: dict[str, float], times: int, turns: int
) -> dict[str, list[float]]:
    from stages.evaluate import client, together
    from stages.evaluate.proof import prove

    pack = _many(packs, times)
    rates: dict[str, list[float]] = {"the stage": [], "vllm bench serve": []}
    async with client.connect(base_url, concurrency=together.CONCURRENCY) as connection:
        with _clocked(phases, "its parsers proved"):
            await prove(connection, packs)
        begun = time.perf_counter()
        few = replace(pack, items=pack.items[: together.CONCURRENCY])
        first = await _ours(connection, few, settings, folder, "warm")
        phases["the first answer scored"] = first - begun
        await _theirs(connection, pack, base_url, folder)
        for turn in range(turns):
            begun = time.perf_counter()
            await _ours(connection, pack, settings, folder, f"turn-{turn}")
            rates["the stage"].append(len(pack.items) / (time.perf_counter() - begun))
            rates["vllm bench serve"].append(await _theirs(connection, pack, base_url, folder))
    return rates


def _many(packs: list[Pack], times: int) -> Pack:
    """One pack of all items, so many times."""
    items = [item for pack in packs for item in pack.items]
    copies = [item.model_copy(update={"id": f"{item.id}-{copy}"}) for copy in range(times) for item in items]
    return replace(packs[0], items=tuple(copies))


async def _ours(client: Client, pack: Pack, settings: Any, folder: Path, name: str) -> float:
    """Asks the pack as the stage does. Gives when the first answer was scored."""
    from registry.progress import progress
    from stages.evaluate import runner
    from stages.evaluate.journal import Journal

    scored: list[float] = []
    with progress("evaluate", total=len(pack.items), unit="items") as bar, Journal(folder / name) as journal:

        class Watched:
            def advance(self, amount: float = 1, note: str = "") -> None:
                if amount:
                    scored.append(time.perf_counter())
                bar.advance(amount, note)

        await runner.ask(client, pack, settings, journal, Watched(), check=lambda: None)
        answered = len(journal.answers)
    if answered < len(pack.items):
        sys.exit(f"the server left {len(pack.items) - answered} questions open")
    return scored[0]


async def _theirs(client: Client, pack: Pack, base_url: str, folder: Path) -> float:
    """Requests a second of `vllm bench serve` with the same questions."""
    from stages.evaluate import together
    from stages.evaluate.client import request

    questions = folder / "questions.json"  # in the form of ShareGPT, which it reads without pandas
    asked = [item.messages[-1]["content"] for item in pack.items]
    questions.write_text(json.dumps([{"conversations": [{"value": each}, {"value": "."}]} for each in asked]))
    body = request([], max_tokens=pack.max_tokens, thinking=True)
    extra = {key: value for key, value in body.items() if key not in ("messages", "max_tokens", "temperature")}
    command = [
        *(serving.program(), "bench", "serve", "--backend", "openai-chat", "--endpoint", "/v1/chat/completions"),
        *("--base-url", base_url, "--model", folder / "models" / "candidates" / "toy" / "model"),
        *("--served-model-name", client.model, "--dataset-name", "sharegpt", "--dataset-path", questions),
        *("--sharegpt-output-len", str(pack.max_tokens), "--num-prompts", str(len(pack.items))),
        *("--max-concurrency", str(together.CONCURRENCY), "--temperature", "0", "--extra-body", json.dumps(extra)),
        *("--disable-tqdm", "--disable-shuffle"),
        *("--save-result", "--result-dir", folder, "--result-filename", "r.json"),
    ]
    await asyncio.to_thread(measure, "vllm bench serve", command)
    result = json.loads((folder / "r.json").read_text())
    if result["completed"] != len(pack.items):
        sys.exit(f"vllm bench serve completed {result['completed']} of {len(pack.items)}")
    return float(result["request_throughput"])


@contextmanager
def _clocked(phases: dict[str, float], name: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    phases[name] = time.perf_counter() - begun


if __name__ == "__main__":
    main()
