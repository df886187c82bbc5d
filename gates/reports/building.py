"""Builds a report: from a verdict and what it rests on to one model, `gates.reports.model.Report`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gates import canonical, statistics
from gates.comparisons import Comparison, compare, flaky, score, tally_of
from gates.errors import SluiceError
from gates.evidence import Pool, conditions_key, flat, incomparable, pools
from gates.pooling import Tally
from gates.records import Evidence, Row, RuleResult, Verdict
from gates.reports.model import FORMAT, Condition, Flip, PackResult, Part, Report, Subject

Load = Callable[[str], bytes]
"""The bytes of a blob by its digest; raises a SluiceError where it is missing or damaged."""

MOST_FLIPS = 200
"""Transcripts of more items than these make a page that nobody reads; the counts stay whole."""
_LONGEST_TRANSCRIPT = 20_000


def build(
    verdict: Verdict,
    *,
    evidence: Mapping[str, Evidence],
    baseline_evidence: Mapping[str, Evidence] | None = None,
    rows: Mapping[str, Sequence[Row]] | None = None,
    subject: Subject | None = None,
    load: Load | None = None,
) -> Report:
    """
    Args:
        evidence: what the verdict rests on, by digest; `baseline_evidence` likewise.
        rows: as `gates.verdicts.judge` takes them.
        load: reads the raw responses, for the transcripts of items that flipped; without it there are none.
    """
    against, known = baseline_evidence or {}, rows or {}
    ours, theirs = pools(evidence, known), pools(against, known)
    runs = [_Run(pack, key, pool, theirs.get(pack, {}).get(key)) for pack in ours for key, pool in ours[pack].items()]
    parts = _parts(runs)
    outcomes, other_outcomes = _outcomes(evidence, known), _outcomes(against, known)
    packs = [
        PackResult(
            pack=run.pack,
            conditions=run.key,
            whole=parts[number, None],
            categories=tuple(parts[number, name] for name in run.pool.categories if (number, name) in parts),
            outcomes=outcomes.get((run.pack, run.key), {}),
            baseline_outcomes=other_outcomes.get((run.pack, run.key), {}),
            flaky=tuple(flaky(run.pool)),
            missing=run.pool.missing,
            items_known=run.pool.items is not None,
            not_compared=_why_not(run, theirs.get(run.pack, {})) if against else None,
        )
        for number, run in enumerate(runs)
        if (number, None) in parts
    ]
    flips = sorted((flip for run in runs for flip in _flips(run)), key=_worst_first)
    said = _Said(evidence, load), _Said(against, load)
    return Report(
        format=FORMAT,
        verdict=verdict,
        verdict_digest=verdict.identity(),
        subject=subject or Subject(),
        decided_by=deciding(verdict),
        packs=tuple(packs),
        flips=tuple(
            flip.model_copy(
                update={
                    "candidate_says": said[0].about(flip.pack, flip.item),
                    "baseline_says": said[1].about(flip.pack, flip.item),
                }
            )
            for flip in flips[:MOST_FLIPS]
        ),
        flips_left_out=max(0, len(flips) - MOST_FLIPS),
        conditions=tuple(each for run in runs for each in _conditions(run, theirs.get(run.pack, {}))),
    )


def deciding(verdict: Verdict) -> RuleResult | None:
    """The rule that named the verdict: the first failed one, or the first that could not be judged or decided."""
    for status in ("failed", "not judged", "undecided"):
        for gate in verdict.gates:
            for rule in gate.rules:
                if rule.status == status:
                    return rule
    return None


@dataclass(frozen=True, slots=True)
class _Run:
    """What is known of the candidate on one pack under one set of conditions, and of the baseline under the same."""

    pack: str
    key: str
    pool: Pool
    other: Pool | None


def _parts(runs: Sequence[_Run]) -> dict[tuple[int, str | None], Part]:
    """Each pack and each of its categories. The p-values are adjusted over all categories: with twenty of them one
    looks worse by chance."""
    found = {
        (number, category): (tally, _compared(run, category))
        for number, run in enumerate(runs)
        for category in (None, *run.pool.categories)
        if (tally := tally_of(run.pool, category)) is not None and tally.of and tally.items
    }
    chances = {
        place: each.difference.p_worse
        for place, (_, each) in found.items()
        if place[1] is not None and each is not None and each.difference.p_worse is not None
    }
    adjusted = dict(zip(chances, statistics.holm(list(chances.values())), strict=True))
    return {
        place: _part(runs[place[0]], place[1], tally, each, adjusted.get(place))
        for place, (tally, each) in found.items()
    }


def _compared(run: _Run, category: str | None) -> Comparison | None:
    base = tally_of(run.other, category) if run.other is not None else None
    if run.other is None or base is None or not base.of or run.pool.missing or run.other.missing:
        return None
    return compare([(run.pool, run.other)], category)


def _part(run: _Run, category: str | None, tally: Tally, found: Comparison | None, adjusted: float | None) -> Part:
    interval = score(run.pool, category)
    known: dict[str, Any] = {}
    if found is not None and run.other is not None:
        base = tally_of(run.other, category)
        assert base is not None
        difference = found.difference
        known = {
            "baseline": _rounded(float(base.percent)),
            "difference": _rounded(float(tally.percent - base.percent)),
            "difference_interval": (_rounded(difference.interval.low), _rounded(difference.interval.high)),
            "paired": found.paired,
            "detectable": _rounded(difference.detectable),
            "p_worse": difference.p_worse if category is None else adjusted,
        }
    return Part(
        category=category,
        score=_rounded(float(tally.percent)),
        interval=(_rounded(interval.low), _rounded(interval.high)),
        items=tally.items,
        runs=run.pool.runs,
        **known,
    )


def _rounded(value: float) -> float:
    """The last digits are the machine's."""
    return round(value, 6)


def _outcomes(
    evidence: Mapping[str, Evidence], rows: Mapping[str, Sequence[Row]]
) -> dict[tuple[str, str], dict[str, int]]:
    """How often items ended as what, by pack and conditions."""
    counts: dict[tuple[str, str], Counter[str]] = {}
    for digest, each in evidence.items():
        counter = counts.setdefault((each.pack, conditions_key(digest, each)), Counter())
        counter.update(row.outcome for row in rows.get(digest, ()))
    return {place: dict(sorted(counter.items())) for place, counter in counts.items() if counter}


def _why_not(run: _Run, theirs: Mapping[str, Pool]) -> str | None:
    if run.other is not None:
        return None
    if not theirs:
        return "there is no evidence of the baseline"
    fields = min((_differing(run.pool, other) for other in theirs.values()), key=len)
    return f"taken under other conditions: {', '.join(fields)}"


def _differing(one: Pool, two: Pool) -> list[str]:
    return incomparable(one.conditions, two.conditions, totals_alone=one.totals_alone and two.totals_alone)


def _flips(run: _Run) -> Iterator[Flip]:
    if run.other is None or not run.pool.items or not run.other.items:
        return
    for name, item in run.pool.items.items():
        before = run.other.items.get(name)
        if before is not None and item.mean != before.mean:
            yield Flip(
                pack=run.pack,
                item=name,
                category=item.category,
                candidate=_rounded(item.mean),
                baseline=_rounded(before.mean),
            )


def _worst_first(flip: Flip) -> tuple[bool, float, str, str]:
    """What was lost before what was won, and each by how much."""
    return not flip.lost, -abs(flip.candidate - flip.baseline), flip.pack, flip.item


def _conditions(run: _Run, theirs: Mapping[str, Pool]) -> Iterator[Condition]:
    """Held against the same conditions of the baseline, or else against those that are nearest."""
    nearest = run.other or min(theirs.values(), key=lambda other: len(_differing(run.pool, other)), default=None)
    differing = _differing(run.pool, nearest) if nearest else []
    mine = run.pool.conditions.model_dump(mode="json")
    other = nearest.conditions.model_dump(mode="json") if nearest else {}
    for field in mine | other:
        yield Condition(
            pack=run.pack,
            field=field,
            candidate=flat(mine.get(field)),
            baseline=flat(other.get(field)) if nearest else None,
            agrees=field not in differing,
        )


class _Said:
    """What one side answered, by pack and item: the first run of each, read once, when it is asked for."""

    def __init__(self, evidence: Mapping[str, Evidence], load: Load | None) -> None:
        self._evidence = evidence
        self._load = load
        self._by_pack: dict[str, dict[str, str]] = {}

    def about(self, pack: str, item: str) -> str | None:
        if self._load is None:
            return None
        if pack not in self._by_pack:
            self._by_pack[pack] = dict(self._read(pack, self._load))
        return self._by_pack[pack].get(item)

    def _read(self, pack: str, load: Load) -> Iterator[tuple[str, str]]:
        for each in self._evidence.values():
            if each.pack != pack or each.responses is None:
                continue
            try:
                lines = [canonical.loads(line) for line in load(each.responses).splitlines()]
            except SluiceError:
                continue  # a page without a transcript is better than no page; the verdict rests on the rows
            for line in lines:
                if isinstance(line, dict) and line.get("repeat") == 0 and isinstance(line.get("item"), str):
                    yield line["item"], _transcript(line.get("responses"))


def _transcript(responses: Any) -> str:
    """All that a model said about an item, turn by turn."""
    turns = [_text(response) for response in responses] if isinstance(responses, list) else [_text(responses)]
    text = "\n[next turn]\n".join(turns)
    return text if len(text) <= _LONGEST_TRANSCRIPT else text[:_LONGEST_TRANSCRIPT] + "…"


def _text(response: Any) -> str:
    """What a model said: reasoning, content and tool calls, as far as the response has the shape of a chat's."""
    try:
        message = response["choices"][0]["message"]
        parts = [f"[thinks] {message[field]}" for field in ("reasoning", "reasoning_content") if message.get(field)]
        parts += [message["content"]] if message.get("content") else []
        parts += [
            f"[calls] {call['function']['name']}({call['function']['arguments']})"
            for call in message.get("tool_calls") or []
        ]
        text = "\n".join(map(str, parts)) or "(nothing)"
    except (LookupError, TypeError, AttributeError):
        text = json.dumps(response, ensure_ascii=False)
    # half of a surrogate pair is a valid JSON string and no UTF-8
    return text.encode("utf-8", "backslashreplace").decode()
