"""Canonical JSON, and records that keep their bytes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gates import canonical
from gates.errors import IntegrityError
from gates.records import Evidence, Row, Verdict
from tests.support.scores import header, right, written

_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53) + 1, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(alphabet=st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


@given(_JSON)
def test_canonical_bytes_say_the_same_and_stay_as_they_are(value: Any):
    written_once = canonical.dumps(value)
    assert canonical.loads(written_once) == value
    assert canonical.dumps(canonical.loads(written_once)) == written_once


@given(st.dictionaries(st.text(max_size=5), st.integers(0, 9), min_size=2), st.randoms())
def test_the_order_of_keys_makes_no_difference(value: dict[str, int], shuffler: Any):
    shuffled = dict(shuffler.sample(sorted(value.items()), len(value)))
    assert canonical.dumps(shuffled) == canonical.dumps(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 2**53 + 1, {1: 2}, object()])
def test_what_json_has_no_form_for_is_refused(value: Any):
    with pytest.raises(ValueError):
        canonical.dumps(value)


@pytest.mark.parametrize(
    "data",
    [
        *(b"NaN", b"[Infinity]", b'{"a":1,"a":2}', b"{", b"\xff", b"", b"[" * 65 + b"]" * 65, b"[" * 10**6),
        *("{}".encode(encoding) for encoding in ("utf-8-sig", "utf-16", "utf-32-le")),
    ],
)
def test_what_is_not_strict_json_is_refused(data: bytes):
    with pytest.raises(IntegrityError):
        canonical.loads(data)


EVIDENCE = header(right(1, 2), pack="p")


@given(st.dictionaries(st.text(min_size=1, max_size=8).map(lambda key: f"x-{key}"), _JSON, max_size=3))
def test_a_record_with_unknown_fields_keeps_its_bytes(unknown: dict[str, Any]):
    data = canonical.dumps(json.loads(EVIDENCE.to_bytes()) | unknown)
    again = Evidence.from_bytes(data)
    assert again.to_bytes() == data
    assert again.identity() == canonical.digest(data)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"repeats": 0}, "repeats"),
        ({"repeats": True}, "canonical form"),
        ({"recorded": {"x": "\ud800"}}, "canonical form"),
        ({"candidate": "c" * 63}, "candidate"),
        ({"candidate": "C" * 64}, "candidate"),
        ({"pack": "../escape"}, "pack"),
        ({"format": 2}, "format"),
        ({"totals": None}, "totals"),
        ({"totals": {"overall": {"points": -1, "of": 1, "items": 1}, "categories": {}, "missing": 0}}, "points"),
    ],
)
def test_a_record_of_another_shape_is_refused_and_the_field_named(change: dict[str, Any], words: str):
    data = json.dumps(json.loads(EVIDENCE.to_bytes()) | change, sort_keys=True, separators=(",", ":")).encode()
    with pytest.raises(IntegrityError, match=words):
        Evidence.from_bytes(data)


@pytest.mark.parametrize(
    "field",
    [
        b'"points":1e999',
        b'"points":NaN',
        b'"tokens":99999999999999999999',
        b'"x-flag":1e999',
        b'"x-flag":99999999999999999999',
    ],
)
def test_a_number_without_a_canonical_form_is_no_record(field: bytes):
    data = b'{"category":"c","item":"i","of":1,"outcome":"scored",' + field + b',"repeat":0}'
    with pytest.raises(IntegrityError):
        Row.from_bytes(data)


def test_other_bytes_for_the_same_record_are_refused():
    line = written(right(1, 1)).rstrip()
    for other in (line + b" ", line.replace(b'"of":1', b'"of":1.0'), b" " + line, line.replace(b"{", b"{\n")):
        assert other != line
        with pytest.raises(IntegrityError, match="canonical form"):
            Row.from_bytes(other)


def test_no_record_names_a_time_a_host_or_a_user():
    for record in (Row, Evidence, Verdict):
        assert not {"time", "host", "user", "duration"} & set(record.model_fields)
