"""Paths stay below the root, whatever they are asked for, and lead to each other wherever the root lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gates.errors import UsageError
from registry.layout import Layout, checked_digest, checked_name, is_name, numbered

ROOT = Path("/models")
NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)
DIGESTS = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)


@given(text=st.text() | st.text(alphabet="./-_aA0\n\0~", max_size=70))
@example("..")
@example("a/../b")
@example("toy\n")
@example("CON")
def test_whatever_is_accepted_as_a_name_is_one_plain_part_of_a_path(text):
    if not is_name(text):
        with pytest.raises(UsageError, match="is not a name"):
            checked_name(text)
        return
    assert checked_name(text) == text
    assert Path(text).parts == (text,)
    assert text not in (".", "..")
    assert not text.startswith(("-", "."))
    assert text == text.casefold(), "no two names are one where case does not count"
    assert len(os.fsencode(text)) <= 64


@given(name=NAMES, digest=DIGESTS)
def test_every_path_is_below_the_root(name, digest):
    layout = Layout(ROOT)
    paths = [
        layout.marker,
        *layout.folders(),
        layout.blob(digest),
        layout.manifest(digest),
        layout.model(name),
        layout.evidence(digest),
        layout.verdicts(digest),
        layout.channel(name),
        layout.generations(name),
        layout.step(digest),
        layout.lock(name),
    ]
    assert all(Path(os.path.normpath(path)).is_relative_to(ROOT) for path in paths)
    assert len(set(paths)) == len(paths)


@given(channel=NAMES, candidate=NAMES)
def test_a_channel_s_link_leads_to_the_model(channel, candidate):
    layout = Layout(ROOT)
    assert not layout.channel_target(candidate).startswith("/")
    led = os.path.normpath(layout.channel(channel).parent / layout.channel_target(candidate))
    assert Path(led) == layout.model(candidate)


@pytest.mark.parametrize("text", ["", "a" * 63, "a" * 65, "A" * 64, "g" * 64, "a" * 64 + "\n", "../" + "a" * 61])
def test_what_is_no_digest_leads_nowhere(text):
    layout = Layout(ROOT)
    for use in (checked_digest, layout.blob, layout.manifest, layout.evidence, layout.verdicts, layout.step):
        with pytest.raises(UsageError, match="is not a SHA-256 digest"):
            use(text)


@given(one=st.integers(1, 99_999_999), two=st.integers(1, 99_999_999))
def test_numbered_records_sort_as_their_numbers_do(one, two):
    assert (numbered(one) < numbered(two)) == (one < two)
