"""Safetensors headers: what is well-formed is read as it is, and nothing malformed gets through."""

from __future__ import annotations

import json
import struct
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gates.errors import IntegrityError
from registry.tensors import DTYPES, LARGEST_HEADER, read_header, read_metadata
from tests.support.tiny import Tensor, write_safetensors

WEIGHTS = {
    "a": Tensor("BF16", (2, 3), bytes(range(12))),
    "b": Tensor("F8_E4M3", (4,), b"\x01\x02\x03\x04"),
    "none": Tensor("F32", (0, 5), b""),
    "number": Tensor("F32", (), b"\0\0\x80\x3f"),
}

quick = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def written(folder: Path, header: object, data: bytes = b"", *, length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path = folder / "x.safetensors"
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(begin: int, end: int, dtype: str = "U8") -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - begin) // DTYPES[dtype]], "data_offsets": [begin, end]}


def test_a_header_gives_dtype_shape_and_place_of_every_tensor(tmp_path):
    write_safetensors(tmp_path / "x", WEIGHTS)
    found = read_header(tmp_path / "x")
    data = (tmp_path / "x").read_bytes()
    assert list(found) == list(WEIGHTS)
    for name, tensor in WEIGHTS.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert data[found[name].begin : found[name].end] == tensor.data
        assert found[name].size == len(tensor.data)
    assert read_metadata(tmp_path / "x") == {"format": "pt"}


def test_tensors_come_in_the_order_in_which_they_lie_in_the_file(tmp_path):
    path = written(tmp_path, {"late": entry(4, 8), "early": entry(0, 4)}, bytes(8))
    assert list(read_header(path)) == ["early", "late"]


def test_a_file_that_the_safetensors_library_wrote_is_read_alike(tmp_path):
    # a literal file in the library's own layout: aligned header, largest dtype first
    text = (
        b'{"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[1,2],"data_offsets":[0,8]},'
        b'"v":{"dtype":"BF16","shape":[1],"data_offsets":[8,10]}}'
    )
    path = written(tmp_path, text + b" " * (-len(text) % 8), bytes(10))
    assert {name: (tensor.dtype, tensor.shape) for name, tensor in read_header(path).items()} == {
        "w": ("F32", (1, 2)),
        "v": ("BF16", (1,)),
    }


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        (b"[]", b"", "no JSON object"),
        (b"{", b"", "not a JSON record"),
        (b'{"a": NaN}', b"", "NaN"),
        (b"{\xff}", b"", "UTF-8"),
        (b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
         b"12", "twice"),
        (b'{"a":' * 200 + b"1" + b"}" * 200, b"", "nested"),
        ({"a": 3}, b"", "dtype, shape and data_offsets"),
        ({"a": entry(0, 1) | {"more": 1}}, b"1", "dtype, shape and data_offsets"),
        ({"a": entry(0, 1) | {"dtype": "F99"}}, b"1", "F99"),
        ({"a": entry(0, 1) | {"dtype": ["U8"]}}, b"1", "dtype"),
        ({"a": entry(0, 1) | {"shape": 1}}, b"1", "shape"),
        ({"a": entry(0, 1) | {"shape": [-1]}}, b"1", "shape"),
        ({"a": entry(0, 1) | {"shape": [True]}}, b"1", "shape"),
        ({"a": entry(0, 1) | {"shape": [1.0]}}, b"1", "shape"),
        ({"a": entry(0, 1) | {"shape": [2**60]}}, b"1", "shape"),
        ({"a": entry(0, 1) | {"shape": [1] * 1000}}, b"1", "shape"),
        ({"a": entry(0, 1) | {"data_offsets": [1, 0]}}, b"1", "not a range"),
        ({"a": entry(0, 1) | {"data_offsets": [-1, 0]}}, b"1", "not a range"),
        ({"a": entry(0, 1) | {"data_offsets": [0, 1, 2]}}, b"1", "not a range"),
        ({"a": entry(0, 2, "BF16") | {"shape": [2]}}, b"12", "takes 4 bytes"),
        ({"a": entry(0, 4)}, b"123", "truncated"),
        ({"a": entry(0, 4)}, b"12345", "1 bytes after the last tensor"),
        ({"a": entry(1, 4)}, b"1234", "belong to none"),
        ({"a": entry(0, 4), "b": entry(5, 8)}, bytes(8), "belong to none"),
        ({"a": entry(0, 4), "b": entry(3, 8)}, bytes(8), "overlaps"),
        ({"a": entry(0, 4), "b": entry(0, 4)}, bytes(4), "overlaps"),
        ({"__metadata__": {"a": 1}}, b"", "text to text"),
        ({"__metadata__": []}, b"", "text to text"),
        ({"": entry(0, 1)}, b"1", "not a name"),
        ({"a\x1b[2J": entry(0, 1)}, b"1", "not a name"),
        ({"\ud800": entry(0, 1)}, b"1", "not a name"),
        ({"9" * 5000: entry(0, 1)}, b"1", "not a name"),
    ],
)  # fmt: skip
def test_a_malformed_header_is_refused_and_the_file_named(tmp_path, header, data, says):
    path = written(tmp_path, header, data)
    with pytest.raises(IntegrityError) as refused:
        read_header(path)
    assert says in refused.value.what
    assert str(path) in str(refused.value.where)


def test_a_damaged_tensor_is_named(tmp_path):
    path = written(tmp_path, {"a": entry(0, 4), "model.layers.3.b": entry(4, 9)}, bytes(8))
    with pytest.raises(IntegrityError, match="truncated") as refused:
        read_header(path)
    assert "model.layers.3.b" in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 10), struct.pack("<Q", 2**63) + b"{}"])
def test_a_file_too_short_for_its_header_is_refused(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with pytest.raises(IntegrityError, match="truncated"):
        read_header(tmp_path / "x")


def test_a_header_beyond_the_cap_is_refused_without_reading_it(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(struct.pack("<Q", LARGEST_HEADER + 1) + b"{")
    with path.open("r+b") as file:
        file.truncate(LARGEST_HEADER + 100)  # sparse: it takes no room
    with pytest.raises(IntegrityError, match="header of 100000001"):
        read_header(path)


def test_a_missing_file_is_an_error_of_ours(tmp_path):
    with pytest.raises(IntegrityError, match="cannot be read"):
        read_header(tmp_path / "none")
    with pytest.raises(IntegrityError, match="cannot be read"):
        read_header(tmp_path)


@quick
@given(
    st.lists(st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 4), max_size=3)), max_size=6),
    st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=2),
)
def test_what_is_written_is_what_is_read(tmp_path, forms, metadata):
    header: dict[str, object] = {"__metadata__": metadata}
    position = 0
    for number, (dtype, shape) in enumerate(forms):
        size = DTYPES[dtype]
        for side in shape:
            size *= side
        header[f"t{number}"] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    path = written(tmp_path, header, bytes(position))
    found = read_header(path)
    assert {name: (tensor.dtype, list(tensor.shape)) for name, tensor in found.items()} == {
        f"t{number}": form for number, form in enumerate(forms)
    }
    assert sum(tensor.size for tensor in found.values()) == position
    assert read_metadata(path) == metadata


@settings(quick, max_examples=300)
@given(st.data())
def test_flipped_bits_are_found_or_leave_every_byte_accounted_for(tmp_path, data):
    """No mutation crashes the reader, and whatever it accepts still covers the file without holes and overlaps."""
    path = tmp_path / "x"
    write_safetensors(path, WEIGHTS)
    content = bytearray(path.read_bytes())
    header_end = 8 + int.from_bytes(content[:8], "little")
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, header_end - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    try:
        found = read_header(path)
    except IntegrityError:
        return
    position = 8 + int.from_bytes(content[:8], "little")
    for tensor in found.values():
        assert tensor.begin == position
        position = tensor.end
    assert position == len(content)


@quick
@given(st.binary(max_size=200))
def test_no_bytes_whatever_crash_the_reader(tmp_path, content):
    (tmp_path / "x").write_bytes(content)
    with suppress(IntegrityError):
        read_header(tmp_path / "x")
