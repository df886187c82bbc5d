"""What every candidate was made from, as far back as the model came from, and what was made from it."""

from __future__ import annotations

from pathlib import Path

import pytest

from gates.errors import UsageError
from registry import judging, lineage, promotion
from registry.lineage import Node
from registry.manifests import Inputs
from registry.store import Candidate, Store
from tests.support import stores, tiny


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.init(tmp_path / "models")


@pytest.fixture
def base(store: Store) -> Candidate:
    """A model as it was taken from the Hub, with 8 experts."""
    inputs = Inputs(
        op="add",
        parent=None,
        settings={"files": "f" * 64, "source": "hf://Qwen/Qwen3-30B-A3B", "revision": "ad44e77"},
        code="test-1",
    )
    with store.step(inputs.identity()) as folder:
        tiny.write_checkpoint(folder / "model", layers=1, experts=8, hidden=4, intermediate=4, tied=True)
        return store.commit("qwen", inputs, folder / "model")


@pytest.fixture
def story(store: Store, base: Candidate) -> Store:
    """qwen → v2 → v2.again, and qwen → v3."""
    v2 = stores.prune(store, "v2", base, experts=6, mix="narrow", compression="0.25")
    stores.prune(store, "v2.again", v2, experts=4, mix="broad", compression="0.25")
    stores.prune(store, "v3", base, experts=6, mix="broad", compression="0.25")
    return store


def drawn(store: Store, name: str | None = None) -> list[str]:
    return lineage.render(lineage.trees(store, name)).splitlines()


def flat(nodes: tuple[Node, ...] | list[Node]) -> list[Node]:
    return [each for node in nodes for each in (node, *flat(node.made))]


def test_the_whole_registry_is_drawn_from_the_hub_revision_on(story):
    begins = ["qwen  ", "├── v2  ", "│   └── v2.again  ", "└── v3  "]
    assert all(line.startswith(begin) for line, begin in zip(drawn(story), begins, strict=True))
    top, first, second, _ = drawn(story)
    assert top.endswith("add: hf://Qwen/Qwen3-30B-A3B@ad44e77")
    assert "prune: 0.25, reap, mix narrow " in first
    assert first.endswith("6 experts")
    assert second.endswith("4 experts, stacked")


def test_of_one_candidate_its_ancestors_and_what_was_made_from_it_are_drawn(story):
    assert [node.names for node in flat(lineage.trees(story, "v2"))] == [("qwen",), ("v2",), ("v2.again",)]
    assert [node.names for node in flat(lineage.trees(story, "v3"))] == [("qwen",), ("v3",)]
    assert [node.names for node in flat(lineage.trees(story, "v2.again"))] == [("qwen",), ("v2",), ("v2.again",)]


def test_an_ancestor_is_drawn_though_its_name_went_to_another(story, tmp_path):
    stores.add(story, "v2", tmp_path, replace=True)
    _, first, second = drawn(story, "v2.again")
    assert first.startswith("└── (no name)  ")
    assert "mix narrow" in first
    assert second.startswith("    └── v2.again")
    assert "v2" in drawn(story, "v2")[0]


def test_the_same_candidate_under_two_names_is_one_node(story, base):
    stores.prune(story, "also-v3", base, experts=6, mix="broad", compression="0.25")
    assert ("also-v3", "v3") in [node.names for node in flat(lineage.trees(story))]


def test_what_a_channel_serves_is_marked(story, tmp_path):
    policy = judging.read_policy(stores.write_policy(tmp_path / "any.yaml"))
    promotion.promote(story, "v3", policy=policy, override=True, reason="the first")
    assert drawn(story)[-1].endswith("← best")
    assert [node.names for node in flat(lineage.trees(story, "best"))] == [("qwen",), ("v3",)]


def test_a_lost_ancestor_is_said_to_be_lost_and_the_rest_is_drawn(story, base, capsys):
    story.layout.manifest(base.digest).unlink()
    top, first = drawn(story, "v3")
    assert top == f"(no name)  {base.digest[:12]}  its manifest is missing or damaged"
    assert first.startswith("└── v3")
    said = capsys.readouterr().err
    assert "qwen is left out, for it is damaged" in said
    assert f"what {base.digest[:12]} was made from is unknown" in said


def test_an_unknown_name_is_refused(story):
    with pytest.raises(UsageError, match="v9"):
        lineage.trees(story, "v9")


def test_an_empty_registry_has_no_trees(store):
    assert lineage.trees(store) == []
