"""The number that an answer ends with is the one that is wanted, exactly.

Of an answer counts the first of these that it has: what stands behind #### last (a heading "#### Step 2: …" does not);
the last \\boxed{…}; what stands behind "answer is" or "answer:" last; the last line with a number. Of the first three
the first number counts, of a line of prose the last, or the one in bold; of an equation the side that is worked out.

Thousands may be set apart (1,234, 1 234 or 1{,}234), and signs of money, per cent, units and remarks in brackets may
stand beside a number: 18, 18.00, $18, 36/2, 1.8e1 and 18 eggs (9 x 2) are the same; "at least 18" is 18, too, since
the least is what some questions ask for. Whoever offers two numbers (18 or 20, 18-20), a sum that is not worked out
(9 x 2), a bound ("more than 18"), or none in digits (eighteen), states none; neither does 1.234,50, which reads
differently in different countries.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator

from gates.strict_yaml import Strict
from stages.common.grading import items
from stages.common.grading.answers import Answer
from stages.common.grading.items import Grade, Text

VERSION = 2


def _is_number(text: str) -> str:
    if not re.fullmatch(r"-?[0-9]+(\.[0-9]+)?", text):
        raise ValueError("write a number in digits, such as 18 or -0.5")
    return text


class Expected(Strict):
    """A text, since a decimal is exact and a float is not."""

    number: Annotated[Text, AfterValidator(_is_number)]


class Item(items.Item):
    expected: Expected


def grade(item: Item, answers: Sequence[Answer], results: Mapping[str, Any]) -> Grade:  # noqa: ARG001
    found = stated(answers[-1].content)
    if found is None:
        return Grade(0, detail="no number")
    right = found == Decimal(item.expected.number)
    return Grade(float(right), detail="" if right else f"{found:f} is not {item.expected.number}"[:200])


def stated(text: str) -> Decimal | None:
    """The number that the answer `text` ends with; None if there is none, or more than one."""
    text = _plain(text)
    hashes = [part for part in _HASHES.findall(text) if not _HEADING.match(part)]
    for parts in (hashes, _boxed(text), [match[1] for match in _SAID.finditer(text)]):
        if part := next((part for part in reversed(parts) if _NUMBER.search(part)), None):
            return _read(part.replace("**", ""), first=True)
    lines = [line for line in text.split("\n") if _NUMBER.search(line)]
    line = next((line for line in reversed(lines) if not _ASIDE.match(line)), lines[-1] if lines else "")
    bold = [match[1] for match in _BOLD.finditer(line)]
    return _read((bold[0] if len(bold) == 1 else line).replace("**", ""), first=False)


def _plain(text: str) -> str:
    """`text` without emphasis (but **) and notes of sums, and with LaTeX's signs and fractions as plain ones."""
    text = re.sub("[\u00bc-\u00be\u2150-\u215e]", lambda match: " " + unicodedata.normalize("NFKC", match[0]), text)
    text = re.sub(r"(?<=[0-9])(?:\\[,!;: ]|[~\u00a0\u2009\u202f]|\{,\})(?=[0-9]{3}(?![0-9]))", ",", text)
    text = unicodedata.normalize("NFKC", text).translate(_MARKS)
    text = re.sub(r"\\[dt]?frac\s*\{([^{}\n]{1,40})\}\s*\{([^{}\n]{1,40})\}", r" \1/\2", text)
    text = re.sub(
        r"<\|\w{1,30}\|>|<<[^<>\n]*>>|[`_]|\\(?=#)|\\(?:text|textbf|mathbf|mathrm)\b|\\[()\[\]]|(?m:^[ \t]*>+)",
        "",
        text,
    )
    text = re.sub(r"\\(?:times|cdot|div)\b", "\u00d7", text)
    text = re.sub(r"</?answer>", "\nanswer: ", text, flags=re.IGNORECASE)
    text = re.sub(r"[=-]>|\\(?:approx|implies|to|Rightarrow)\b", "=", text)
    text = text.replace(r"\pm", "\u00b1")
    text = re.sub(r"([#=:][ ]?|\bis )([0-9]{1,9})(?:st|nd|rd|th)\b", r"\1\2", text)  # which place is asked for
    text = re.sub(r"\}[\s$]*(or|and|,)[\s$]*\\boxed\s*\{", r" \1 ", text)
    return re.sub(r"(?<![\w)* ])\*(?!\*)|(?<!\*)\*(?![\w($* -])", "", text)  # *18*, not 9*2


_MARKS = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"),
        **dict.fromkeys("\u2192\u21d2\u27a1\u2248", "="),
        **dict.fromkeys("\u20ac\u00a3\u20b9\u00a5", "$"),
        **dict.fromkeys("\u00b7\u00f7", "\u00d7"),
        "\u2044": "/",
        "\u2019": "'",
    }
)


def _boxed(text: str) -> list[str]:
    """What stands in the last \\boxed{…} of `text`, up to the brace that closes it."""
    start = max((match.end() for match in _BOXED.finditer(text)), default=None)
    if start is None:
        return []
    depth = 1
    for end in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[end], 0)
        if not depth:
            return [text[start:end]]
    return [text[start:]]


def _read(part: str, *, first: bool) -> Decimal | None:
    """The number that `part` states: its first, or else its last. None if that is one of two that are offered, part of
    a sum that is not worked out, asked for, denied, or a bound that is not reached."""
    part = re.sub(r"[{}]", " ", re.sub(r"\^\s*\{[^{}]*\}", "", part))
    part = bare if _NUMBER.search(bare := _REMARK.sub(" ", part)) else part
    if first:
        part = re.sub(r"(?<=[0-9]) (?=[0-9]{3}(?![0-9]))", ",", part)  # 1 234
    for ends in (_REASON, _SENTENCE) if first else (_REASON,):
        found = ends.search(part)
        part = before if found and _NUMBER.search(before := part[: found.start()]) else part
    part = _MAKES.sub("= ", _MINUS.sub(r"\1-", part.strip()))
    if re.search(r"\bor\s+[a-z]\s*=", part):
        return None
    for side in reversed(_DENIED.sub(" ", part).split("=")):
        numbers = list(_NUMBER.finditer(side))
        opens = bool(numbers) and not side[: numbers[0].start()].strip(" $")
        places = [0] if first or (opens and not _SAYS.search(side)) else [len(numbers) - 1, 0] if opens else [-1]
        for place in places if numbers else ():
            if _stands(side, numbers, place):
                return _value(numbers[place])
    return None


def _stands(side: str, numbers: list[re.Match[str]], place: int) -> bool:
    """Whether the number at `place` stands for itself."""
    number = numbers[place]
    pair = numbers[:2] if place == 0 else numbers[-2:]
    tied = len(pair) == 2 and _TIED.fullmatch(side, pair[0].end(), pair[1].start())
    before = side[max(0, number.start() - 30) : number.start()]
    if tied and re.search(r"\bor\b", tied[0]) and _value(pair[0]) == _value(pair[1]):
        tied = None  # 24/2, or 12
    if tied and place and re.search(r"\bfrom\W*$", side[max(0, pair[0].start() - 30) : pair[0].start()]):
        tied = None  # from 5 to 18
    return not (tied or _BOUND.search(before) or _ASKED.match(side, number.end()))


def _value(number: re.Match[str]) -> Decimal:
    """Exact, however many digits there are: Decimal rounds when it reckons, and not when it reads."""
    value = Decimal(re.sub(r"[,']", "", number["decimal"] or number["whole"] or "0"))
    if number["over"]:
        value += Decimal(number["part"]) / Decimal(number["over"])
    if number["scale"] and value < 10**12:
        value *= _SCALES[number["scale"].lower().strip()]
    return value.copy_negate() if "-" in number["sign"] else value


_SCALES = {"k": 10**3, "thousand": 10**3, "million": 10**6, "billion": 10**9}
_HASHES = re.compile(r"####[#\s:]*(.*)")
_HEADING = re.compile(
    r"\W*(?:(?:step|part|case|question|problem|method|phase)\b|[0-9]{1,2}[.)]\s+[A-Za-z])", re.IGNORECASE
)
_BOXED = re.compile(r"\\(?:boxed|fbox)\s*\{")
_SAID = re.compile(r"\banswer\b(?:\W{0,4}(?:is|was)\b|\W{0,4}[:=])[:\s]*([^\n]*)", re.IGNORECASE)
_ASIDE = re.compile(
    r"\W*(?:note|hope|let\s+me|explanation|check|verif\w+|this\s+assumes|assuming)\b|\s*\([^()]*\)\s*$",
    re.IGNORECASE,
)
_NUMBER = re.compile(
    r"(?<![\w^./])(?<![0-9][:,'])(?<![A-Za-z]-)"  # not the 2 of m2, m^2, 1.2 or 1:2, or the 19 of COVID-19
    r"(?P<sign>(?:-(?=[\\$0-9.]))?+(?:\\?\$\s?)?+(?:(?<=\$)-)?+)"
    r"(?:(?:(?P<whole>[0-9]{1,15}) {1,3})?(?P<part>[0-9]{1,15}) ?/ ?(?P<over>0{0,15}[1-9][0-9]{0,15})"
    r"|(?P<decimal>(?:[0-9]{1,3}(?:[,'][0-9]{3})++|[0-9]++)(?:\.[0-9]++)?+(?:e[+-]?[0-9]{1,2})?+|\.[0-9]++))"
    r"(?P<scale>k\b|\s?(?:thousand|million|billion)\b)?+"
    r"(?!(?:st|nd|rd|th)\b|(?:[.,'/x]|\.{2,3})?[0-9]|:(?!00\b)[0-9])",  # no ordinal, date or time
    re.IGNORECASE,
)
_BOLD = re.compile(rf"\*\*(\W{{0,4}}{_NUMBER.pattern}[^\d*\n]{{0,30}})\*\*", re.IGNORECASE)
_REMARK = re.compile(  # in brackets, unless it offers another number
    r"(?<![*+\u00d7/-])(?<![*+\u00d7/-] )\((?!\W{0,3}(?:or|to|and|could|maybe|possibly|perhaps)\b|[^()\n]*\bif\b)"
    r"[^()\n]*\)|\[[^\[\]\n]*\]",
    re.IGNORECASE,
)
_REASON = re.compile(r"\b(?:because|since)\b", re.IGNORECASE)
_SENTENCE = re.compile(r"(?<=\w)[.!]\s+(?=[A-Z])")
_MINUS = re.compile(r"(^|[=:(]\s*|\bis\s+)(?:-|minus|negative)\s+(?=[$0-9])", re.IGNORECASE)
_MAKES = re.compile(r"\b(?:is|equals|makes?|gives?)\s+(?=\$?-?[0-9])", re.IGNORECASE)
_DENIED = re.compile(r"(?:\bnot|n't)\s+\$?[0-9][0-9.,]*+(?:\s+n?or\s+\$?[0-9][0-9.,]*+)?", re.IGNORECASE)
_SAYS = re.compile(
    r"[:;+*\u00d7]|,(?!\s*(?:i\.?e|that|since|as|not)\b)|\b(?:is|are|was|were|makes?|gives?|equals?|costs?|earns?|leaves?|totals?"
    r"|gets?|comes?|ha[sd]|have|will|so|hence|then)\b",
    re.IGNORECASE,
)
_TIED = re.compile(  # what stands between two numbers that belong together
    r"[\s$(]{0,5}(?:[/|;,&~-]|\.{2,5}|and(?:\s+then)?|to)?[\s$]{0,5}(?:\w{1,20}:\s{0,5})?"
    r"|[\s$]{0,5}(?:\w{1,20}\s{0,5})?(?:[-+*\u00d7/\u00b1]|%\s*of\b|\b(?:x|plus|minus|times|divided\s+by)\b)[\s$(]{0,5}"
    r"|[^.\n]{0,40}?\b(?:or|oder|else|otherwise|if|maybe|perhaps|could|possibly|alternatively)\b[^.\n]{0,40}",
    re.IGNORECASE,
)
_BOUND = re.compile(
    r"(?:\b(?:more|less|fewer|greater|larger|smaller)\s+than|\b(?:over|under|above|below|step)|[<>])\s*$", re.IGNORECASE
)
_ASKED = re.compile(r"\s*[<>](?![|/])|[^.!\d\n]{0,60}\?")
