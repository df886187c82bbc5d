"""Canonical JSON: the short way to recognise it finds what the long way finds."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gates import canonical

NUMBERS = (
    st.integers(min_value=-(2**53) + 1, max_value=2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.integers(min_value=-50, max_value=50).map(float)
    | st.floats(min_value=-1e-3, max_value=1e-3)
)
TEXT = st.text(
    st.characters(exclude_categories=("Cs",)) | st.sampled_from('1.0,}]e+"\\\n\x7f\U0001f600\uffff'), max_size=6
)
VALUES = st.recursive(
    NUMBERS | st.booleans() | st.none() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
)


@given(VALUES)
@example({"\U0001f600": 1, "\uffff": 2})
@example([1.0, -0.0, 1e-5, 1e16, 1e21, 123456789012345.6])
@example({"a": "1.0,", "b": 0.5})
def test_what_is_canonical_is_recognised_and_nothing_else(value):
    written = canonical.dumps(value)
    assert canonical.is_written_as(value, written)
    pythons = json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
    assert canonical.is_written_as(value, pythons) == (pythons == written)
    assert not canonical.is_written_as(value, written + b" ")


@pytest.mark.parametrize("value", [float("nan"), 2**53, "\ud800", {"a": float("inf")}])
def test_what_has_no_canonical_form_is_refused(value: Any):
    with pytest.raises(ValueError):
        canonical.is_written_as(value, b"0")
