"""A manifest is the same bytes wherever and whenever the same work is done."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gates import canonical
from gates.errors import IntegrityError
from registry.manifests import File, Inputs, Manifest, files_digest

DIGESTS = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
SIMPLE = st.none() | st.booleans() | st.integers(0, 2**53 - 1) | st.text(max_size=8)
SETTINGS = st.dictionaries(
    st.text(min_size=1, max_size=8), SIMPLE | st.dictionaries(st.text(min_size=1), SIMPLE), max_size=4
)
INPUTS = st.builds(
    Inputs,
    op=st.sampled_from(["add", "derive", "prune", "quantize"]),
    parent=st.none() | DIGESTS,
    settings=SETTINGS,
    seed=st.none() | st.integers(0, 9),
    code=st.just("test-1"),
)
FILES = st.dictionaries(st.text(min_size=1), st.builds(File, digest=DIGESTS, size=st.integers(0, 10**12)), max_size=4)


@pytest.fixture
def golden(project: Path) -> bytes:
    return (project / "tests/golden/format1/manifest.json").read_bytes()


def test_a_manifest_of_format_1_still_reads_and_writes_as_the_same_bytes(golden):
    manifest = Manifest.from_bytes(golden)
    assert manifest.to_bytes() == golden
    assert manifest.identity() == "fcf6166b673085a9c964134e00baf483c8da19ddeb0df173be70f3f7f470a341"
    assert (manifest.inputs.op, manifest.shape.experts, manifest.inputs.mix.name) == ("prune", 91, "reap-26b")
    assert manifest.size == 22345671024


def test_fields_that_this_version_does_not_know_survive_at_every_depth(golden):
    written = json.loads(Manifest.from_bytes(golden).to_bytes())
    tomorrow = [1, {"kept": True}]
    for part in (written, written["inputs"], written["shape"], written["files"]["model-00001-of-00002.safetensors"]):
        assert part["a field of tomorrow"] == tomorrow


def test_a_manifest_of_a_later_format_is_refused(golden):
    later = canonical.dumps(json.loads(golden) | {"format": 2})
    with pytest.raises(IntegrityError, match="format"):
        Manifest.from_bytes(later)


@pytest.mark.parametrize("change", [b" ", b"\n"])
def test_a_manifest_that_is_not_canonical_is_refused(golden, change):
    with pytest.raises(IntegrityError, match="canonical"):
        Manifest.from_bytes(golden + change)


@given(inputs=INPUTS)
def test_inputs_read_and_write_as_the_same_bytes(inputs):
    assert Inputs.from_bytes(inputs.to_bytes()) == inputs
    assert Inputs.from_bytes(inputs.to_bytes()).to_bytes() == inputs.to_bytes()


@given(one=INPUTS, two=INPUTS)
def test_inputs_differ_exactly_when_a_difference_is_named(one, two):
    assert one.differences(one) == []
    assert (one.differences(two) == []) == (one.identity() == two.identity())
    assert len(one.differences(two)) == len(two.differences(one))


def test_a_difference_names_the_field_and_both_values():
    def inputs(**settings: Any) -> Inputs:
        return Inputs(op="prune", parent=None, settings=settings, code="test-1")

    assert inputs(compression="0.25", mix={"count": 1}).differences(inputs(compression="0.5", mix={"count": 2})) == [
        "settings.compression: 0.25 / 0.5",
        "settings.mix.count: 1 / 2",
    ]


@given(files=FILES)
def test_the_digest_of_files_knows_names_and_contents_and_no_order(files):
    backwards = dict(reversed(files.items()))
    assert files_digest(backwards) == files_digest(files)
    for name, file in files.items():
        other = file.model_copy(update={"digest": canonical.digest(file.digest.encode())})
        assert files_digest({**files, name: other}) != files_digest(files)
        assert files_digest({key: value for key, value in files.items() if key != name}) != files_digest(files)
