"""Reading an answer's words whatever their typography."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.common.grading.wording import loosely, says


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("I can\u2019t", "I can't"),
        ("\u201cnet 30\u201d", '"net 30"'),
        ("A\u20112207 \u2013 kept", "A-2207 - kept"),
        ("**14,806.58** NOK", "14806.58 NOK"),
        ("14\u202f806.58", "14806.58"),
        ("CHF 1\u2019249.50", "CHF 1249.50"),
        ("12,345,678", "12345678"),
        ("1, 2 and 30,5 and 1,2345", "1, 2 and 30,5 and 1,2345"),
        ("a\u00a0b\n\n  c\t", "a b c"),
        ("\uff13\uff17 units", "37 units"),
    ],
)
def test_typography_is_read_as_plain_letters(written, read):
    assert loosely(written) == read


@given(st.text())
def test_what_is_in_plain_letters_stays(text):
    once = loosely(text)
    assert " ".join(once.split()) == once
    assert not set(once) & set("*_`\u2019\u201c\u2011\u00a0")


def test_case_does_not_count():
    assert says("okafor", "TOM OKAFOR")
    assert not says(r"\b37\b", "370")
