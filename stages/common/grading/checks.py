"""Checks of a text's form, each a constraint that an answer meets or does not: what a pack names in `check`.

With `line` a check is held against one line (1 is the first, -1 the last) or against each, else against the whole
answer. Lines are those that are not blank; white space at their ends, and at the ends of the answer, does not count.
A blank that does not break, or is narrow, is read as a blank: nobody sees the difference.
Whoever changes what meets a check raises the VERSION of constraints.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from gates.strict_yaml import Strict
from stages.common.grading.answers import JSON, same
from stages.common.grading.fences import blocks
from stages.common.grading.items import Text
from stages.common.grading.wording import Pattern, says

Count = Annotated[int, Field(ge=0, strict=True)]
Texts = Annotated[list[Text], Field(min_length=1)]


def _from_either_end(line: int) -> int:
    if line == 0:
        raise ValueError("the first line is 1, the last -1")
    return line


def _with_group(pattern: str) -> str:
    if re.compile(pattern).groups < 1:
        raise ValueError("a key is what the expression's first group finds: it needs a group")
    return pattern


Line = Annotated[int, Field(strict=True), AfterValidator(_from_either_end)]
Key = Annotated[Pattern, AfterValidator(_with_group)]


def met(constraint: Constraint, text: str) -> bool:
    """Whether an answer meets a constraint. Never so for an empty one."""
    text = re.sub("[\u00a0\u2007\u2009\u202f]", " ", text.replace("\r\n", "\n"))
    text = "\n".join(line.rstrip() for line in text.strip().split("\n"))
    if constraint.line is None:
        return bool(text) and constraint.holds(text)
    lines = _lines(text)
    if constraint.line == "each":
        return bool(lines) and all(map(constraint.holds, lines))
    number = constraint.line - 1 if constraint.line > 0 else constraint.line
    return -len(lines) <= number < len(lines) and constraint.holds(lines[number])


class Constraint(Strict):
    """What all have in common."""

    line: Literal["each"] | Line | None = None

    def holds(self, text: str) -> bool:
        """Whether `text`, which is not blank, meets this."""
        raise NotImplementedError


class Lines(Constraint):
    """So many lines."""

    check: Literal["lines"]
    count: Count

    def holds(self, text: str) -> bool:
        return len(_lines(text)) == self.count


class Words(Constraint):
    """From `least` to `most` words; a compound with a hyphen is one or several. The marks of lists are none."""

    check: Literal["words"]
    least: Count
    most: Count

    @model_validator(mode="after")
    def _can_be_met(self) -> Self:
        if self.least > self.most:
            raise ValueError("least is more than most")
        return self

    def holds(self, text: str) -> bool:
        body = "\n".join(re.sub(r"^\s*([-*•]|[0-9]+[.)])\s+", "", line) for line in text.split("\n"))
        whole = sum(any(map(str.isalnum, word)) for word in re.split("[\\s\u2013\u2014/]+", body))
        parts = len(re.findall("[^\\W_](?:[^\\W_]|['\u2019])*", body))
        return any(self.least <= count <= self.most for count in (whole, parts))


class Characters(Constraint):
    """At most so many characters, blanks counted."""

    check: Literal["characters"]
    most: Count

    def holds(self, text: str) -> bool:
        return len(text) <= self.most


class LongestWord(Constraint):
    """No word of more letters than that."""

    check: Literal["longest-word"]
    letters: Count

    def holds(self, text: str) -> bool:
        return max(map(len, re.findall(r"[^\W\d_]+", text)), default=0) <= self.letters


class Starts(Constraint):
    check: Literal["starts"]
    text: Text

    def holds(self, text: str) -> bool:
        return text.startswith(self.text)


class Ends(Constraint):
    check: Literal["ends"]
    text: Text

    def holds(self, text: str) -> bool:
        return text.endswith(self.text)


class Is(Constraint):
    """Exactly this text."""

    check: Literal["is"]
    text: Text

    def holds(self, text: str) -> bool:
        return text == self.text


class Matches(Constraint):
    """A regular expression for the whole text; `.` stands for any character but the end of a line."""

    check: Literal["matches"]
    pattern: Pattern

    def holds(self, text: str) -> bool:
        return re.fullmatch(self.pattern, text) is not None


class Contains(Constraint):
    """Each of these words or phrases, in either case, at least once or exactly so many `times`."""

    check: Literal["contains"]
    texts: Texts
    times: Annotated[int, Field(ge=1, strict=True)] | None = None

    def holds(self, text: str) -> bool:
        counts = [_count(each, text) for each in self.texts]
        return all(count == self.times if self.times else count for count in counts)


class Lacks(Constraint):
    """None of these words or phrases, in neither case."""

    check: Literal["lacks"]
    texts: Texts

    def holds(self, text: str) -> bool:
        return not any(_count(each, text) for each in self.texts)


class Avoids(Constraint):
    """None of these characters, in neither case."""

    check: Literal["avoids"]
    characters: Text

    def holds(self, text: str) -> bool:
        return not set(self.characters.lower()) & set(text.lower())


class Case(Constraint):
    """Letters, all of them lower or upper."""

    check: Literal["case"]
    letters: Literal["lower", "upper"]

    def holds(self, text: str) -> bool:
        return text.islower() if self.letters == "lower" else text.isupper()


class Initials(Constraint):
    """The first letters of the lines, in either case."""

    check: Literal["initials"]
    letters: Text

    def holds(self, text: str) -> bool:
        return "".join(line[0] for line in _lines(text)).lower() == self.letters.lower()


class Numbered(Constraint):
    """Every line begins with its number, a full stop and a blank."""

    check: Literal["numbered"]

    def holds(self, text: str) -> bool:
        return all(line.startswith(f"{number}. ") for number, line in enumerate(_lines(text), 1))


class Among(Constraint):
    """Every line in which `key` is found gives, as its first group, one of these texts, and none of them twice."""

    check: Literal["among"]
    key: Key
    texts: Texts

    def holds(self, text: str) -> bool:
        keys = _keys(self.key, text)
        return 0 < len(keys) == len(set(keys)) and set(keys) <= set(self.texts)


class Ordered(Constraint):
    """Two lines or more in which `key` is found, in the order of its first group."""

    check: Literal["ordered"]
    key: Key
    by: Literal["number", "text"]
    descending: bool = False

    def holds(self, text: str) -> bool:
        keys: list[Any] = _keys(self.key, text)
        if self.by == "number":
            if not all(re.fullmatch(r"-?[0-9]{1,15}(\.[0-9]{1,15})?", key) for key in keys):
                return False
            keys = [float(key) for key in keys]
        else:
            keys = [key.casefold() for key in keys]
        return len(keys) > 1 and keys == sorted(keys, reverse=self.descending)


class JsonObject(Constraint):
    """A JSON object, in a code fence or bare, with exactly these keys in this order, and values of these types."""

    check: Literal["json"]
    keys: Annotated[dict[str, Literal["string", "integer", "boolean", "strings"]], Field(min_length=1)]

    def holds(self, text: str) -> bool:
        value = _json(text)
        return (
            isinstance(value, dict)
            and list(value) == list(self.keys)
            and all(_TYPES[kind](value[key]) for key, kind in self.keys.items())
        )


class JsonValues(Constraint):
    """A JSON object in which these keys have these values, whatever else it has. Texts may be in either case."""

    check: Literal["values"]
    values: Annotated[dict[str, Any], Field(min_length=1)]

    def holds(self, text: str) -> bool:
        value = _json(text)
        return isinstance(value, dict) and all(
            key in value and same(_folded(value[key]), _folded(wanted)) for key, wanted in self.values.items()
        )


class Table(Constraint):
    """A Markdown table of these columns and so many rows."""

    check: Literal["table"]
    columns: Texts
    rows: Count

    def holds(self, text: str) -> bool:
        header, *rest = _table(text) or [[]]
        ruled = bool(rest) and all(re.fullmatch(r":?-+:?", cell) for cell in rest[0])
        widths = {len(row) for row in [header, *rest]}
        return header == self.columns and ruled and widths == {len(header)} and len(rest) - 1 == self.rows


class Row(Constraint):
    """The row of that number (1 is the first below the rule) in which each cell says that."""

    check: Literal["row"]
    number: Annotated[int, Field(ge=1, strict=True)]
    cells: Annotated[list[Pattern], Field(min_length=1)]

    def holds(self, text: str) -> bool:
        rows = _table(text)[2:]
        return len(rows) >= self.number and (
            len(row := rows[self.number - 1]) == len(self.cells) and all(map(says, self.cells, row))
        )


Check = Annotated[
    Lines | Words | Characters | LongestWord | Starts | Ends | Is | Matches | Contains | Lacks | Avoids | Case
    | Initials | Numbered | Among | Ordered | JsonObject | JsonValues | Table | Row,
    Field(discriminator="check"),
]  # fmt: skip


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip()]


def _count(phrase: str, text: str) -> int:
    """How often the phrase stands in the text by itself, not as a part of a longer word."""
    return len(re.findall(rf"(?<![^\W_]){re.escape(phrase)}(?![^\W_])", text, re.IGNORECASE))


def _keys(pattern: str, text: str) -> list[str]:
    found = (re.search(pattern, line) for line in _lines(text))
    return [match[1] or "" for match in found if match]


def _json(text: str) -> Any:
    """The JSON value of an answer, or None."""
    fenced = blocks(text)
    try:
        return JSON.decode(fenced[0].code if len(fenced) == 1 else text)
    except (ValueError, RecursionError):
        return None


_TYPES: dict[str, Callable[[Any], bool]] = {
    "string": lambda value: isinstance(value, str),
    "integer": lambda value: type(value) is int,
    "boolean": lambda value: isinstance(value, bool),
    "strings": lambda value: isinstance(value, list) and all(isinstance(each, str) for each in value),
}


def _folded(value: Any) -> Any:
    if isinstance(value, str):
        return value.strip().casefold()
    return [_folded(each) for each in value] if isinstance(value, list) else value


def _table(text: str) -> list[list[str]]:
    """The cells of the lines that are of a Markdown table, header and rule among them."""
    rows = [line.removeprefix("|").removesuffix("|") for line in _lines(text) if "|" in line]
    return [[cell.strip() for cell in row.split("|")] for row in rows]
