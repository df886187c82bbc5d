"""Two candidates of a registry side by side, with the control that would tell why they differ."""

from __future__ import annotations

from pathlib import Path

import pytest

from gates import canonical
from registry import commits, comparison
from registry.history import Difference
from registry.manifests import Inputs
from registry.store import Candidate, Store
from tests.support import scores, stores, tiny


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.init(tmp_path / "models")


@pytest.fixture
def base(store: Store, tmp_path: Path) -> Candidate:
    tiny.write_checkpoint(tmp_path / "base", layers=1, experts=8, hidden=4, intermediate=4, tied=True)
    return store.add("base", tmp_path / "base")


@pytest.fixture
def v3(store: Store, base: Candidate) -> Candidate:
    return stores.prune(store, "v3", base, experts=6, mix="v3", compression="0.25")


@pytest.fixture
def mix_a(store: Store, base: Candidate) -> Candidate:
    return stores.prune(store, "mix-a", base, experts=4, mix="mix-a", compression="0.5")


def test_the_missing_control_of_a_confounded_pair_is_named_with_its_recipe(store, v3, mix_a, tmp_path):
    found = comparison.of(store, v3, mix_a, project=tmp_path)
    assert found.conclusion.startswith("confounded: the depth and the mix differ")
    text = comparison.render(found)
    assert "the control is missing: mix as mix-a: mix-a (" in text
    assert "depth as v3: 0.25 (6 of 8 experts)" in text
    assert "- prune: {compression: 0.25, criterion: reap, mix: mixes/mix-a.yaml}" in text
    assert "parent: base" in text


def test_a_mix_is_named_by_its_file_wherever_that_lies(store, v3, mix_a, tmp_path):
    folder = tmp_path / "project" / "mixes" / "story"
    folder.mkdir(parents=True)
    (folder / "a.yaml").write_text("name: mix-a\ndatasets: [{path: a.jsonl, count: 1}]\n", encoding="utf-8")
    (folder / "broken.yaml").write_text("name: [", encoding="utf-8")
    found = comparison.of(store, v3, mix_a, project=tmp_path / "project")
    assert "mix: mixes/story/a.yaml" in (found.controls[0].recipe or "")


def test_the_control_that_is_there_is_found_by_what_it_was_made_from(store, base, v3, mix_a):
    stores.prune(store, "under-any-name", base, experts=6, mix="mix-a", compression="0.25")
    found = comparison.of(store, v3, mix_a)
    assert [each.name for each in found.controls] == ["under-any-name"]
    text = comparison.render(found)
    assert "the control is there: under-any-name" in text
    assert "v3 and under-any-name: isolates the mix at equal depth" in text
    assert "mix-a and under-any-name: isolates the depth with one mix" in text


def test_one_difference_isolates_and_needs_no_control(store, base, v3):
    other = stores.prune(store, "other", base, experts=6, mix="broad", compression="0.25")
    found = comparison.of(store, v3, other)
    assert (found.conclusion, found.controls) == ("isolates the mix at equal depth", [])
    assert [each.field for each in found.differences] == ["prune.mix"]


def test_scores_under_different_conditions_are_said_not_to_be_comparable(store, v3, mix_a):
    for candidate, template in ((v3, "1" * 64), (mix_a, "9" * 64)):
        rows, responses = scores.right(5, 10), b"{}\n"
        header = scores.header(rows, pack="toolcall", candidate=candidate.digest, chat_template=template)
        header = header.model_copy(update={"responses": canonical.digest(responses)})
        store.add_evidence(header, rows=scores.written(rows), responses=responses, timings={})
    found = comparison.of(store, v3, mix_a)
    assert found.notes == ["toolcall: taken under different conditions (chat_template), so not comparable"]
    assert found.scores["toolcall"] == ((50.0,), (50.0,))


def test_scores_under_the_same_conditions_need_no_note_and_the_control_is_evaluated_alike(store, v3, mix_a):
    stores.observe(store, "v3", right=9)
    stores.observe(store, "mix-a", right=5)
    found = comparison.of(store, v3, mix_a)
    assert found.notes == []
    assert f"- evaluate: {{packs: [{stores.PACK}]}}" in (found.controls[0].recipe or "")


def test_a_stacked_prune_is_said_to_be_one(store, v3):
    again = stores.prune(store, "again", v3, experts=4, mix="broad", compression="0.25")
    found = comparison.of(store, v3, again)
    assert found.conclusion == "isolates the prune 2: nothing else differs"
    assert found.notes == [
        "again is a prune of a pruned model: what its first mix had removed, no later mix brings back"
    ]


def test_a_damaged_candidate_elsewhere_does_not_keep_two_from_being_compared(store, v3, mix_a, tmp_path):
    other = stores.add(store, "other", tmp_path, seed=1)
    store.layout.manifest(other.digest).unlink()
    assert comparison.of(store, v3, mix_a).controls


def test_a_step_that_one_of_them_lacks_is_shown_with_the_names_of_its_settings(store, v3):
    settings = {
        "batch_size": 4,
        "lora": {"rank": 16, "targets": None},
        "reference": {"name": "held-out", "rows": "a" * 64},
    }
    inputs = Inputs(op="train", parent=v3.digest, settings=settings, seed=7, code="test-1")
    with store.step(inputs.identity()) as folder:
        tiny.write_checkpoint(folder / "model", layers=1, experts=6, hidden=4, intermediate=4, tied=True)
        trained = store.commit("trained", inputs, folder / "model")
    rows = [line.split() for line in comparison.render(comparison.of(store, v3, trained)).splitlines()]
    assert rows[1:5] == [
        ["train.batch_size", "-", "4"],
        ["train.lora.rank", "-", "16"],
        ["train.reference", "-", "held-out", f"({'a' * 12})"],
        ["train.seed", "-", "7"],
    ]


def test_of_a_setting_with_parts_those_that_differ_are_shown():
    pair = ({"rank": 8, "alpha": 32}, {"rank": 16, "alpha": 32})
    found = comparison.Comparison("one", "two", [Difference("train.lora", "lora", *pair)], "", [], {}, [], None)
    assert [line.split() for line in comparison.render(found).splitlines()[1:]] == [["train.lora.rank", "8", "16"]]


def test_of_a_training_that_changed_nothing_it_is_said_that_both_have_the_same_files(store, v3):
    """As one does of which no step was better than none."""
    inputs = Inputs(op="train", parent=v3.digest, settings={"experts": "nf4"}, seed=0, code="test-1")
    idle = commits.assemble(store, "idle", inputs, v3.manifest.files)
    found = comparison.of(store, v3, idle)
    assert (found.conclusion, found.notes) == (
        "isolates the training: nothing else differs",
        ["v3 and idle have the same files, byte for byte: what differs has changed nothing"],
    )
    assert comparison.of(store, v3, store.candidate("v3")).notes == []
