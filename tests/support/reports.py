"""Reports for tests: of two candidates with rows, answers and a lineage, and a page of many candidates."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from gates import canonical
from gates.policy import parse_policy
from gates.records import Evidence, GateResult, Row, RuleResult
from gates.reports import Ancestor, Entry, Made, Overview, Report, Subject, Trained, Training, build
from gates.verdicts import judge
from tests.support.scores import BASELINE, CANDIDATE, header, totals_alone

POLICY = """
name: agentic
gates:
  - name: Toolcall
    rules:
      - drop: {pack: toolcall, at_most: 5}
      - floor: {pack: toolcall, category: Parameter Precision, at_least: 90}
  - name: Skills
    rules:
      - paired: {pack: bugfind, margin: 5}
      - gain: {packs: [bugfind, instructfollow], at_least: 5}
"""
CATEGORIES = ("Tool Selection", "Parameter Precision", "Multi-turn")


def report(*, said: str = "The answer is 42.", subject: Subject | None = None, **changes: Any) -> Report:
    """A failed candidate: tool calls lost items, the others moved both ways; every section of a page has something.

    Args:
        said: what both models answered to every item; `changes` are to the candidate's conditions.
    """
    rows: dict[str, list[Row]] = {}
    blobs: dict[str, bytes] = {}
    sides: list[dict[str, Evidence]] = []
    for owner, runs in ((CANDIDATE, _RUNS[0]), (BASELINE, _RUNS[1])):
        known = changes if owner == CANDIDATE else {}
        found = {}
        for pack, passes in runs.items():
            asked = [row for repeat, passed in enumerate(passes) for row in _asked(passed, repeat)]
            responses = b"".join(_response(row, said) + b"\n" for row in asked)
            blobs[canonical.digest(responses)] = responses
            made = header(asked, pack=pack, candidate=owner, repeats=len(passes), **known)
            made = made.model_copy(update={"responses": canonical.digest(responses)})
            found[made.identity()] = made
            rows[made.identity()] = asked
        sides.append(found)
    verdict = judge(
        parse_policy(POLICY, "policy.yaml"),
        candidate=CANDIDATE,
        evidence=sides[0],
        baseline=BASELINE,
        baseline_evidence=sides[1],
        rows=rows,
    )
    return build(
        verdict,
        evidence=sides[0],
        baseline_evidence=sides[1],
        rows=rows,
        subject=SUBJECT if subject is None else subject,
        load=blobs.__getitem__,
    )


def hostile(text: str) -> Report:
    """Everywhere where a model, a pack's author or a registry has a word, it is `text`."""
    said = report(said=text)
    flips = tuple(flip.model_copy(update={"item": text, "category": text}) for flip in said.flips[:3])
    subject = SUBJECT.model_dump() | dict.fromkeys(("candidate", "baseline", "conclusion", "fit"), text)
    subject |= {"differences": (text,), "cost": (text,)}
    words = dict.fromkeys(("experts", "mix", "reference", "stopped"), text)
    subject["training"] = [{"of": text, "record": TRAPPED.model_dump() | words}, {"of": text, "unread": text}]
    subject["lineage"] = [{"name": text, "digest": "c" * 64, "op": text, "settings": {text: text}}]
    rule = RuleResult(rule=text, status="failed", detail=text)
    verdict = said.verdict.model_copy(
        update={"gates": (GateResult(gate=text, status="failed", rules=(rule,)),), "reasons": (text,)}
    )
    conditions = tuple(
        each.model_copy(update={"field": text, "candidate": text, "agrees": False}) for each in said.conditions[:1]
    )
    packs = tuple(
        pack.model_copy(
            update={
                "flaky": (text,),
                "not_compared": text,
                "outcomes": {text: 1},
                "categories": tuple(part.model_copy(update={"category": text}) for part in pack.categories),
            }
        )
        for pack in said.packs
    )
    return said.model_copy(
        update={
            "verdict": verdict,
            "decided_by": rule,
            "subject": Subject(**subject),
            "flips": flips,
            "conditions": conditions,
            "packs": packs,
        }
    )


def story(policy: str, scores: Mapping[str, float], baseline: Mapping[str, float]) -> Report:
    """From totals alone, and with nothing known of the candidate."""
    ours = totals_alone(scores)
    theirs = totals_alone(baseline, candidate=BASELINE)
    verdict = judge(
        parse_policy(policy, "policy.yaml"),
        candidate=CANDIDATE,
        evidence=ours,
        baseline=BASELINE,
        baseline_evidence=theirs,
    )
    return build(verdict, evidence=ours, baseline_evidence=theirs)


TRAPPED = Training.model_validate(
    {
        "format": 1,
        "experts": "nf4",
        "mix": "sft",
        "reference": "held-out",
        "planned_steps": 1200,
        "steps": 400,
        "stopped": "at step 400 the loss of the model as it would ship is 1.2861, above the 0.9000 where it began",
        "shipped_step": 50,
        "limit_gap": 0.5,
        "tolerance": 0.01,
        "losses": [4.1 * 0.997**step + 0.4 for step in range(400)],
        "points": [
            {
                "step": 50 * number,
                "trained_loss": 4.2 * 0.8**number + 0.4,
                "shipped_loss": shipped,
                "trained_match": 0.1 * number,
                "shipped_match": 0.5,
                "gap": shipped - 4.2 * 0.8**number - 0.4,
            }
            for number, shipped in enumerate([0.9, 0.85, 0.87, 0.9, 0.95, 1.01, 1.1, 1.2, 1.2861])
        ],
    }
)
"""The loss as trained falls for 400 steps; that of what would ship falls for 50 and rises from there on."""

SUBJECT = Subject(
    candidate="v7a",
    baseline="v3",
    lineage=(
        Ancestor(name="v7a", digest="c" * 64, op="quantize", settings={"format": "fp8-block"}),
        Ancestor(
            name="v7a.prune",
            digest="d" * 64,
            op="prune",
            settings={"compression": "0.40 (154 of 256 experts)", "mix": "reap-26b (1f2e3d4c5b6a)"},
        ),
        Ancestor(
            name="qwen3.6-35b-a3b", digest="e" * 64, op="add", settings={"base": "hf://Qwen/Qwen3.6-35B-A3B@95a7"}
        ),
    ),
    baseline_lineage=(
        Ancestor(name="v3", digest="b" * 64, op="prune", settings={"compression": "0.289 (183 of 256 experts)"}),
        Ancestor(name="qwen3.6-35b-a3b", digest="e" * 64, op="add"),
    ),
    differences=("depth: 0.40 / 0.289", "mix: reap-26b / swe"),
    conclusion="confounded: the depth and the mix differ; the control that is missing: reap-26b at depth 0.289",
    size=22_548_578_304,
    baseline_size=26_843_545_600,
    fit="21.0 GiB of weights on a card of 31.84 GiB",
    attachments=("reference.jsonl", "training.json", "training.svg"),
    training=(Trained(of="v7a.train", record=TRAPPED),),
    cost=("toolcall: 18234 tokens in 212 s", "bugfind: 90112 tokens in 801 s"),
    promoted=("best",),
)


def overview(count: int = 5) -> Overview:
    """`count` candidates of one base model, some of them judged, one damaged, one served."""
    verdicts = ("Pass", "FailToolcall", "Inconclusive", "stale", "Invalid", "FailAgentic", None)
    made = [Made(digest=_digest(0), parent=None, names=("base",), op="add", about="hf://Qwen/Qwen3.6-35B-A3B@95a7")]
    entries = [Entry(name="base", digest=_digest(0), size=70_000_000_000, experts=256)]
    for number in range(1, count):
        parent = 0 if number % 3 == 1 else number - 1
        made.append(
            Made(
                digest=_digest(number),
                parent=_digest(parent),
                names=(f"v{number}",),
                op="prune" if number % 2 else "quantize",
                about="0.289, reap, mix reap-26b 1f2e3d4c5b6a, 183 experts" if number % 2 else "fp8-block",
            )
        )
        entries.append(
            Entry(
                name=f"v{number}",
                digest=_digest(number),
                channels=("best",) if number == 1 else (),
                verdict=verdicts[(number - 1) % len(verdicts)],
                scores={pack: ((number * step * 7.3) % 100.0,) for step, pack in enumerate(PACKS, 1)},
                mix="reap-26b",
                compression="0.289",
                experts=183,
                quantization=None if number % 2 else "fp8-block",
                size=30_000_000_000 - 100_000_000 * number,
                damage="its manifest is missing" if number == 4 else None,
                page="v1.html" if number == 1 else None,
            )
        )
    return Overview(candidates=tuple(entries), lineage=tuple(made))


PACKS = ("bugfind-15", "dataextract-15", "instructfollow-15", "toolcall-15")

# Which of the items pass, in each run, on each pack: the candidate's, then the baseline's.
_RUNS: tuple[dict[str, list[list[bool]]], ...] = (
    {
        "toolcall": [[number % 4 != 1 for number in range(60)]],
        "bugfind": [[number % 2 == 0 or number % 9 == run for number in range(90)] for run in range(3)],
        "instructfollow": [[number % 3 != 0 for number in range(15)]],
    },
    {
        "toolcall": [[number % 12 != 2 for number in range(60)]],
        "bugfind": [[number % 2 == 0 or number % 7 == run for number in range(90)] for run in range(3)],
        "instructfollow": [[number % 3 == 1 for number in range(15)]],
    },
)


def _asked(passed: list[bool], repeat: int) -> list[Row]:
    return [
        Row(
            item=f"item-{number:03d}",
            repeat=repeat,
            category=CATEGORIES[number % len(CATEGORIES)],
            points=float(right),
            of=1,
            outcome="scored" if right or number % 8 else "truncated",
        )
        for number, right in enumerate(passed)
    ]


def _response(row: Row, said: str) -> bytes:
    call = {"function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}
    message = {"content": said, "reasoning": "Let me think.", "tool_calls": [call]}
    answer = {"item": row.item, "repeat": row.repeat, "responses": [{"choices": [{"message": message}]}]}
    return json.dumps(answer).encode()  # as a server may write it: half a surrogate pair is a JSON string


def _digest(number: int) -> str:
    return f"{number:064x}"
