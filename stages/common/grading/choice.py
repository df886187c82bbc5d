"""The letter that an answer states last is the right one. The model may write as much as it likes before.

A letter is stated by "the answer is (B)", "Answer: B", "option B is correct" or \\boxed{B}, the last of them in the
text; where there is none, by the last or the first line, if that is a choice and nothing else: "B", "(B)", "B. Paris".
Whoever lists the choices, or names two in one statement, states none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from gates.strict_yaml import Strict
from stages.common.grading import items
from stages.common.grading.answers import Answer
from stages.common.grading.items import Grade

VERSION = 1


class Expected(Strict):
    letter: Literal["A", "B", "C", "D"]


class Item(items.Item):
    expected: Expected


def grade(item: Item, answers: Sequence[Answer], results: Mapping[str, Any]) -> Grade:  # noqa: ARG001
    letter = stated(answers[-1].content)
    if letter is None:
        return Grade(0, detail="no letter")
    right = letter == item.expected.letter
    return Grade(float(right), detail="" if right else f"{letter} is not {item.expected.letter}")


def stated(text: str) -> str | None:
    """The letter that the answer `text` states last; None if it states none, or two at once."""
    text = _plain(text)
    said = list(_STATED.finditer(text))
    if said:
        last = said[-1]
        token = next(filter(None, last.group("boxed", "said", "chosen", "called")))
        return None if last["other"] else token.strip("()[]{} ").upper()
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    choices = {line: match["letter"].strip("()[] ").upper() for line in lines if (match := _LINE.fullmatch(line))}
    if len(set(choices.values())) != 1:
        return None
    return choices.get(lines[-1]) or choices.get(lines[0])


def _plain(text: str) -> str:
    """`text` without emphasis and quotes, and without LaTeX's words for upright and bold letters."""
    text = re.sub(r"\\(?:text|textbf|mathbf|mathrm|operatorname)\s*\{([^{}\n]*)\}", r"\1", text)
    return re.sub(r"[*_`$#>\"'\u201c\u201d\u2018\u2019]|\\[()\[\]]", "", text)


_REASON = r"(?i:because|since|as|for|due|given|based|and|or|which|with|from|here|in|considering)\b"
_LETTER = (
    r"(?:\(\s*[A-Da-d]\s*\)|\[\s*[A-D]\s*\]|\{\s*[A-D]\s*\}"
    rf"|A(?![\w+#-])(?!\s+(?!{_REASON})[a-z])"  # not the article
    r"|[B-D](?![\w+#-])|[a-d](?=[.,;:!)]?\s*(?:\n|$)))"
)
_NOUN = r"(?i:answer|choice|option|selection)"
_FILLER = (  # bounded, or a text that says "answer:" without end would be read for minutes
    rf"(?:[\s:=,]++|(?i:the|most|very|{_NOUN}|letter|clearly|likely|probably|certainly|therefore|thus|then|indeed"
    r"|definitely|actually|simply|best|correct)\b){0,12}+"
)
_IS = r"(?i:is|was|(?:would|should|must|will|has\s+to)\s+be)\b"
_STATED = re.compile(
    r"(?:\\(?:boxed|fbox)\s*\{\s*(?P<boxed>\(?\s*[A-Da-d]\s*\)?)(?=\s*[}.:,)])[^}\n]*\}?"
    rf"|\b{_NOUN}\b(?:\s+(?i:to|for|of|here)\b[^.:\n]{{0,60}}?)?(?:\s*[:=]|\s+{_IS}|\s*(?=\()){_FILLER}(?P<said>{_LETTER})"
    rf"|\b(?i:choose|pick|select|go(?:ing)?\s+with|opt\s+for)\b{_FILLER}(?P<chosen>{_LETTER})"
    rf"|(?<!\w)(?P<called>\([A-Da-d]\)|[A-D])\s+{_IS}\s+(?i:the\s+)?(?i:correct|right|best)"
    rf"(?:\s+(?i:answer|choice|option|one))?(?=\s*(?:[.,;:!)]|\n|$|{_REASON})))"
    r"(?P<other>\s*(?:,?\s*(?i:and/or|or|and)\s+|/\s*|&\s*)(?i:option\s+|choice\s+)?\(?[A-D]\b\)?(?!\s+(?i:is|are|was|can|would)\b))?"
)
_LINE = re.compile(
    r"(?:(?i:so|thus|hence|therefore)\b[,:]?\s*)?(?:(?i:the\s+|my\s+|final\s+|correct\s+)*(?i:answer|option|choice)\b\s*:?\s*)?"
    r"(?P<letter>(?:\([A-Da-d]\)|\[[A-D]\])(?=[.:,!]?(?:\s|$))|[A-Da-d](?=[.):](?:\s|$)|\s+[-\u2013\u2014]\s|\s+because\s|!?$)).*"
)
