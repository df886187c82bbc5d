"""How numbers and foreign text are shown, in every kind of report."""

from __future__ import annotations

import unicodedata

from gates.records import RuleResult, Status, Verdict

MINUS, TIMES, NOTHING = "\N{MINUS SIGN}", "\N{MULTIPLICATION SIGN}", "\N{EN DASH}"

RESULTS: dict[Status, str] = {
    "passed": "passed",
    "failed": "failed",
    "not judged": "not judged",
    "undecided": "undecided",
    "waived": "let pass",
}


def visible(text: str) -> str:
    """`text` with nothing in it that acts unseen: control characters (an ANSI escape's), bidirectional overrides,
    zero-width and private characters and half surrogate pairs are written out, as \\x1b. Lines and tabs stay."""
    if text.isprintable():
        return text
    return "".join(map(_seen, text.replace("\r\n", "\n")))


def number(value: float | None) -> str:
    """One decimal: scores and differences are points of 100."""
    return NOTHING if value is None else f"{_rounded(value):.1f}".replace("-", MINUS)


def signed(value: float | None) -> str:
    return NOTHING if value is None else f"{_rounded(value):+.1f}".replace("-", MINUS).replace("+0.0", "0.0")


def loss(value: float | None, *, sign: bool = False) -> str:
    """Nats a token: four decimals, of very many fewer digits; None is no finite number."""
    if value is None:
        return NOTHING
    return format(value, ("+" if sign else "") + (".4f" if abs(value) < 1e5 else ".3g")).replace("-", MINUS)


def between(interval: tuple[float, float] | None, *, sign: bool) -> str:
    """Both ends of an interval; with `sign` those of a difference."""
    if interval is None:
        return NOTHING
    shown = signed if sign else number
    return f"{shown(interval[0])} to {shown(interval[1])}"


def chance(p: float | None) -> str:
    """A probability: two digits, and no 0 for what is not 0."""
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.2g}"


def share(value: float) -> str:
    """What an item got of its points, from 0 to 1: ✓ all, ✗ nothing, else percent."""
    return {0.0: "✗", 1.0: "✓"}.get(value, f"{100 * value:.0f} %")


def closest(verdict: Verdict) -> RuleResult | None:
    """Of the rules that hold, the one with the least room to its limit; it is what a Pass hangs on."""
    held = [
        rule
        for gate in verdict.gates
        for rule in gate.rules
        if rule.status == "passed" and rule.value is not None and rule.limit is not None
    ]
    return min(held, key=lambda rule: abs((rule.value or 0.0) - (rule.limit or 0.0)), default=None)


def compares(rule: RuleResult) -> bool:
    """Whether the rule's interval is one around a difference to the baseline."""
    return rule.kind in ("drop", "gain", "paired")


def difference(rule: RuleResult) -> float | None:
    """The difference to the baseline that a comparing rule found: below 0 the candidate is worse."""
    if rule.value is None or not compares(rule):
        return None
    return rule.value if rule.kind == "gain" else -rule.value


def bound(rule: RuleResult) -> float | None:
    """Where the rule's limit lies on the scale of `difference`, or of the score."""
    if rule.limit is None:
        return None
    return -rule.limit if rule.kind in ("drop", "paired") else rule.limit


def _rounded(value: float) -> float:
    return round(value, 1) + 0.0  # no -0.0


def _seen(character: str) -> str:
    if character.isprintable() or character in "\n\t":
        return character
    if unicodedata.category(character) == "Zs":
        return " "
    return character.encode("unicode_escape").decode()
