"""Reports as pages: one file each, with its style inside, no script, and nothing that is fetched.

The page's own policy (Content-Security-Policy) allows its one style sheet, by hash, and nothing else; text from outside
is escaped by Jinja and made visible by `words.visible`, wherever it stands in a template.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from gates import units
from gates.records import RuleResult, Verdict
from gates.reports import charts, curves, words
from gates.reports.model import Condition, Part, Report
from gates.reports.overview import Entry, Overview
from gates.reports.training import Training, sentence
from gates.statistics import CONFIDENCE

if TYPE_CHECKING:
    from jinja2 import Environment

_TEMPLATES = Path(__file__).with_name("templates")


def html(report: Report) -> bytes:
    """One verdict and all that it rests on."""
    compared = [part for pack in report.packs for part in (pack.whole, *pack.categories)]
    rules = [rule for gate in report.verdict.gates for rule in gate.rules if words.compares(rule)]
    bounds = [words.bound(rule) for rule in rules]
    of_rules = [end for rule in rules for end in (*(rule.interval or ()), words.bound(rule), words.difference(rule))]
    of_packs = [*(end for part in compared for end in part.difference_interval or ()), *bounds]
    return _page(
        "report.html.j2",
        report=report,
        verdict=report.verdict,
        subject=report.subject,
        rule_scale=charts.around_zero(of_rules),
        scale=charts.around_zero(of_packs),
        decided=_decided(report),
        margins={pack.pack: _margins(report.verdict, pack.pack) for pack in report.packs},
        compared=any(part.difference is not None for part in compared),
        by_item=[pack.pack for pack in report.packs if pack.whole.paired],
        lost=[flip for flip in report.flips if flip.lost],
        won=[flip for flip in report.flips if not flip.lost],
        outcomes=_outcomes(report),
        conditions=_conditions(report),
        trainings=[(each, curves.draw(each.record) if each.record else None) for each in report.subject.training],
    )


def page_of_all(overview: Overview) -> bytes:
    """Every candidate: verdicts and scores as a heat map, what is promoted, and what was made from what."""
    by_digest = {each.digest: each for each in overview.candidates if each.digest}
    return _page(
        "overview.html.j2",
        candidates=overview.candidates,
        packs=sorted({pack for each in overview.candidates for pack in each.scores}),
        served=_served(overview.candidates),
        rows=charts.tree(overview.lineage),
        by_digest=by_digest,
        largest=max((each.size or 0 for each in overview.candidates), default=0),
        judged=_counted(overview.candidates),
    )


def picture(training: Training) -> bytes:
    """The losses of a training run as an SVG, a file of its own."""
    said = sentence(training)
    context = {"drawn": curves.draw(training), "record": training, "sentence": said, "label": "Loss by step"}
    return _environment().get_template("training.svg.j2").render(lines=wrap(said, 135), **context).encode()


def colour(verdict: str | None) -> str:
    """The class of a verdict's or a result's colour; each also has a word, for who does not see colours."""
    if verdict is None:
        return "none"
    named = {"Pass": "pass", "passed": "pass", "waived": "pass", "Invalid": "invalid", "stale": "none"}
    if verdict in named:
        return named[verdict]
    if ", " in verdict:  # under several policies: the worst shows
        return min((colour(each) for each in verdict.split(", ")), key=["fail", "invalid", "unsure", "pass"].index)
    return "fail" if verdict.startswith("Fail") or verdict == "failed" else "unsure"


@dataclass(frozen=True, slots=True)
class _Decided:
    """The rule that the verdict hangs on, and whether it was met."""

    rule: RuleResult
    words: str


def _decided(report: Report) -> _Decided | None:
    if report.decided_by is not None:
        said = {"failed": "Decided by", "not judged": "Not judged", "undecided": "Not decided"}
        return _Decided(report.decided_by, said.get(report.decided_by.status, "Decided by"))
    nearest = words.closest(report.verdict)
    return _Decided(nearest, "Every rule holds; the closest call") if nearest else None


def _margins(verdict: Verdict, pack: str) -> Mapping[str | None, tuple[float, ...]]:
    """By category (None: the whole pack) how far below the baseline the policy lets this pack fall."""
    found: dict[str | None, tuple[float, ...]] = {}
    for rule in (rule for gate in verdict.gates for rule in gate.rules):
        if rule.kind in ("drop", "paired") and rule.packs == (pack,) and (bound := words.bound(rule)) is not None:
            found[rule.category] = tuple(sorted({*found.get(rule.category, ()), bound}))
    return found


def _direction(part: Part) -> str:
    """The class of a difference that is not chance. A loss in one of many categories may be, whatever its interval."""
    low, high = part.difference_interval or (0.0, 0.0)
    if high < 0 and (part.p_worse is None or part.p_worse <= 1 - CONFIDENCE):
        return "worse"
    return "better" if low > 0 else ""


@dataclass(frozen=True, slots=True)
class _Outcomes:
    pack: str
    kinds: tuple[tuple[str, int, int | None], ...]


def _outcomes(report: Report) -> list[_Outcomes]:
    """How answers ended: of the candidate and, where its rows are known, of the baseline."""
    return [
        _Outcomes(
            pack.pack,
            tuple(
                (kind, pack.outcomes.get(kind, 0), pack.baseline_outcomes.get(kind, 0) if any_known else None)
                for kind in sorted(pack.outcomes.keys() | pack.baseline_outcomes.keys())
            ),
        )
        for pack in report.packs
        if pack.outcomes
        for any_known in [bool(pack.baseline_outcomes)]
    ]


@dataclass(frozen=True, slots=True)
class _Conditions:
    pack: str
    fields: tuple[Condition, ...]
    known: bool

    @property
    def differing(self) -> tuple[Condition, ...]:
        return tuple(field for field in self.fields if self.known and not field.agrees)

    @property
    def unknown(self) -> int:
        return sum(field.candidate == "unknown" for field in self.fields)


def _conditions(report: Report) -> list[_Conditions]:
    """By pack; a pack with several sets of conditions stands there once for each."""
    groups: list[list[Condition]] = []
    for each in report.conditions:
        begins = not groups or groups[-1][0].pack != each.pack or any(one.field == each.field for one in groups[-1])
        groups.append([each]) if begins else groups[-1].append(each)
    return [_Conditions(group[0].pack, tuple(group), group[0].baseline is not None) for group in groups]


def _served(candidates: tuple[Entry, ...]) -> list[tuple[str, Entry]]:
    return sorted((channel, each) for each in candidates for channel in each.channels)


def _counted(candidates: tuple[Entry, ...]) -> list[tuple[str, str, int]]:
    """How many candidates stand under what: class of the colour, word, number; the most first."""
    found: dict[str, int] = {}
    for each in candidates:
        word = "damaged" if each.damage else each.verdict or "not judged"
        found[word] = found.get(word, 0) + 1
    return [(colour_of_word(word), word, found[word]) for word in sorted(found, key=lambda word: (-found[word], word))]


def colour_of_word(word: str) -> str:
    return {"damaged": "invalid", "not judged": "none"}.get(word) or colour(word)


def _page(template: str, **context: Any) -> bytes:
    style = (_TEMPLATES / "style.css").read_text(encoding="utf-8")
    sha = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return _environment().get_template(template).render(style=style, style_hash=sha, **context).encode()


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=lambda value: words.visible(value) if type(value) is str else value,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": words.number,
        "signed": words.signed,
        "loss": words.loss,
        "chance": words.chance,
        "size": units.size,
        "share": words.share,
        "colour": colour,
        "direction": _direction,
        "heat": charts.heat,
    }
    environment.globals |= {
        "between": words.between,
        "bound": words.bound,
        "compares": words.compares,
        "difference": words.difference,
        "results": words.RESULTS,
        "scores": charts.SCORES,
    }
    return environment
