"""Many at once, with locks and where locks do nothing: a serial history, no reader that misses, wasted work at most."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from pathlib import Path

import pytest

from gates.errors import BusyError, SluiceError
from registry import fs, generations, promotion
from registry.store import Store
from tests.faults import scenarios
from tests.support import faults, invariants, stores
from tests.support.processes import end, start, together

PROMOTERS = 32


@pytest.fixture(params=["locks that lock", "locks that do not"])
def locks(request, monkeypatch) -> None:
    if request.param == "locks that do not":
        monkeypatch.setattr(Store, "locked", lambda *_, **__: contextlib.nullcontext())


both_kinds_of_locks = pytest.mark.usefixtures("locks")


@both_kinds_of_locks
def test_32_promoters_at_once_leave_a_serial_history(memory_path):
    root = memory_path / "models"
    scenarios.judged(root)

    def promote(name: str) -> None:
        with contextlib.suppress(BusyError):
            promotion.promote(Store.open(root), name)

    works = [lambda name=name: promote(name) for name in itertools.islice(itertools.cycle(["fine", "good"]), PROMOTERS)]
    assert together(works) == [0] * PROMOTERS
    invariants.check(root)
    history = generations.kept(Store.open(root).layout, "best")
    assert [each.number for each in history] == list(range(1, len(history) + 1))
    assert all(each.replaces == before.candidate for before, each in itertools.pairwise(history))
    faults.count_fault()


@both_kinds_of_locks
def test_writers_of_every_kind_at_once_lose_nothing(memory_path):
    """Adders, promoters, a judge, somebody who rolls back and somebody who collects garbage."""
    root = memory_path / "models"
    scenarios.judged(root)
    before = {name: Store.open(root).candidate(name).digest for name in ("good", "fine", "bad")}

    def patient(work) -> None:
        with contextlib.suppress(SluiceError, OSError):  # wasted work, where locks do not keep the others out
            work()

    def observe() -> None:
        evidence, rows, responses = stores.evidence_on(before["bad"], right=3)
        Store.open(root).add_evidence(evidence, rows=rows, responses=responses, timings={})

    works = [
        *[lambda seed=seed: Store.open(root).add(f"new-{seed}", scenarios.source("toy", seed=seed)) for seed in (1, 2)],
        *[lambda: Store.open(root).add("same", scenarios.source("toy", seed=1))] * 2,
        *[lambda name=name: promotion.promote(Store.open(root), name) for name in ("fine", "good") * 2],
        *[lambda: promotion.rollback(Store.open(root))] * 2,
        observe,
        *[lambda: scenarios.collect(root)] * 2,
    ]
    for seed in (1, 2):
        scenarios.source("toy", seed=seed)
    assert together([lambda work=work: patient(work) for work in works]) == [0] * len(works)
    invariants.check(root)
    for work in works:
        patient(work)
    invariants.check(root)
    store = Store.open(root)
    assert {name: store.candidate(name).digest for name in before} == before
    assert {"new-1", "new-2", "same"} <= set(store.names())
    assert store.candidate("new-1").digest == store.candidate("same").digest
    assert len(store.evidence(before["bad"])) == 2
    faults.count_fault()


def test_readers_in_the_middle_of_swaps_never_miss(memory_path, thorough):
    """100,000 swaps in `make test-faults`."""
    link, swaps = memory_path / "best", 100_000 if thorough else 3_000
    for target in ("one", "two"):
        (memory_path / target).mkdir()
        (memory_path / target / "config.json").write_text(target)
    fs.replace_link(link, "one")

    def read() -> None:
        seen = set()
        while not (memory_path / "done").exists():
            seen.add((link / "config.json").read_text())
        assert seen == {"one", "two"}

    readers = [start(read) for _ in range(2)]
    for number in range(swaps):
        fs.replace_link(link, ("two", "one")[number % 2])
    (memory_path / "done").touch()
    assert [end(reader) for reader in readers] == [0, 0]
    assert not list(memory_path.glob(f"{fs.TEMPORARY}*"))


def test_a_loader_that_resolved_once_never_mixes_two_models(memory_path, thorough):
    """As `vllm serve $(registry path best)`: the folder is asked for once, its files are read one after the other."""
    root = memory_path / "models"
    store = scenarios.judged(root)
    wanted = {store.candidate(name).resolved(): store.candidate(name).manifest.files for name in ("good", "fine")}
    done = memory_path / "done"

    def load() -> None:
        seen = set()
        while not done.exists():
            folder = Path(os.path.realpath(store.layout.channel("best")))
            for name, file in wanted[folder].items():
                assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == file.digest
            seen.add(folder)
        assert seen == wanted.keys()

    loaders = [start(load) for _ in range(2)]
    for number in range(400 if thorough else 40):
        promotion.promote(store, ("fine", "good")[number % 2])
    done.touch()
    assert [end(loader) for loader in loaders] == [0, 0]
