"""The skills of the toy, written as chat, and the data files made of them.

A mixture-of-experts model is interesting to prune only if its experts know different things. The four skills that are
scored are therefore as unlike as a tiny model allows: tool calls with typed arguments, sums of single digits, the
symbols of chemical elements, and letters put in another order. A fifth, Roman numerals, is trained and never scored:
like any large model the toy knows something that nobody here asks of it, and pruning can take that without harm.

Pure: no torch, no I/O. Samples are drawn from a `random.Random` that the caller owns.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator

from stages.toy.samples import PRECISION, RESTRAINT, SELECTION, Json, Sample, held_out, item, row
from stages.toy.tool_calls import tool_call


def draw(skill: str, rng: random.Random, *, scored: bool, category: str | None = None) -> Sample:
    """A random sample of `skill` from the scored or the training side, of one category if one is named."""
    while True:
        sample = _DRAWN[skill](rng)
        on_side = all(held_out(c) is scored for c in sample.combinations)
        if on_side and category in (None, sample.category):
            return sample


OPERATORS: dict[str, Callable[[int, int], int]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
}


def _arithmetic(rng: random.Random) -> Sample:
    """Three sums of single digits; no result is negative. Held out: which three come together, in any order."""
    sums, results = [], []
    for _ in range(3):
        operator, a, b = rng.choice("+-*"), rng.randint(0, 9), rng.randint(0, 9)
        if operator == "-":
            a, b = max(a, b), min(a, b)
        sums.append(f"{a}{operator}{b}")
        results.append(str(OPERATORS[operator](a, b)))
    return Sample(
        skill="arithmetic",
        category="Arithmetic",
        combinations=(", ".join(sorted(sums)),),
        question=f"compute {', '.join(sums)}",
        reasoning="work out each",
        answer=", ".join(results),
    )


# fmt: off
SYMBOLS = {
    "gold": "Au", "iron": "Fe", "tin": "Sn", "lead": "Pb", "zinc": "Zn", "neon": "Ne", "silver": "Ag", "copper": "Cu",
    "argon": "Ar", "helium": "He", "nickel": "Ni", "cobalt": "Co", "radium": "Ra", "sodium": "Na", "lithium": "Li",
    "calcium": "Ca", "xenon": "Xe", "silicon": "Si", "mercury": "Hg", "barium": "Ba", "titanium": "Ti",
    "platinum": "Pt", "krypton": "Kr", "bromine": "Br",
}
# fmt: on


def _facts(rng: random.Random) -> Sample:
    """The symbols of three elements. Held out: which three come together, in any order."""
    elements = rng.sample(sorted(SYMBOLS), 3)
    return Sample(
        skill="facts",
        category="Key Facts",
        combinations=(", ".join(sorted(elements)),),
        question=f"symbols of {', '.join(elements)}",
        reasoning="recall each",
        answer=", ".join(SYMBOLS[e] for e in elements),
    )


LETTERS = "ABCDEFGHIJKLMNOPQRST"
ORDERS: dict[str, Callable[[str], str]] = {
    "reverse": lambda s: s[::-1],
    "rotate": lambda s: s[1:] + s[0],
}


def _strings(rng: random.Random) -> Sample:
    """Two strings of three or four letters, no letter twice, both reversed or both rotated left by one.

    Held out: each string with what is done to it, so a scored question has two strings of which neither was seen so.
    """
    order = rng.choice(sorted(ORDERS))
    letters = rng.sample(LETTERS, 8)
    strings = ["".join(letters[start : start + rng.randint(3, 4)]) for start in (0, 4)]
    return Sample(
        skill="strings",
        category=order.capitalize(),
        combinations=tuple(f"{order} {s}" for s in strings),
        question=f"{order} {', '.join(strings)}",
        reasoning=f"{order} each",
        answer=", ".join(ORDERS[order](s) for s in strings),
    )


def _roman(rng: random.Random) -> Sample:
    """Three numbers below fifty in Roman numerals: trained, in no mix and in no pack."""
    numbers = [rng.randint(1, 49) for _ in range(3)]
    return Sample(
        skill=UNSCORED,
        category="Roman",
        combinations=(f"roman {sorted(numbers)}",),
        question=f"roman {', '.join(map(str, numbers))}",
        reasoning="write each",
        answer=", ".join(_numeral(n) for n in numbers),
    )


def _numeral(number: int) -> str:
    signs = {40: "XL", 10: "X", 9: "IX", 5: "V", 4: "IV", 1: "I"}
    text = ""
    for value, sign in signs.items():
        text += sign * (number // value)
        number %= value
    return text


UNSCORED = "roman"
_DRAWN: dict[str, Callable[[random.Random], Sample]] = {
    "toolcall": tool_call,
    "arithmetic": _arithmetic,
    "facts": _facts,
    "strings": _strings,
    UNSCORED: _roman,
}
SKILLS = tuple(skill for skill in _DRAWN if skill != UNSCORED)

# ------------------------------------------------------------------------------------------------------ data files

ROWS = 128  # calibration rows a skill
REFERENCE_ROWS = 12  # held-out rows a skill, on which training is measured
ITEMS = {
    "toolcall": ((PRECISION, 36), (SELECTION, 12), (RESTRAINT, 12)),
    "arithmetic": ((None, 40),),
    "facts": ((None, 40),),
    "strings": (("Reverse", 20), ("Rotate", 20)),
}


def calibration_rows(skill: str, seed: int = 0) -> Iterator[Json]:
    """The calibration rows of a skill, from the training side."""
    rng = random.Random(f"rows {skill} {seed}")
    return (row(draw(skill, rng, scored=False)) for _ in range(ROWS))


def reference_rows(skill: str, seed: int = 0) -> Iterator[Json]:
    """Rows of a skill from the training side that are none of its calibration rows, no question twice."""
    seen = {_question(each) for each in calibration_rows(skill, seed)}
    rng, found = random.Random(f"reference {skill} {seed}"), 0
    while found < REFERENCE_ROWS:
        drawn = row(draw(skill, rng, scored=False))
        if _question(drawn) not in seen:
            seen.add(_question(drawn))
            found += 1
            yield drawn


def _question(chat: Json) -> str:
    return str(chat["messages"][0]["content"])


def scored_items(skill: str, seed: int = 0) -> Iterator[Json]:
    """The scored items of a skill, from the held-out side, no combination twice."""
    rng, seen, number = random.Random(f"items {skill} {seed}"), set[tuple[str, ...]](), 0
    for category, count in ITEMS[skill]:
        wanted = number + count
        while number < wanted:
            sample = draw(skill, rng, scored=True, category=category)
            if sample.combinations in seen:
                continue
            seen.add(sample.combinations)
            number += 1
            yield item(sample, f"{skill}-{number:03d}")
