"""Plain values and the records of an execution: what crosses to untrusted code and back."""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict, defaultdict
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gates import canonical
from gates.errors import UsageError
from stages.common.execution import Execution, Large, Raised, Result, Returned, Strange, decode, encode, same
from stages.common.execution.values import DEEPEST, LARGEST_RESULT, dumps, encode_result, loads
from stages.verifier.child import seccomp

TEXTS = st.text(st.characters(), max_size=8)  # halves of surrogate pairs too
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.complex_numbers(), TEXTS, st.binary(max_size=8)
)
KEYS = st.recursive(SCALARS.filter(lambda value: value == value), lambda inner: st.tuples(inner, inner), max_leaves=3)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.sets(KEYS, max_size=4),
        st.dictionaries(KEYS, inner, max_size=4),
    ),
    max_leaves=12,
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=4)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(
            st.sampled_from(
                ["tuple", "set", "dict", "int", "float", "bytes", "text", "complex", "strange", "large", "x"]
            ),
            inner,
            max_size=2,
        ),
    ),
    max_leaves=8,
)


@given(VALUES)
def test_a_value_comes_back_as_it_was(value):
    assert same(decode(loads(dumps(encode(value)))), value)


@given(VALUES, VALUES)
def test_values_are_the_same_exactly_when_they_are_written_alike(one, other):
    # a zero has a sign in writing, and the order of a dict stands there
    written = [_sorted(encode(value)) for value in (one, other)]
    assert same(one, other) == same(other, one) == (written[0] == written[1])


@given(VALUES)
def test_encoded_values_are_canonical_json(value):
    encoded = encode(value)
    assert dumps(encoded).encode() == canonical.dumps(encoded)


@given(JSON)
def test_what_is_no_encoded_value_is_refused_and_nothing_else_happens(raw):
    try:
        value = decode(raw)
    except ValueError:
        return
    if not isinstance(value, Large):
        assert (
            isinstance(value, Strange)
            or "strange" in dumps(raw)
            or "large" in dumps(raw)
            or same(decode(encode(value)), value)
        )


def test_types_are_told_apart():
    kinds = [0, 0.0, False, "", b"", 0j, None, [], (), set(), {}]
    for place, one in enumerate(kinds):
        assert [same(one, other) for other in kinds] == [place == other for other in range(len(kinds))]
    assert not same([1], [True])
    assert not same({1: "a"}, {1.0: "a"})
    assert not same({1}, {True})


def test_nan_equals_nan_wherever_it_stands():
    assert same([math.nan, {math.nan}, {math.nan: math.nan}], [-math.nan, {float("nan")}, {float("nan"): float("nan")}])


def test_floats_may_be_a_little_apart_where_that_is_allowed_but_keys_may_not():
    assert same([0.1 + 0.2, (1j,)], [0.3, (1.0000001j,)], tolerance=1e-6)
    assert not same([0.1 + 0.2], [0.3])
    assert not same({0.1 + 0.2: 1}, {0.3: 1}, tolerance=1e-6)
    assert not same(1, 1.0, tolerance=1.0)
    assert same(math.inf, math.inf, tolerance=1e-6)
    assert not same(math.inf, -math.inf, tolerance=1e-6)
    assert not same(math.nan, 1.0, tolerance=math.inf)


def test_anything_else_is_strange_and_equals_nothing():
    class Yes(int):
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = int.__hash__

    for value in (Yes(1), Fraction(1), object, len, frozenset(), bytearray(), range(3), iter([])):
        (strange,) = decode(encode([value]))
        assert isinstance(strange, Strange)
        assert not same(strange, value)
        assert not same(strange, strange)
    assert decode(encode(Fraction(1))).name == "fractions.Fraction"


def test_the_dicts_of_collections_are_dicts():
    for value in (Counter(a=1), OrderedDict(a=1), defaultdict(int, a=1)):
        assert same(decode(encode(value)), {"a": 1})


def test_depth_and_size_have_their_limits():
    deep: list = []
    for _ in range(DEEPEST):
        deep = [deep]
    assert same(decode(encode(deep)), deep)
    assert isinstance(decode(encode([deep])), Strange)
    endless: list = []
    endless.append(endless)
    assert isinstance(decode(encode(endless)), Strange)
    assert isinstance(decode(encode("x" * 5_000_000)), Strange)


@given(
    st.lists(st.one_of(st.integers(-(2**60), 2**60), st.floats(), st.booleans(), st.none(), TEXTS), max_size=6),
    st.booleans(),
)
def test_of_a_large_result_the_digest_tells_whether_another_equals_it(values, nested):
    padding = ["x" * LARGEST_RESULT]
    large = [padding, values] if nested else [*values, *padding]
    found = decode(encode_result(large))
    assert isinstance(found, Large)
    assert same(found, large)
    assert not same(found, [*large, 0])
    assert not same(found, tuple(large))


def test_millions_of_numbers_are_one_digest_and_equal_as_python_has_it():
    numbers = [number % 1000 for number in range(100_000)]
    found = decode(encode_result(numbers))
    assert same(found, [float(number) for number in numbers])
    assert same([0.0, *numbers[1:]], found)
    assert not same(found, [*numbers[:-1], 0.5])
    assert same(decode(encode_result([-0.0, *numbers])), [0, *numbers])
    assert same(decode(encode_result([math.nan, *numbers])), [-math.nan, *numbers])
    assert not same(decode(encode_result([2**53, *numbers])), [2**53 + 1, *numbers])


@pytest.mark.parametrize(
    "text",
    ["1.5", "NaN", "1e3", "Infinity", '{"a":1,"a":1}', "1" * 5000, "[" * 100_000, "", "[1,]", "1 2", '{"int":"0x1"} x'],
)
def test_json_that_we_never_write_is_refused(text):
    with pytest.raises(ValueError):
        loads(text)


# the records


@given(st.text(st.characters(), max_size=20), st.lists(st.lists(VALUES, max_size=2).map(tuple), max_size=3).map(tuple))
def test_an_execution_is_read_as_it_was_written(code, calls):
    execution = Execution("python", code, "f", calls)
    again = Execution.from_request(execution.request)
    assert (again.request, again.digest, again.code) == (execution.request, execution.digest, code)
    assert execution.request == canonical.dumps(json.loads(execution.request))


@pytest.mark.parametrize(
    ("language", "entry", "argument"),
    [
        ("ruby", "f", 1),
        ("python", "f()", 1),
        ("python", "import", 1),
        ("python", "", 1),
        ("javascript", "f;process.exit()", 1),
        ("python", "f", Fraction(1)),
        ("python", "f", [Strange("x")]),
        ("javascript", "f", {1: 2}),
        ("javascript", "f", b"x"),
        ("javascript", "f", [1j]),
        ("javascript", "f", {"a": {("b",): 1}}),
        ("python", "f", "x" * 5_000_000),
    ],
)
def test_what_cannot_be_executed_is_refused_before_it_is_asked(language, entry, argument):
    with pytest.raises(UsageError):
        Execution(language, "", entry, ((argument,),))


@pytest.mark.parametrize(
    "request_text",
    [
        "",
        "1",
        "{}",
        '{"calls":[1],"code":"","entry":"f","language":"python"}',
        '{"calls":[[]],"code":"","entry":"1","language":"python"}',
    ],
)
def test_a_request_of_another_shape_is_refused(request_text):
    with pytest.raises(ValueError):
        Execution.from_request(request_text.encode())


RESULTS = st.one_of(
    st.builds(
        Result,
        st.just("done"),
        st.lists(st.one_of(VALUES.map(encode).map(Returned), st.sampled_from(["ValueError", "é"]).map(Raised))).map(
            tuple
        ),
    ),
    st.builds(Result, st.sampled_from(["timeout", "failed"]), detail=st.text("abc é", max_size=9)),
)


@given(RESULTS)
def test_a_result_is_read_as_it_was_written(result):
    assert Result.from_json(json.loads(canonical.dumps(result.to_json()))) == result


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"outcome": "passed", "values": [], "detail": ""},
        {"outcome": "done", "values": [{"returned": 1.5}], "detail": ""},
        {"outcome": "done", "values": [{"raised": "a\nb"}], "detail": ""},
        {"outcome": "failed", "values": [{"returned": 1}], "detail": ""},
        {"outcome": "failed", "values": [], "detail": "x" * 1000},
        {"outcome": "done", "values": [{"returned": 1, "raised": "x"}], "detail": ""},
        {"outcome": "done", "values": [], "detail": "", "passed": True},
    ],
)
def test_a_result_of_another_shape_is_refused(raw):
    with pytest.raises(ValueError):
        Result.from_json(raw)


@pytest.mark.parametrize("tag", ["set", "dict"])
@pytest.mark.parametrize(
    "alike",
    [
        lambda i: {"int": hex((2**61 - 1) * (2**10 + i) + 5)},
        lambda i: {"complex": [f"{float(10**12 - 1_000_003 * i)}", f"{float(i)}"]},
        lambda i: {"tuple": [{"int": hex((2**61 - 1) * (2**10 + i) + 5)}]},
    ],
)
def test_members_made_to_have_one_hash_are_refused_before_anything_is_built_of_them(tag, alike):
    members = [alike(i) for i in range(100_000)]
    with pytest.raises(ValueError, match="one hash"):
        decode({tag: members if tag == "set" else [[each, 1] for each in members]})


def test_the_filter_has_a_form_for_every_architecture_it_knows():
    for architecture, column in ((0xC000003E, 0), (0xC00000B7, 1)):
        program = seccomp._program(architecture, column)
        assert len(program) % 8 == 0
        assert len(program) // 8 < 4096  # the kernel's limit


def _sorted(encoded: object) -> object:
    """Encoded, with dicts in one order and zeros without a sign."""
    if isinstance(encoded, list):
        return [_sorted(each) for each in encoded]
    if isinstance(encoded, dict):
        ((tag, content),) = encoded.items()
        if tag in ("dict", "set"):
            return {tag: sorted(map(_sorted, content), key=dumps)}
        if tag in ("float", "complex"):
            return {tag: json.loads(json.dumps(content).replace('"-0.0"', '"0.0"'))}
        return {tag: _sorted(content)}
    return encoded
