"""A name is taken off a candidate only if nothing depends on it, and all that depends on it is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from gates.errors import UsageError
from registry import fs, generations, judging, naming, promotion, reachable, removal
from registry.store import Store
from registry.verify import verify
from tests.support import invariants, stores


@pytest.fixture
def store(memory_path: Path) -> Store:
    return Store.init(memory_path / "models")


def work(store: Store, name: str, *, seed: int) -> Path:
    return stores.checkpoint(store.layout.root.parent / name, seed=seed)


def refusal(store: Store, name: str, **options: int) -> str:
    with pytest.raises(UsageError) as refused:
        removal.remove(store, name, **options)
    assert name in store.names(), "it is still there"
    return str(refused.value)


def served(store: Store, tmp_path: Path, *names: str) -> Path:
    policy = stores.write_policy(tmp_path / "policy.yaml")
    for seed, name in enumerate(names):
        stores.add(store, name, tmp_path, seed=seed)
        stores.judge(store, name, policy)
        promotion.promote(store, name, policy=judging.read_policy(policy))
    return policy


def test_a_removed_candidate_is_gone_and_the_log_says_so(store, tmp_path):
    digest = stores.add(store, "name", tmp_path).digest
    removed = removal.remove(store, "name")
    assert (removed.manifest, removed.size) == (digest, store.manifest(digest).size)
    assert store.names() == []
    last = store.log.newest("candidate", name="name")
    assert last is not None
    assert (last["op"], last["manifest"], last["replaced"]) == ("rm", None, digest)
    assert store.manifest(digest), "it stays until gc"
    invariants.check(store.layout.root)


def test_the_name_is_free_for_another_and_for_the_same_model(store, tmp_path):
    first = stores.add(store, "name", tmp_path, seed=1)
    removal.remove(store, "name")
    other = stores.add(store, "name", tmp_path, seed=2)
    assert other.digest != first.digest
    removal.remove(store, "name")
    assert stores.add(store, "name", tmp_path, seed=1) == first
    last = store.log.newest("candidate", name="name")
    assert last is not None
    assert (last["op"], last["manifest"]) == ("add", first.digest)


def test_what_is_not_there_cannot_be_removed(store, tmp_path):
    with pytest.raises(UsageError, match="no candidate 'name'"):
        removal.remove(store, "name")
    stores.add(store, "name", tmp_path)
    removal.remove(store, "name")
    with pytest.raises(UsageError, match="no candidate 'name'"):
        removal.remove(store, "name")


@pytest.mark.parametrize("name", ["..", "../manifests", "", "A", ".hidden"])
def test_what_is_no_name_is_refused(store, name):
    with pytest.raises(UsageError, match="is not a name"):
        removal.remove(store, name)


def test_a_channel_is_not_removed(store, tmp_path):
    served(store, tmp_path, "first")
    with pytest.raises(UsageError, match="best is a channel, which serves first"):
        removal.remove(store, "best")


def test_what_a_channel_serves_is_not_removed(store, tmp_path):
    served(store, tmp_path, "first")
    assert "the channel best serves it" in refusal(store, "first")


def test_what_a_kept_generation_served_is_not_removed(store, tmp_path):
    served(store, tmp_path, "first", "second")
    assert "generation 1 of best served it" in refusal(store, "first")
    assert "generation 1 of best served it" in refusal(store, "first", keep_generations=2)
    removal.remove(store, "first", keep_generations=1)
    assert "the channel best serves it" in refusal(store, "second", keep_generations=1)


def test_what_another_candidate_is_made_from_is_not_removed(store, tmp_path):
    parent = stores.add(store, "parent", tmp_path)
    store.commit("child", stores.pruned(parent), work(store, "child", seed=1))
    assert "child is made from it" in refusal(store, "parent")
    removal.remove(store, "child")
    removal.remove(store, "parent")


def test_the_baseline_of_a_standing_verdict_is_not_removed(store, tmp_path):
    policy = stores.write_policy(tmp_path / "policy.yaml")
    for seed, name in enumerate(("base", "judged")):
        stores.add(store, name, tmp_path, seed=seed)
        stores.observe(store, name, right=9)
    judging.judge(store, "judged", policy=judging.read_policy(policy), baseline="base")
    assert "judged was judged against it: Pass under policy" in refusal(store, "base")
    stores.observe(store, "judged", right=8)
    removal.remove(store, "base")  # the verdict rests on all evidence no more


def test_every_dependent_is_named_at_once(store, tmp_path):
    served(store, tmp_path, "first", "second")
    store.commit("child", stores.pruned(store.candidate("first")), work(store, "child", seed=5))
    promotion.promote(store, "first")
    told = refusal(store, "first")
    assert "the channel best serves it" in told
    assert "generation 1 of best served it" in told
    assert "child is made from it" in told


def test_of_two_names_of_one_model_one_can_be_removed(store, tmp_path):
    parent = stores.add(store, "parent", tmp_path)
    store.add("twin", tmp_path / "parent-0")
    store.commit("child", stores.pruned(parent), work(store, "child", seed=1))
    removal.remove(store, "twin")
    assert "child is made from it" in refusal(store, "parent")


def test_a_damaged_candidate_can_be_removed(store, tmp_path):
    digest = stores.add(store, "broken", tmp_path).digest
    fs.remove_tree(store.layout.candidate("broken") / "manifest")
    assert removal.remove(store, "broken").manifest == digest
    assert store.names() == []


def test_a_damaged_candidate_that_is_served_is_not_removed(store, tmp_path):
    served(store, tmp_path, "first")
    fs.remove_tree(store.layout.candidate("first") / "manifest")
    assert "the channel best serves it" in refusal(store, "first")


def test_another_damaged_candidate_keeps_nobody_from_removing(store, tmp_path):
    for seed, name in enumerate(("broken", "name")):
        stores.add(store, name, tmp_path, seed=seed)
    fs.remove_tree(store.layout.candidate("broken") / "manifest")
    removal.remove(store, "name")
    assert store.names() == ["broken"]


def test_a_removal_that_was_killed_before_its_entry_in_the_log_is_finished(store, tmp_path):
    digest = stores.add(store, "name", tmp_path).digest
    fs.rename_folder(store.layout.candidate("name"), fs.beside(store.layout.staging / "x"))
    assert reachable.last_names(store) == {"name": digest}
    assert removal.remove(store, "name").manifest == digest
    assert reachable.last_names(store) == {}


@pytest.mark.parametrize("restored", [False, True])
def test_what_is_promoted_while_it_is_removed_where_locks_do_not_work_stays(store, tmp_path, monkeypatch, restored):
    """Restored: the promotion has noticed that the name was gone, and has made it again."""
    policy = served(store, tmp_path, "first")
    stores.add(store, "second", tmp_path, seed=5)
    stores.judge(store, "second", policy)
    digest = store.candidate("second").digest
    rename = fs.rename_folder

    def promoting(source: Path, target: Path) -> None:
        monkeypatch.setattr(fs, "rename_folder", rename)
        generation = generations.current(store.layout, "best")
        assert generation is not None
        rename(source, target)
        update = {"number": 2, "candidate": "second", "manifest": digest, "replaces": "first", "verdict": None}
        generation = generation.model_copy(update=update | {"override": True, "reason": "a race"})
        fs.write_new(store.layout.generations("best") / "00000002.json", generation.to_bytes())
        if restored:
            naming.restore(store, "second", digest)

    monkeypatch.setattr(fs, "rename_folder", promoting)
    assert "the channel best serves it" in refusal(store, "second")
    assert verify(store, "second", full=True) == []
    invariants.check(store.layout.root)
