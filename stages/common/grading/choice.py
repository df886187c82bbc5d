"""The letter that an answer states last is the right one. The model may write as much as it likes before.

Read is the first of these that is there:

1. a statement of the answer, the last in the text: "the answer is (B)", "Answer: B", "I choose B", "option B is
   correct", \\boxed{B}, <answer>B</answer>. Behind "wait" or "actually" the last line may say it as in 2;
2. the last line, or else the first, that is a choice and nothing else ("B", "(B)", "B. Paris") or comes to one ("so
   it's B.", "Paris, which is option B", "Paris (B)"). A list of the choices states none.

Whoever names two in one statement, or asks, denies or supposes one, states none. So does a choice's text without its
letter: the letter is asked for, and texts may contain one another.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from gates.strict_yaml import Strict
from stages.common.grading import items
from stages.common.grading.answers import Answer
from stages.common.grading.items import Grade

VERSION = 2


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
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        return None
    said = _last(_STATED, text)
    if said and _CORRECTS.search(lines[-1]):
        said = _last(_IN_PASSING, lines[-1]) or said
    if said:
        return _letter(said)
    choices = [match for line in lines if (match := _CHOICE.fullmatch(line)) and line[-1] != "?"]
    for line, listed, end in ((lines[-1], choices[::-1], "D"), (lines[0], choices, "A")):
        if line[-1] == "?":
            continue
        if _CHOICE.fullmatch(line):
            if letter := _of_list([(match["letter"].upper(), match["text"] is None) for match in listed], end):
                return letter
        elif said := _last(_IN_PASSING, line):
            return _letter(said)
    return None


def _plain(text: str) -> str:
    """`text` without emphasis, quotes, ornaments and tags, and without LaTeX's words for fonts; arrows are ⇒."""
    text = unicodedata.normalize("NFKC", text).translate(_MARKS)
    text = re.sub(r"</?answer>", "\nanswer: ", text, flags=re.IGNORECASE)
    text = re.sub(r"<(b|i|u|em|strong)>([^<>\n]{0,200})</\1>", r"\2", text)
    text = re.sub(r"</?[A-Za-z]{2,20}>|<\|\w{1,30}\|>", "\n", text)
    text = re.sub(r"\\(?:text|textbf|mathbf|mathrm|operatorname)\s*\{([^{}\n]*)\}", r"\1", text)
    text = re.sub(r"\(?\*\*\(?([A-D])\)?[.:)]?\*\*\)?", r"(\1)", text)
    text = re.sub(r"=?=>|-?->|\\(?:implies|Rightarrow|to)\b", "\u21d2", text)
    text = re.sub(r"\}[\s$]*(or|and|,)[\s$]*\\boxed\s*\{", r" \1 ", text)
    return re.sub(
        r"[*_`$<>\"']|(?m:^[ \t]*#+)|\\[()\[\]]|[\u25a0-\u27bf\u2b00-\u2bff\U0001f300-\U0001faff]\ufe0f?", "", text
    )


_MARKS = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019", "'"),
        **dict.fromkeys("\u201c\u201d\u00ab\u00bb", '"'),
        **dict.fromkeys("\u200b\u200c\u200d\ufeff"),
        **dict(zip("\u3010\u3011", "()", strict=True)),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"),
        **dict.fromkeys("\u2192\u21d2\u27a1\u279c\u2234", "\u21d2"),
    }
)


def _last(patterns: tuple[re.Pattern[str], ...], text: str) -> re.Match[str] | None:
    """The match whose letter stands last, of those that are neither denied nor supposed."""
    matches = (match for pattern in patterns for match in pattern.finditer(text))
    standing = (match for match in matches if not _DENIED.search(text, max(0, match.start() - 40), match.start()))
    return max(standing, key=lambda match: match.start("letter"), default=None)


def _of_list(choices: list[tuple[str, bool]], end: str) -> str | None:
    """The choice that comes first among the lines (letter, whether it stands alone) that name one, or None if it is
    part of a list. The lines go from the text's last back, and lists from D to A; or from its first on, and from A.
    """
    (letter, alone), *others = choices
    named = [other for other, _ in others]
    if set(named) <= {letter} or (alone and not others[0][1]):
        return letter
    goes_on = ord(named[0]) - ord(letter) == (-1 if end == "D" else 1)
    return letter if not goes_on and (named[0] == end or letter in named) else None


def _letter(match: re.Match[str]) -> str | None:
    """The letter that a statement names; None if it names another one too."""
    return None if match["other"] else match["letter"].upper()


_DENIED = re.compile(  # what stands before a statement that is none
    r"""\b(?: not | never | neither | nor | cannot | unlikely | if | whether | unless | suppose | assuming
        | (?<!is\s)(?<!thats\s)why | doubt
    | might | may | could | consider | next | now | nobody | few | some | many | people | you | they
    | (?: do | does | did | is | was | would | could | should | ca | wo | might ) nt )\b [\s,]*
    (?:(?: think | believe | say | said | be | being | that | the | it | its | is | my | correct | right
    | best | final | only
    | to | a | an | i | option | choice | answer | would | will | possibly | well )\s+ ){0,6}$""",
    re.IGNORECASE | re.VERBOSE,
)
_CORRECTS = re.compile(r"\b(?:wait|actually|instead|rather|correction|mistake|sorry)\b", re.IGNORECASE)

_REASON = r"""(?: because | since | as | for | due | given | based | and | or | which | with | from | here
    | in | considering
    | not | rather | but | by | per | the )\b"""
_LETTER = rf"""(?: [(\[{{]\s*\.*\s* (?=[A-Da-d]\b) | (?= [B-D] | A(?!\s+(?!{_REASON})[a-z0-9])
    | [a-d](?: [.,;:!)] | \s*(?:\n|$) ) ) )
    (?P<letter>[A-Da-d]) (?![\w+#-]) [ \t.]*+ [)\]}}]?+ [ \t]*+ (?! \s*\? | ,\s[^.\n?]{{1,20}}\? )"""
"""A letter on its own: no article, no question, no part of a word or a formula."""
_ANY = r"\b(?:[B-D]|A(?!\s+(?!(?:and|or)\b)[a-z]))\b"
_NOUN = r"""(?i: answer | ans | choice | option | selection | letter | guess | pick | solution | conclusion
    | result | response | verdict | final )"""
_WORDS = rf"""(?: [\s:;=\u21d2-]++ | of\s+course\b,? | \.{{2,}} | (?i: the | most | very | my | {_NOUN}
    | clearly | likely | probably | certainly
    | therefore | thus | then | indeed | definitely | again | just | actually | simply | best | correct
    | right | still | exactly | only
    )\b,? ){{0,12}}+"""  # bounded, or a text that says "answer:" without end would be read for minutes
_BE = r"""(?i: is | was | (?: would | should | must | will | can(?:\s+only)? | could\s+only
    | ha[sd]\s+(?:got\s+)?to | have\s+to
    | ought\s+to | (?:seems|appears)\s+to | turns\s+out\s+to | comes\s+out\s+to )\s+be | becomes | remains )\b"""
_RIGHT = r"""(?i: (?: the | my | our | clearly | indeed | therefore | definitely | single | final )\s+ ){0,4}
    (?i: (?: only | most | (?!weak)\w+est )\s+ (?: (?!wrong|false|in|un)\w+\s+ )? )?
    (?i: correct | right | best | better | accurate | closest | answer | choice | option | one | statement
    | selected )\b
    (?: \s+(?i: answer | choice | option | one | match | fit | statement )\b )? (?: \s+that\s+(?: works | fits )\b )?"""
_END = r"(?=\s*(?: [.,;:!] | \n | $ ))"
_OTHER = r"""(?P<other>  # a second letter, unless more is said of it: "B, A and C are wrong"
    [ \t]* (?: [,(]?\s*(?i: and/or | or | and | plus | as\s+well\s+as | along\s+with )\b | (?i: to | x )\b
        | \((?=(?:or|maybe|perhaps|possibly|and|[A-D]\))) | [,;/|&+=\u21d2\u3001\u6216\u548c\u00d7\u222a\u2229-] ) \s*
    (?i:(?: maybe | possibly | perhaps | alternatively,? | else | also | option | choice | if\s+not,? )\s+ ){0,3}+
    [(\[]? (?: [B-D] | A(?!\s+(?!(?:and|or)\b)[a-z]) )\b [)\]]?+
    (?:(?: \s*, | \s+or\b | \s+and\b ){1,2}+ \s*[(\[]?[A-D]\b[)\]]?+ ){0,3}+
    (?! \.\s*\w | : | \s+(?!are\s+both)(?i: is | are | was | were | can | could | would | has | have | had
    | does | do | did
        | being | seems? | fails? | refers? | describes? )\b )
    | [^.\n]{0,80}? \b(?i: otherwise | else | if\s+not | then )\b [\s,:(]* [A-D]\b
    | [^.\n]{0,80}? ,\s[B-D]\s(?: for | if | when )\b
    | [A-D]\.?(?= \s*(?: \n | $ ) ) )?"""


def _patterns(*ways: str) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(way.replace("LETTER", _LETTER) + _OTHER, re.VERBOSE) for way in ways)


_STATED = _patterns(
    r"""\\(?: boxed | fbox )\s* \{\s* (?i:(?: the | answer | is | option | choice )\s+ ){0,4}
    \(?(?P<letter>[A-Da-d])\s*\)? (?=\s*[}.:,)]) (?: [.:)][^}\n]* )? \}?""",
    rf"""\b{_NOUN}\b (?: \s+(?i: to | for | of | here | that )\b[^.:\n]{{0,60}}? )? (?: \s*[:=\u21d2] | \s+-
        | \s+{_BE} )
    {_WORDS} LETTER""",
    r"\b(?i:answer)\s* (?=\() LETTER",
    rf"""\b(?i: answer | option | choice )\s+{_BE} (?: (?! {_ANY} | \b(?i: not | either )\b )[^.\n(] ){{1,80}}?
    (?: ,\s+(?i: which\s+is | so | i\.?e\.?,? )\s+ | [,(]?\s*\b{_NOUN}\s+ | \s(?=\() ) LETTER {_END}""",
    r"\b(?i: not | isnt )\s+ \(?[A-D]\)?,?\s+ (?i:but)\s+(?i: rather\s+ )? LETTER",
    rf"""\b(?i: choos(?:e|ing) | chosen? | pick | select | conclude | go(?:ing)?\s+(?:with|for) | opt\s+for
        | say | guess
    | settle\s+on )\b {_WORDS} LETTER""",
    rf"""(?: (?m:^) | [.,;:!]\s | (?<![A-D]\s)\band\s | \b(?i: option | choice | answer | that | so | only
        | believe | think
        | say | therefore | thus | hence | actually | but | since | because | while )\s ) [ \t]*
    (?: [(\[](?=.[)\]]) | (?=[A-D]) )(?P<letter>[A-Da-d])[)\]]?(?: ,[^,.\n]{{1,60}}, | \s\([^()\n]{{1,60}}\) )?\s+
    (?: (?: {_BE} | (?i: seems | appears | looks )(?: \s+to\s+be )? )\s+ {_RIGHT} (?=\s*(?: [.,;:!)] | \n | $
    | {_REASON} | to\b ))
        | it\s+is\b {_END} )""",
    "(?:\u7b54\u6848|\u9009)\\s* (?:\u662f|\u4e3a|\u9009|:){0,3}\\s* (?:\u9009\u9879)? LETTER",
)
"""Says which is the answer, wherever it stands. Of each, the last counts."""

_DOUBTS = r"""(?! .*\b(?i: check | consider | reconsider | avoid | reject | except | unlike | eliminate[sd]? | exclud\w+
    | rul\w+\s+out | (?: wrong | incorrect )\s*(?: : | one | answer | choice | option ) )\b )"""
_FITS = r"""(?i: fits | works | matches | remains | holds | makes\s+sense | correctly | accurately
    | for\s+sure | is\s+consistent | (?:the\s+)?(?:correct|right|best) )\b"""
_IN_PASSING = _patterns(
    rf"""\b(?i: its | it\s+{_BE} | (?: that | this | which | must | has\s+to | should )(?: \s+{_BE} | \s+be
        | s ) | so | thus
    | hence | therefore | only | clearly | definitely | probably | lea(?:ves|ving) | matches | fits | corresponds\s+to
    | points\s+to | answer | mak(?:es|ing) )\b {_WORDS} LETTER (?=\s*(?: [.,;:!] | \n | $ | {_FITS}
    | (?: rather | and\s+not )\b ))""",
    rf"""(?: ^ | [,:]\s )(?:(?i: only | option | choice | answer )\s+ )* LETTER (?= {_FITS} | ,\s+I\s
        | is\s+(?: it | true | what\s+I )\b )""",
    r"""(?: (?<![A-D)\]]), | \b(?i: is | be | in | ergo | likely | actually | think | believe | like
    | us | get | have | towards? | suggests | supports | favou?rs | indicates | means | well ))\s* LETTER [.!]*$""",
    rf"""^{_DOUBTS} (?: (?!{_ANY}). )* (?<!\b[Nn]ot)(?<!snt)(?<!\bcant)(?<!\bbe)
    (?: \s(?=[(\[]) | [;:\u21d2]\s* | \s-\s*
    | (?: ^ | [\s(] )(?i: option | choice | letter | ans\.? | with | by )\s+ ) LETTER [.!)]*$""",
)
"""Comes to a choice, in a line that is read because it is the last or the first."""

_REJECTED = r"""(?: (?i: incorrect | wrong(?!,) | rejected | eliminated | ruled\s+out | says\s+that | states\s+that
    | (?: is | are | was )\s+(?: incorrect | wrong | false | not | out | close | eliminated | ruled ) )\b )"""
_CHOICE = re.compile(
    rf"""(?: [-+\u2022]\s+ | [0-9]{{1,2}}[.)]\s+ )?
    (?:(?i: so | thus | hence | therefore | clearly | definitely | probably | certainly | ok | okay )\b[,:]?\s* )?
    (?:(?: (?i: the | my | final | correct )\s+ )* (?i: answer | option | choice )\b\s*:?\s* )? [:=\u21d2\s.]*
    (?= [A-Da-d](?: [.):;]{{1,2}}(?: $ | \s+(?!{_REJECTED})(?! [A-D]\b\W*$ ) | (?=[A-Z][a-z]{{3}}) )
    | ,?\s+(?: because | since | as )\s | [!.\s)]*$ )
      | [A-D],?\s+(?: not | rather\s+than | over | instead\s+of )\s+\(?[A-D]\b
      | [A-D]\s+[-=\u21d2]\s+(?! {_ANY} | {_REJECTED} )
      | [B-D](?: \s+\( | ,\s+(?! .*\b(?: is | was | are | not | however | but | or | and | then )\b )\w{{2}} )
      | [(\[{{]{{1,2}}\s*[A-Da-d]\s?\.?[)\]}}]{{1,2}}[.:,!]?(?: $
      | \s*+(?!{_REJECTED})(?! .*\([A-D]\) )(?=\W*[\w\\]) ) )
    [(\[{{]{{0,2}}\s*(?P<letter>[A-Da-d])\b(?P<text>.*\w)?.*""",
    re.VERBOSE,
)
"""A line that is a choice: its letter, and perhaps its text."""
