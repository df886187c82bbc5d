"""Hidden states on disk: each batch goes on from where it stopped, and what is damaged is never gone on with."""

from __future__ import annotations

import threading
import weakref
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gates.errors import IntegrityError
from stages.common.spool import Note, Spool, Tensors

COUNT = 5


@pytest.fixture
def folder(tmp_path) -> Path:
    return tmp_path / "spool"


def first(batch: int) -> torch.Tensor:
    return torch.full((2, 3), float(batch))


def plus_one(batch: int, tensors: Tensors) -> tuple[Tensors, Note]:
    return {"states": tensors["states"] + 1}, {"batch": batch}


def opened(folder: Path, of: str = "these tokens") -> Spool:
    spool = Spool(folder, count=COUNT, of=of)
    if not spool.begun:
        spool.begin(first)
    return spool


def held(spool: Spool, step: int) -> list[float]:
    """One number of what each batch holds, which is at `step`."""
    found: dict[int, float] = {}

    def look(batch: int, tensors: Tensors) -> tuple[Tensors, Note]:
        found[batch] = float(tensors["states"][0, 0])
        return tensors, {}

    spool.advance(step, step + 1, look)
    return [found[batch] for batch in range(COUNT)]


def test_every_batch_goes_through_the_work_of_every_step(folder):
    spool = opened(folder)
    spool.advance(0, 1, plus_one)
    assert spool.is_at(1)
    assert not spool.is_at(2)
    assert spool.notes(1) == [{"batch": batch} for batch in range(COUNT)]
    spool.advance(1, 2, plus_one, slots=3)
    assert held(spool, 2) == [2.0, 3.0, 4.0, 5.0, 6.0]


@given(st.sets(st.integers(0, COUNT - 1)))
def test_a_run_that_failed_anywhere_goes_on_with_what_is_left(tmp_path_factory, failing):
    folder = tmp_path_factory.mktemp("spool") / "spool"
    spool, worked = opened(folder), []

    def once(batch: int, tensors: Tensors) -> tuple[Tensors, Note]:
        if batch in failing:
            raise KeyboardInterrupt
        return plus_one(batch, tensors)

    def again(batch: int, tensors: Tensors) -> tuple[Tensors, Note]:
        worked.append(batch)
        return plus_one(batch, tensors)

    if failing:
        with pytest.raises(KeyboardInterrupt):
            spool.advance(0, 1, once)
    else:
        spool.advance(0, 1, once)
    done = [batch for batch in range(COUNT) if spool.at(batch) == 1]
    spool = opened(folder)
    spool.advance(0, 1, again)
    assert sorted(worked + done) == list(range(COUNT))
    assert failing <= set(worked)
    assert spool.notes(1) == [{"batch": batch} for batch in range(COUNT)]
    assert held(spool, 1) == [1.0, 2.0, 3.0, 4.0, 5.0]


@given(
    st.sampled_from([torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool, torch.uint8]),
    st.lists(st.integers(1, 4), max_size=3),
    st.data(),
)
def test_tensors_come_back_as_they_were_put(tmp_path_factory, dtype, shape, data):
    tensors = {
        name: torch.randint(0, 2, (*shape, data.draw(st.integers(1, 3)))).to(dtype) for name in ("a", "b", "states")
    }
    spool = Spool(tmp_path_factory.mktemp("spool"), count=1, of=0)
    spool.begin(first)
    spool.advance(0, 1, lambda _batch, _tensors: (tensors, {}))
    read: list[Tensors] = []
    spool.advance(1, 2, lambda _batch, found: (read.append(found) or found, {}))
    assert read[0].keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert read[0][name].dtype == tensor.dtype
        assert read[0][name].equal(tensor)


def test_states_of_something_else_are_not_gone_on_with(folder):
    opened(folder).advance(0, 1, plus_one)
    assert opened(folder).is_at(1)
    assert opened(folder, "other tokens").at(0) == 0
    assert opened(folder).at(0) == 0


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes() + b"\0"),
        lambda path: path.write_bytes(b"\0" * path.stat().st_size),
        lambda path: path.write_bytes(b"{}\n" + path.read_bytes()),
        lambda path: path.write_bytes((path.parent / "00000001.states").read_bytes()),
        lambda path: path.unlink(),
    ],
    ids=["empty", "cut", "longer", "zeros", "another header", "another batch", "missing"],
)
def test_with_a_batch_torn_everything_begins_afresh(folder, damage):
    opened(folder).advance(0, 1, plus_one)
    damage(folder / "00000002.states")
    spool = Spool(folder, count=COUNT, of="these tokens")
    assert [spool.at(batch) for batch in range(COUNT)] == [None] * COUNT
    assert not spool.begun


@pytest.mark.parametrize("place", [-1, -20, 60])
def test_a_bit_that_fell_over_is_seen_and_the_next_run_begins_afresh(folder, place):
    """In the numbers, and in the header's own text of the same length."""
    opened(folder).advance(0, 1, plus_one)
    path = folder / "00000002.states"
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    spool = Spool(folder, count=COUNT, of="these tokens")
    if spool.begun:
        with pytest.raises(IntegrityError, match="damaged"):
            spool.advance(1, 2, plus_one)
    assert Spool(folder, count=COUNT, of="these tokens").at(0) is None


def test_an_older_state_that_came_back_is_seen(folder):
    """After a power cut a file may be what it was before it was replaced."""
    spool = opened(folder)
    old = (folder / "00000002.states").read_bytes()
    spool.advance(0, 1, plus_one)
    spool.advance(1, 2, plus_one)
    (folder / "00000002.states").write_bytes(old)
    spool = Spool(folder, count=COUNT, of="these tokens")
    with pytest.raises(IntegrityError, match="damaged"):
        spool.advance(1, 2, plus_one)
    assert not Spool(folder, count=COUNT, of="these tokens").begun


def test_what_a_killed_writer_left_is_removed(folder):
    opened(folder)
    (folder / ".tmp-0123456789abcdef").write_bytes(b"half")
    opened(folder)
    assert not list(folder.glob(".tmp-*"))


def test_what_was_kept_lasts_as_long_as_the_states(folder):
    spool = opened(folder)
    spool.keep("choice", b"kept")
    assert opened(folder).kept("choice") == b"kept"
    assert opened(folder).kept("another") is None
    assert opened(folder, "other tokens").kept("choice") is None


def test_a_finished_spool_holds_no_states_and_is_never_worked_on_again(folder):
    spool = opened(folder)
    spool.advance(0, 1, plus_one)
    spool.keep("choice", b"kept")
    spool.finish()
    assert not list(folder.glob("*.states"))
    spool = opened(folder)
    assert spool.finished
    assert spool.is_at(99)
    assert spool.kept("choice") == b"kept"


def test_no_more_than_the_slots_work_at_a_time_and_few_batches_are_in_memory(folder):
    """So what the run takes of memory does not grow with the number of tokens."""
    count, slots = 40, 2
    spool = Spool(folder, count=count, of=0)
    spool.begin(first)
    lock, working, most = threading.Lock(), [0], [0]
    seen: list[weakref.ref[torch.Tensor]] = []
    alive: list[int] = []

    def work(batch: int, tensors: Tensors) -> tuple[Tensors, Note]:
        with lock:
            working[0] += 1
            most[0] = max(most[0], working[0])
            seen.append(weakref.ref(tensors["states"]))
            alive.append(sum(each() is not None for each in seen))
        threading.Event().wait(0.002)
        with lock:
            working[0] -= 1
        return plus_one(batch, tensors)

    spool.advance(0, 1, work, slots=slots)
    assert most[0] == slots
    assert max(alive) <= slots + 2
    assert spool.worked > 0.002 * count
    assert spool.waited >= 0


def test_the_first_failure_ends_the_step(folder):
    count, seen = 200, []
    spool = Spool(folder, count=count, of=0)
    spool.begin(first)

    def work(batch: int, tensors: Tensors) -> tuple[Tensors, Note]:
        seen.append(batch)
        if batch == 3:
            raise IntegrityError("layer 0 puts out NaN", where="x")
        return plus_one(batch, tensors)

    with pytest.raises(IntegrityError, match="puts out NaN"):
        spool.advance(0, 1, work)
    assert len(seen) < count


def test_no_thread_is_at_work_any_more_when_an_interruption_falls_into_the_start_of_one(folder, monkeypatch):
    """A pool does not know of a thread whose start was interrupted, and does not wait for it."""
    spool = opened(folder)
    begun, ended = threading.Event(), threading.Event()
    start = threading.Thread.start

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        begun.wait(10)
        raise KeyboardInterrupt

    def work(batch: int, tensors: Tensors) -> tuple[Tensors, Note]:
        begun.set()
        threading.Event().wait(0.3)
        ended.set()
        return plus_one(batch, tensors)

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        spool.advance(0, 1, work)
    assert ended.is_set()
    assert [spool.at(batch) for batch in range(COUNT)] == [1, 0, 0, 0, 0]
