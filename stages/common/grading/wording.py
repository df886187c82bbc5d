"""Whether a text says something, whatever its typography: what graders of free text hold their patterns against.

Whoever reads a text otherwise here raises the VERSION of every grader that imports this.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated

from pydantic import AfterValidator


def says(pattern: str, text: str) -> bool:
    """Whether the regular expression is found in `text`, read loosely; its letters may be of either case."""
    return re.search(pattern, loosely(text), re.IGNORECASE) is not None


def loosely(text: str) -> str:
    """`text` in plain letters.

    Compatible forms are made one (NFKC), quotation marks and dashes are those of ASCII, marks of emphasis (* _ `) and
    separators of thousands (the comma of 1,250, an apostrophe, a blank that does not break) are left out, and white
    space is one blank.
    """
    text = re.sub("(?<=[0-9])[,\u00a0\u2009\u202f'\u2019](?=[0-9]{3}(?![0-9]))", "", text)
    return " ".join(unicodedata.normalize("NFKC", text).translate(_PLAIN).split())


_PLAIN = str.maketrans(
    {
        **dict.fromkeys("\u2018\u2019\u02bc\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb", '"'),
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"),
        **dict.fromkeys("*_`"),
    }
)


def compiles(pattern: str) -> str:
    """
    Raises:
        ValueError: not a regular expression.
    """
    try:
        re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"{pattern!r} is not a regular expression: {error}") from None
    return pattern


Pattern = Annotated[str, AfterValidator(compiles)]
"""A regular expression in a pack."""
