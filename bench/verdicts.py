"""How fast a gate judges and reports, as whole processes, and how fast pages are made.

    python bench/verdicts.py [--small] [--folder FOLDER]

- python: one that does nothing, for what every other row begins with;
- gate: `registry gate` of a candidate with 10,000 rows against a baseline with as many, on the same items, three runs
  each: totals, paired rules with the bootstrap, a floor, a gain; then with reports of every kind, pages included;
- report --all: the page of 200 candidates in one registry, a tenth of them evaluated and judged.

Aims are in seconds, beside 3 s and 2 s that a person waits gladly; nothing here may load torch.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

from measuring import PROJECT, Aim, Measured, end, machine, measure, table

sys.path.insert(0, str(PROJECT))

GATE, PAGE = 3.0, 2.0
"""Seconds."""
ROWS, CANDIDATES = 10_000, 200
SMALL = 40
PACKS = ("toolcall", "bugfind")
RUNS = 3

POLICY = """
name: bench
gates:
  - name: Toolcall
    rules:
      - paired: {pack: toolcall, margin: 5}
      - floor: {pack: toolcall, at_least: 50}
  - name: Skills
    rules:
      - paired: {packs: [toolcall, bugfind], margin: 5}
      - gain: {packs: [toolcall, bugfind], at_least: 0}
"""

# A command, and on its last line what it loaded that it must not. To fail a gate (1) or leave it open (3) is no error.
COMMAND = """
import sys
from registry.__main__ import main
code = 0
try:
    main()
except SystemExit as end:
    code = end.code or 0
heavy = {"torch", "transformers", "vllm", "stages"} & {name.partition(".")[0] for name in sys.modules}
print("HEAVY", *sorted(heavy))
sys.exit(0 if code in (0, 1, 3) else code)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help=f"{SMALL} candidates on the page of all")
    parser.add_argument("--folder", type=Path, help="where to write")
    options = parser.parse_args()
    print(f"{machine()}\n")
    with tempfile.TemporaryDirectory(dir=options.folder, prefix="bench-verdicts-") as name:
        rows = _rows(Path(name), SMALL if options.small else CANDIDATES)
    print(table(("", "s", "peak, MiB"), [(row.label, f"{row.seconds:.2f}", row.peak >> 20) for row in rows]), "\n")
    _, gate, reported, page = rows
    aims = [
        Aim("gate over 10,000 rows, of 3 s", gate.seconds / GATE, 1),
        Aim("the same with every report, of 3 s", reported.seconds / GATE, 1),
        Aim("the page of all, of 2 s", page.seconds / PAGE, 1),
    ]
    end(aims, small=options.small)


def _rows(folder: Path, candidates: int) -> list[Measured]:
    root = folder / "models"
    _fill(folder, root, candidates)
    gate = ["gate", "c0001", "--policy", folder / "bench.yaml", "--baseline", "c0000", "--root", root]
    every = ["--report", "md,json,junit,html", "--out", folder / "out"]
    return [
        measure("python", [sys.executable, "-c", "pass"]),
        _registry("registry gate", gate),
        _registry("registry gate, every report", [*gate, *every]),
        _registry(f"registry report --all, {candidates} candidates", ["report", "--all", "--root", root, *every[2:]]),
    ]


def _registry(label: str, words: list[str | Path]) -> Measured:
    found = measure(label, [sys.executable, "-c", COMMAND, *words])
    loaded = found.output.splitlines()[-1]
    if loaded.strip() != "HEAVY":
        sys.exit(f"{label} loads what it must not: {loaded}")
    return found


def _fill(folder: Path, root: Path, candidates: int) -> None:
    """Two candidates with rows to compare, and many that share all but one small file with the first."""
    from gates import canonical
    from gates.evidence import totals
    from gates.records import Conditions, Evidence, Row
    from registry import deriving
    from registry.judging import judge, read_policy
    from registry.store import Store

    policy = folder / "bench.yaml"
    policy.write_text(POLICY, encoding="utf-8")
    store = Store.init(root)
    store.add("c0000", PROJECT / "stages" / "toy" / "checkpoint")
    settings = folder / "generation_config.json"
    for number in range(1, candidates):
        settings.write_text(json.dumps({"top_k": number}), encoding="utf-8")
        deriving.derive(store, "c0000", f"c{number:04}", {"generation_config.json": settings})
    known: dict[str, object] = dict.fromkeys(("engine", "engine_version", "reasoning_parser", "tool_parser"), "x")
    known |= dict.fromkeys(("chat_template", "tokenizer", "pack", "grader", "dataset"), "0" * 64)
    known |= {"server_flags": {}, "sampling": {"temperature": 1}, "thinking": "on", "max_tokens": 1, "max_length": 1}
    for number in [0, 1, *range(2, candidates, 10)]:
        digest = store.candidate(f"c{number:04}").digest
        draw = random.Random(number)
        items = ROWS // RUNS // len(PACKS) if number < 2 else 60
        for pack in PACKS:
            rows = [
                Row(
                    item=f"{pack}-{item:05}",
                    repeat=run,
                    category=f"category {item % 12}",
                    points=float(draw.random() < 0.4 + item % 5 / 10),
                    of=1,
                    outcome="scored",
                )
                for item in range(items)
                for run in range(RUNS)
            ]
            written = b"".join(row.to_bytes() + b"\n" for row in rows)
            said = b"".join(
                canonical.dumps(
                    {"item": row.item, "repeat": row.repeat, "responses": ["an answer of some length " * 20]}
                )
                + b"\n"
                for row in rows
            )
            evidence = Evidence(
                format=1,
                candidate=digest,
                pack=pack,
                repeats=RUNS,
                conditions=Conditions(**known),
                totals=totals(rows),
                rows=canonical.digest(written),
                responses=canonical.digest(said),
            )
            store.add_evidence(evidence, rows=written, responses=said, timings={})
        if number > 1:
            judge(store, f"c{number:04}", policy=read_policy(policy), baseline=None)


if __name__ == "__main__":
    main()
