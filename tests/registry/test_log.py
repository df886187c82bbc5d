"""The log: a chain that many write at once, and in which a change shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gates import canonical
from gates.errors import IntegrityError
from registry.layout import numbered
from registry.log import Entry, Log
from tests.support.processes import KILLED, dying_at, end, start, together


@pytest.fixture
def log(tmp_path) -> Log:
    (tmp_path / "log").mkdir()
    return Log(tmp_path / "log")


@pytest.fixture
def written(log) -> Log:
    for number in range(5):
        log.append("evidence", pack=f"pack-{number}")
    return log


def test_entries_come_back_in_order_and_follow_from_each_other(written):
    entries = list(written.entries())
    assert [entry.seq for entry in entries] == [1, 2, 3, 4, 5]
    assert [entry.about for entry in entries] == [{"pack": f"pack-{number}"} for number in range(5)]
    assert [entry.previous for entry in entries] == [None, *(entry.identity() for entry in entries[:-1])]
    assert written.verify() == 5


def test_an_empty_log_is_whole(log):
    assert log.verify() == 0
    assert list(log.entries()) == []
    assert log.newest("evidence") is None


def test_an_entry_says_who_where_and_when(written):
    entry = next(written.entries())
    assert entry.user
    assert entry.host
    assert len(entry.time) == len("2026-11-22T05:00:00Z")


def test_sixteen_writers_at_once_leave_no_gap_and_lose_nothing(log):
    def write(writer: int) -> None:
        for number in range(4):
            log.append("evidence", writer=writer, number=number)

    assert together([lambda writer=writer: write(writer) for writer in range(16)]) == [0] * 16
    assert log.verify() == 64
    about = [(entry.about["writer"], entry.about["number"]) for entry in log.entries()]
    assert sorted(about) == [(writer, number) for writer in range(16) for number in range(4)]
    for writer in range(16):
        assert [number for who, number in about if who == writer] == [0, 1, 2, 3]


def test_what_must_follow_is_written_exactly_once_whoever_else_tries(log):
    def follow() -> None:
        def following(newest: dict[str, Any] | None) -> dict[str, Any] | None:
            done = newest["generation"] if newest else 0
            return {"generation": done + 1} if done < 5 else None

        log.follow("promotion", {"channel": "best"}, following)

    log.append("promotion", channel="other", generation=9)
    assert together([follow] * 8) == [0] * 8
    generations = [entry.about["generation"] for entry in log.entries() if entry.about["channel"] == "best"]
    assert generations == [1, 2, 3, 4, 5]
    assert log.verify() == 6


def test_the_newest_entry_is_found_by_what_it_is_about(log):
    log.append("candidate", name="v7a", manifest="1")
    log.append("candidate", name="v7b", manifest="2", note='"event":"promotion"')
    log.append("candidate", name="v7a", manifest="3")
    assert log.newest("candidate", name="v7a") == {"name": "v7a", "manifest": "3"}
    assert log.newest("promotion") is None
    assert log.newest("candidate", name="v7c") is None


@pytest.mark.parametrize("killed_at", range(1, 9))
def test_a_writer_killed_anywhere_leaves_a_whole_log(written, killed_at):
    assert end(start(dying_at(killed_at, lambda: written.append("evidence", pack="late")))) in (0, KILLED)
    assert written.verify() in (5, 6)
    written.append("evidence", pack="later")
    written.verify()


@pytest.mark.parametrize("number", [1, 3, 5])
def test_an_entry_that_was_changed_is_named_the_newest_too(written, number):
    path = written.folder / numbered(number)
    entry = json.loads(path.read_bytes())
    path.unlink()
    path.write_bytes(canonical.dumps(entry | {"pack": "forged"}))
    with pytest.raises(IntegrityError, match="was changed") as caught:
        written.verify()
    assert numbered(number) in str(caught.value)


@pytest.mark.parametrize("number", [1, 3, 4])
def test_an_entry_that_was_forged_seal_and_all_is_seen_in_the_next(written, number):
    path = written.folder / numbered(number)
    entry = Entry.from_bytes(path.read_bytes())
    path.unlink()
    path.write_bytes(entry.model_copy(update={"pack": "forged"}).sealed().to_bytes())
    with pytest.raises(IntegrityError, match=f"entry {number + 1}: it does not follow"):
        written.verify()


def test_nothing_follows_from_an_entry_that_was_changed(written):
    path = written.folder / numbered(5)
    data = path.read_bytes()
    path.unlink()
    path.write_bytes(data.replace(b"pack-4", b"pack-9"))
    with pytest.raises(IntegrityError, match="was changed"):
        written.append("evidence", pack="next")


def test_entries_from_before_there_were_seals_are_read_but_follow_none_that_has_one(log):
    old = {"seq": 1, "previous": None, "time": "", "user": "", "host": "", "event": "evidence"}
    (log.folder / numbered(1)).write_bytes(canonical.dumps(old))
    assert log.append("evidence", pack="new") == 2
    assert log.verify() == 2
    digest = canonical.digest((log.folder / numbered(2)).read_bytes())
    (log.folder / numbered(3)).write_bytes(canonical.dumps(old | {"seq": 3, "previous": digest}))
    with pytest.raises(IntegrityError, match="entry 3: it has no seal"):
        log.verify()


@pytest.mark.parametrize("number", [1, 2, 4])
def test_an_entry_that_is_missing_is_named(written, number):
    (written.folder / numbered(number)).unlink()
    with pytest.raises(IntegrityError, match=f"entry {number}: it is missing"):
        written.verify()


def test_two_entries_that_changed_places_are_named(written):
    second, third = (written.folder / numbered(number) for number in (2, 3))
    aside = written.folder / "aside"
    second.rename(aside)
    third.rename(second)
    aside.rename(third)
    with pytest.raises(IntegrityError, match="entry 2: it says that it is number 3"):
        written.verify()


@pytest.mark.parametrize("number", [2, 5])
def test_any_one_flipped_bit_is_found(written, number):
    path = written.folder / numbered(number)
    data = path.read_bytes()
    for bit in range(8 * len(data)):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        path.unlink()
        path.write_bytes(changed)
        with pytest.raises(IntegrityError):
            written.verify()


def test_names_that_are_no_entries_are_passed_over(written):
    for name in (".tmp-0123456789abcdef", "README", "000000006.json", "00000006.json.bak"):
        (written.folder / name).write_text("not an entry")
    assert written.verify() == 5
    assert written.append("evidence", pack="next") == 6


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(1 - 2**53, 2**53 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


@given(about=st.dictionaries(st.text(min_size=1).map(lambda name: f"x-{name}"), VALUES, max_size=4))
def test_whatever_an_entry_is_about_reads_and_writes_as_the_same_bytes(about):
    entry = Entry.model_validate(
        about | {"seq": 1, "previous": None, "time": "", "user": "", "host": "", "event": "evidence"}
    )
    again = Entry.from_bytes(entry.to_bytes())
    assert again.to_bytes() == entry.to_bytes()
    assert canonical.dumps(again.about) == canonical.dumps(about)


def test_the_log_of_format_1_still_reads_and_writes_as_the_same_bytes(project: Path):
    data = (project / "tests/golden/format1/log.json").read_bytes()
    entry = Entry.from_bytes(data)
    assert entry.to_bytes() == data
    assert (entry.seq, entry.event, entry.about["channel"]) == (7, "promotion", "best")
    assert entry.about["a field of tomorrow"] == [1, {"kept": True}]
