"""gc beside others at work: all of one before each single change that the other makes, with locks and without."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gates.errors import BusyError, IntegrityError
from registry import garbage, gc, reachable, removal
from registry.store import Store
from registry.verify import verify, verify_records
from tests.faults.scenarios import policy_file, source
from tests.support import faults, invariants, stores
from tests.support.processes import end, start

AT_MOST = 5
"""Meetings that `make test` tries of each kind."""

Work = Callable[[Store], Any]


class Meeting:
    """Does `work` just before the `number`-th change (from 1) of what runs; `count` is how many there were."""

    def __init__(self, number: int, work: Callable[[], Any]) -> None:
        self.count = 0
        self._number, self._work, self._busy = number, work, False

    def __call__(self, _: str, arguments: tuple[Any, ...], call: Callable[..., Any]) -> Any:
        if not self._busy:
            self.count += 1
            if self.count == self._number:
                self._busy = True
                try:
                    self._work()
                finally:
                    self._busy = False
        return call(*arguments)


@pytest.fixture
def meetings(memory_path, some) -> Callable[[Work, Work], Iterator[Store]]:
    """`meetings(one, other)`: the registries that are left when `other` comes at any moment of `one`."""

    def met(one: Work, other: Work) -> Iterator[Store]:
        template = _with_old_garbage(memory_path / "template")
        counting = Meeting(0, lambda: None)
        with faults.around(counting):
            one(template)
        assert counting.count > 10
        for number in some(counting.count, AT_MOST):
            store = _with_old_garbage(memory_path / str(number))
            with faults.around(Meeting(number, lambda store=store: other(store))):
                one(store)
            faults.count_fault()
            yield store

    return met


@pytest.fixture(params=["locks", "no locks"], autouse=True)
def _locking(request, monkeypatch) -> None:
    @contextlib.contextmanager
    def unlocked(*_: Any, **__: Any) -> Iterator[None]:
        yield

    if request.param == "no locks":
        monkeypatch.setattr(Store, "locked", unlocked)
        monkeypatch.setattr("registry.locks.held", lambda _: False)


def _with_old_garbage(root: Path) -> Store:
    """A registry with a candidate, and a removed one that was judged, all of it old enough to go."""
    store = Store.init(root)
    store.add("kept", source("kept", seed=1))
    store.add("gone", source("gone", seed=2))
    stores.judge(store, "gone", policy_file())
    removal.remove(store, "gone")
    for path in (each for kind in ("blobs", "manifests") for each in (root / kind).rglob("*") if each.is_file()):
        os.utime(path, (time.time() - garbage.DAY,) * 2)
    return store


def _add(store: Store) -> None:
    store.add("again", source("gone", seed=2))


def _collect(store: Store) -> None:
    gc.collect(store, grace=0)


def _sound(store: Store, *names: str) -> None:
    for name in names:
        assert verify(store, name, full=True) == []
        assert verify_records(store, name) == []
    invariants.check(store.layout.root)


def test_a_candidate_added_at_any_moment_of_gc_is_whole(meetings):
    for store in meetings(_collect, _add):
        _sound(store, "again", "kept")


def test_a_gc_at_any_moment_of_add_takes_nothing_from_it(meetings):
    for store in meetings(_add, _collect):
        _sound(store, "again", "kept")


def test_a_gc_at_any_moment_of_rm_takes_nothing_but_what_was_removed(meetings):
    for store in meetings(lambda store: removal.remove(store, "kept"), _collect):
        assert store.names() == []
        _collect(store)
        invariants.check(store.layout.root)


def test_a_candidate_removed_at_any_moment_of_gc_can_be_added_again(meetings):
    for store in meetings(_collect, lambda store: removal.remove(store, "kept")):
        invariants.check(store.layout.root)
        store.add("kept", source("kept", seed=1))
        _sound(store, "kept")


def test_evidence_recorded_at_any_moment_of_gc_is_whole_or_refused(meetings):
    """Of a candidate that has lost its name: its manifest is there or not, and with it all that is recorded."""
    told: list[str] = []

    def record(store: Store) -> None:
        told.clear()
        (digest,) = set(reachable.reach(store).manifests) - {store.candidate("kept").digest} or {"ab" * 32}
        evidence, rows, responses = stores.evidence_on(digest, right=3)
        with contextlib.suppress(IntegrityError):
            told.append(digest)
            told.append(store.add_evidence(evidence, rows=rows, responses=responses, timings={}))

    for store in meetings(_collect, record):
        if told[1:]:
            digest, evidence = told
            assert store.manifest(digest)
            assert evidence in store.evidence(digest)
            assert len(store.evidence(digest)) == 2, "the old evidence is there too"
            for each in store.evidence(digest).values():
                assert store.read(each.rows or "")
        _sound(store, "kept")


def test_a_command_at_any_moment_of_gc_keeps_nothing_from_going(meetings):
    """Opening the registry looks after a gc that was killed. It cannot always tell one that is at work."""
    for store in meetings(_collect, lambda store: Store.open(store.layout.root)):
        _collect(store)
        assert [path.stem for path in invariants.visible(store.layout.root / "manifests")] == [
            store.candidate("kept").digest
        ]
        assert {path.name for path in garbage.blobs(store)} == {
            file.digest for file in store.candidate("kept").manifest.files.values()
        }
        _sound(store, "kept")


def test_of_two_gcs_at_once_one_is_refused_or_both_together_lose_nothing(meetings):
    def second(store: Store) -> None:
        with contextlib.suppress(BusyError):
            _collect(store)

    for store in meetings(_collect, second):
        _sound(store, "kept")
        _collect(store)
        assert len(list(garbage.blobs(store))) == len(store.candidate("kept").manifest.files)
        _sound(store, "kept")


def test_writers_and_gc_in_processes_of_their_own_lose_nothing(memory_path, monkeypatch, thorough):
    """Models added, read and removed over and over, while gc takes whatever rested for a second."""
    monkeypatch.setattr(garbage, "MARGIN", 1.0)
    root = memory_path / "models"
    Store.init(root)
    sources = [source("race", seed=seed) for seed in range(4)]
    until = time.monotonic() + (30 if thorough else 5)

    def write(writer: int) -> None:
        turn = 0
        while time.monotonic() < until:
            turn += 1
            store, name = Store.open(root), f"w{writer}"
            store.add(name, sources[(turn + writer) % 4])
            assert verify(store, name, full=True) == []
            removal.remove(store, name)
            time.sleep(0.3 * (turn % 5))

    def sweep() -> None:
        removed = 0
        while time.monotonic() < until:
            removed += len(gc.collect(Store.open(root), grace=0).blobs)
        assert removed > 0, "nothing was put to the test"

    processes = [start(lambda writer=writer: write(writer)) for writer in range(2)] + [start(sweep)]
    assert [end(process) for process in processes] == [0, 0, 0]
    invariants.check(root)
