"""How far two prunes agree, from what each left beside its model."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gates import canonical
from gates.errors import IntegrityError
from registry import choices, comparison, details
from registry.choices import Kept, between, overlap
from registry.manifests import Inputs
from registry.store import Candidate, Store
from tests.support import tiny

EXPERTS = 8


@pytest.fixture
def store(tmp_path) -> Store:
    store = Store.init(tmp_path / "models")
    for name, seed in (("parent", 0), ("other", 1)):
        store.add(name, tiny.write_checkpoint(tmp_path / name, layers=2, experts=EXPERTS, seed=seed))
    return store


def prune(store: Store, name: str, parent: str, kept: list[list[int]] | None, *, op: str = "prune") -> Candidate:
    """A candidate with as many experts as `kept` says; `kept` None leaves no scores."""
    size = len(kept[0]) if kept else EXPERTS
    inputs = Inputs(op=op, parent=store.candidate(parent).digest, settings={"made": name}, code="test-1")
    with store.step(inputs.identity()) as folder:
        tiny.write_checkpoint(folder / "model", layers=2, experts=size)
        if kept:
            layers = [
                {"layer": layer, "scores": [1.0] * EXPERTS, "counts": [2] * EXPERTS, "kept": stay}
                for layer, stay in enumerate(kept)
            ]
            (folder / "attachments").mkdir()
            (folder / "attachments" / choices.SCORES).write_bytes(canonical.dumps({"layers": layers}))
        return store.commit(name, inputs, folder / "model", attachments=folder / "attachments")


chosen = st.dictionaries(
    st.integers(0, 5),
    st.frozensets(st.integers(0, 11), min_size=1).map(lambda experts: Kept(experts, 12)),
    min_size=1,
)


def test_what_lies_beside_a_model_is_listed_and_so_is_what_is_gone_of_it(store):
    prune(store, "left", "parent", [[0, 1, 2]] * 2)
    path = store.layout.candidate("left") / "attachments" / choices.SCORES
    found = details.of(store, store.candidate("left"))
    assert list(found.to_json()["attachments"]) == [
        {"name": choices.SCORES, "size": path.stat().st_size, "path": str(path)},
    ]
    assert f"attachment  {choices.SCORES}  " in details.render(found)
    path.resolve().unlink()
    assert f"{choices.SCORES}  missing" in details.render(details.of(store, store.candidate("left")))
    assert details.of(store, store.candidate("parent")).attachments == ()


@given(chosen, chosen)
def test_agreement_is_counted_expert_by_expert_and_does_not_depend_on_the_side(left, right):
    found, turned = between(left, right), between(right, left)
    common = left.keys() & right.keys()
    if not common:
        assert found is turned is None
        return
    pairs = [(layer, expert) for layer in common for expert in left[layer].experts if expert in right[layer].experts]
    assert found.whole.both == turned.whole.both == len(pairs)
    assert [each.layer for each in found.layers] == sorted(common)
    for each, back in zip(found.layers, turned.layers, strict=True):
        assert (each.left, each.right) == (back.right, back.left)
        assert each.share == back.share
        smaller, larger = sorted((left[each.layer].experts, right[each.layer].experts), key=len)
        assert (each.share == 1) == (smaller <= larger)
        assert max(0, len(smaller) + len(larger) - 12) <= each.both <= len(smaller)


def test_two_prunes_of_one_parent_are_held_against_each_other_layer_by_layer(store):
    left = prune(store, "left", "parent", [[0, 1, 2, 3], [0, 1, 2, 3]])
    right = prune(store, "right", "parent", [[0, 1, 2, 7], [4, 5, 6, 7]])
    found = overlap(store, left, right)
    assert [(each.both, each.share) for each in found.layers] == [(3, 0.75), (0, 0.0)]
    assert (found.whole.both, found.whole.share, found.whole.by_chance) == (3, 0.375, 0.5)
    assert "3 of 8 kept experts are the same (38 %; by chance 50 %), fewest in layer 1 (0 of 4)" in found.sentence


def test_what_was_made_of_a_prune_and_what_its_parent_was_derived_from_count_as_the_prune_and_the_parent(store):
    prune(store, "left.prune", "parent", [[0, 1], [0, 1]])
    left = prune(store, "left", "left.prune", None, op="quantize")
    prune(store, "retemplated", "parent", None, op="derive")
    right = prune(store, "right", "retemplated", [[0, 1, 2], [0, 5, 6]])
    assert overlap(store, left, right).whole.both == 3


def test_prunes_of_other_weights_and_candidates_that_no_prune_made_are_not_compared(store):
    left, right = prune(store, "left", "parent", [[0, 1]] * 2), prune(store, "right", "other", [[0, 1]] * 2)
    assert overlap(store, left, right) is None
    assert overlap(store, left, store.candidate("parent")) is None
    assert overlap(store, left, prune(store, "mute", "parent", None)) is None
    again = prune(store, "again", "left", [[0, 1], [0, 1]])
    assert overlap(store, left, again) is None, "the second prune's experts are numbered anew"


@pytest.mark.parametrize("data", [b"[]", b'{"layers":[{"layer":0}]}', b'{"layers":3}', b"\xff"])
def test_scores_that_cannot_be_read_are_an_error_with_their_place(store, data):
    left = prune(store, "left", "parent", [[0, 1], [0, 1]])
    with pytest.raises(IntegrityError, match=r"left/attachments/scores\.json"):
        overlap(store, left, _with_scores(store, left, data))


def test_scores_whose_bytes_changed_are_an_error(store):
    left, right = (prune(store, name, "parent", [[0, 1], [0, stay]]) for stay, name in ((1, "left"), (2, "right")))
    blob = (store.layout.candidate("right") / "attachments" / choices.SCORES).resolve()
    blob.chmod(0o644)
    blob.write_bytes(blob.read_bytes().replace(b"[0,2]", b"[0,3]"))
    with pytest.raises(IntegrityError, match="damaged"):
        overlap(store, left, right)


def _with_scores(store: Store, candidate: Candidate, data: bytes) -> Candidate:
    """The candidate, after its scores became a blob of `data`."""
    link = store.layout.candidate(candidate.name) / "attachments" / choices.SCORES
    link.unlink()
    link.symlink_to(Path("../../../blobs/sha256") / store.put(data)[:2] / canonical.digest(data))
    return candidate


def test_compare_says_how_far_two_choices_agree(store):
    left, right = (prune(store, name, "parent", [[0, 1], [0, stay]]) for stay, name in ((1, "left"), (2, "right")))
    assert "3 of 4 kept experts are the same" in comparison.render(comparison.of(store, left, right))
