"""What is interrupted: one change of a registry each, as `work`, on what `prepare` makes."""

from __future__ import annotations

import atexit
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest

from gates.errors import UsageError
from registry import deriving, fs, garbage, gc, judging, promotion, removal
from registry.store import Store
from tests.support import stores

POLICY = b'{"gates":[{"name":"Toolcall","rules":[{"floor":{"at_least":50,"pack":"toolcall"}}]}],"name":"floor"}'


@dataclass(frozen=True, slots=True)
class Scenario:
    """`work` is asked twice or more: what it finds done stays as it is.

    Args:
        prepare: makes the registry in the folder that it is given.
    """

    name: str
    prepare: Callable[[Path], object]
    work: Callable[[Path], object]
    may_lose: frozenset[str] = frozenset()
    """The names that the work takes away."""
    sees: Callable[[Path], object] = lambda _: None
    """What belongs to the end that it comes to, beside what a user sees."""


@contextmanager
def marks() -> Iterator[None]:
    """Shows strace where something begins and ends: by looks at paths that are not there."""
    os.path.exists("/injection/begin")  # noqa: PTH110 - exactly one system call
    try:
        yield
    finally:
        os.path.exists("/injection/end")  # noqa: PTH110


def source(name: str, *, seed: int = 0) -> Path:
    """A checkpoint outside every registry, always of the same bytes."""
    folder = _sources() / f"{name}-{seed}"
    if not folder.exists():
        stores.checkpoint(folder, seed=seed, bare=True)
    return folder


@cache
def _sources() -> Path:
    folder = Path(mkdtemp(prefix="sluice-sources-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)  # processes that are killed or forked do not come here
    return folder


def empty(root: Path) -> Store:
    return Store.init(root)


def judged(root: Path) -> Store:
    """Two candidates with a Pass, one without; the first is served."""
    store = Store.init(root)
    for seed, (name, right) in enumerate({"good": 9, "fine": 8, "bad": 1}.items()):
        store.add(name, source(name, seed=seed))
        stores.judge(store, name, policy_file(), right=right)
    promotion.promote(store, "good", policy=judging.read_policy(policy_file()))
    return store


def twice_promoted(root: Path) -> Store:
    store = judged(root)
    promotion.promote(store, "fine")
    return store


@cache
def policy_file() -> Path:
    return stores.write_policy(_sources() / "floor.yaml", at_least=50)


def _commit(root: Path, *, replace: bool) -> None:
    """What a stage does: work in the step's folder, one commit at the end."""
    store = Store.open(root)
    inputs = stores.pruned(store.candidate("good"), "0.5" if replace else "0.25")
    if store.made("v7b", inputs, replace=replace) is None:
        with store.step(inputs.identity()) as folder:
            fs.remove_tree(folder / "model")  # unfinished
            with marks():  # what a stage writes into its folder does not pass the registry
                stores.checkpoint(folder / "model", seed=7 if replace else 6, bare=True)
                (folder / "extra").mkdir(exist_ok=True)
                (folder / "extra/scores.json").write_text("[1]")
            store.commit("v7b", inputs, folder / "model", attachments=folder / "extra", replace=replace)
    store.discard(inputs.identity())


def _replaced_before(root: Path) -> None:
    judged(root)
    _commit(root, replace=False)


def _promote_to_a_new_channel(root: Path) -> None:
    policy = judging.read_policy(policy_file())
    promotion.promote(Store.open(root), "bad", channel="next", policy=policy, override=True, reason="to see it fail")


def _judge_again(root: Path) -> None:
    stores.judge(Store.open(root), "good", policy_file(), right=7)


def _derive(root: Path) -> None:
    template = _sources() / "other.jinja"
    template.write_text("{{ messages }} in other words")
    deriving.derive(Store.open(root), "good", "good-b", {"chat_template.jinja": template})


def _remove(root: Path) -> None:
    try:
        removal.remove(Store.open(root), "bad")
    except UsageError as error:
        assert error.what == "there is no candidate 'bad'"  # noqa: PT017 - any other refusal comes through


def _with_garbage(root: Path) -> None:
    """A candidate that nobody needs any more, evidence on it included, and work that was given up."""
    store = judged(root)
    removal.remove(store, "bad")
    store.put(b"rows that nothing names")
    with store.step("a" * 64) as folder:
        (folder / "half").write_text("done")
    (root / "candidates/.tmp-0123456789abcdef").mkdir()


def collect(root: Path) -> None:
    gc.collect(Store.open(root), grace=0, now=time.time() + garbage.DAY)


def _blobs(root: Path) -> object:
    """All that gc leaves: blobs and unfinished work too."""
    kept = [*root.glob("blobs/sha256/*/*"), *root.glob("manifests/*"), *root.glob("staging/*"), *root.glob("trash/*")]
    return sorted(path.relative_to(root).as_posix() for path in kept)


SCENARIOS = [
    Scenario("init", lambda _: None, Store.init),
    Scenario("add", empty, lambda root: Store.open(root).add("toy", source("toy"))),
    Scenario("add-another", judged, lambda root: Store.open(root).add("toy", source("toy", seed=1))),
    Scenario("commit", judged, lambda root: _commit(root, replace=False)),
    Scenario("replace", _replaced_before, lambda root: _commit(root, replace=True)),
    Scenario("evidence-and-verdict", judged, _judge_again),
    Scenario("promote", judged, lambda root: promotion.promote(Store.open(root), "fine")),
    Scenario("promote-first", judged, _promote_to_a_new_channel),
    Scenario("rollback", twice_promoted, lambda root: promotion.rollback(Store.open(root), to=1)),
    Scenario("derive", judged, _derive),
    Scenario("rm", judged, _remove, may_lose=frozenset({"bad"})),
    Scenario("gc", _with_garbage, collect, sees=_blobs),
]

each_scenario = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.name)
