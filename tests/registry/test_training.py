"""How a candidate was trained, as `show`, `log` and the reports tell it; whatever lies beside the model, they come."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from gates import canonical
from gates.reports import Report
from registry import details, fs, judging, lineage, training
from registry.cli import app
from registry.manifests import Inputs
from registry.store import Store
from tests.support import reports, stores, tiny

ENDED = "stopped after 400 of 1200 steps: at step 400 the loss of the model as it would ship is 1.2861"
RECORD = reports.TRAPPED.to_bytes()

Run = Callable[..., str]


@pytest.fixture
def store(memory_path: Path, tmp_path: Path) -> Store:
    store = Store.init(memory_path / "models")
    stores.add(store, "base", tmp_path)
    return store


@pytest.fixture
def run(store: Store) -> Run:
    def run(*words: str) -> str:
        found = CliRunner().invoke(app, [*words, "--root", str(store.layout.root)])
        assert found.exit_code == 0, found.output
        return found.stdout

    return run


def made(store: Store, name: str, parent: str, op: str, attached: dict[str, bytes]) -> None:
    inputs = Inputs(op=op, parent=store.candidate(parent).digest, settings={}, seed=0, code="test-1")
    with store.step(inputs.identity()) as folder:
        tiny.write_checkpoint(folder / "model", layers=1, experts=2, hidden=4, intermediate=4, tied=True)
        fs.make_folders(folder / "attachments")
        for file, data in attached.items():
            fs.write_new(folder / "attachments" / file, data)
        store.commit(name, inputs, folder / "model", attachments=folder / "attachments")
    store.discard(inputs.identity())


def test_show_says_why_training_ended_in_words_and_in_json(store: Store, run: Run):
    made(store, "sft", "base", "train", {"training.json": RECORD})
    (line,) = (line for line in run("show", "sft").splitlines() if line.startswith("  training"))
    assert ENDED in line
    (told,) = json.loads(run("show", "sft", "--json"))["training"]
    assert told["of"] == "sft"
    assert told["record"] == json.loads(RECORD)
    assert told["sentence"] in line


def test_of_a_candidate_that_was_made_from_a_trained_one_it_is_said_whose_training_it_was(store: Store, run: Run):
    made(store, "v7b.train", "base", "train", {"training.json": RECORD})
    made(store, "v7b", "v7b.train", "quantize", {})
    assert f"  training    of v7b.train: {ENDED}" in run("show", "v7b")
    assert "training" not in run("show", "base")


def test_the_log_says_how_training_ended(store: Store, run: Run):
    made(store, "sft", "base", "train", {"training.json": RECORD})
    (line,) = (line for line in run("log").splitlines() if "name=sft" in line)
    assert line.endswith("where it began")
    assert f"training={ENDED}" in line
    store.layout.blob(canonical.digest(RECORD)).unlink()
    assert "training=" not in run("log")


@pytest.mark.parametrize(
    ("attached", "said"),
    [
        ({}, "how it went is not kept here"),
        ({"training.json": b"{"}, "not a JSON record"),
        ({"training.json": b"\xff\x00"}, "not a JSON record"),
        ({"training.json": b"[]"}, "this is no Training"),
        ({"training.json": b'{"losses":[1,2],"version":1}'}, "this is no Training"),
        ({"training.json": RECORD.replace(b'"format":1', b'"format":7')}, "format"),
        ({"training.json": RECORD + b"\n"}, "canonical"),
    ],
)
def test_whatever_lies_there_in_the_place_of_the_record_a_report_comes_and_says_so(
    store: Store, run: Run, tmp_path: Path, attached: dict[str, bytes], said: str
):
    made(store, "sft", "base", "train", attached)
    stores.judge(store, "sft", stores.write_policy(tmp_path / "policy.yaml"))
    assert said in run("show", "sft")
    run("report", "sft", "--as", "html,md,json,junit", "--out", str(tmp_path))
    (told,) = Report.from_bytes((tmp_path / "sft.json").read_bytes()).subject.training
    assert told.record is None
    assert said in told.sentence
    assert '<h2 id="packs-title">' in (tmp_path / "sft.html").read_text()
    assert "**Training of sft:**" in (tmp_path / "sft.md").read_text()
    run("log")


@pytest.mark.parametrize("harm", [Path.unlink, lambda blob: blob.chmod(0o644) or blob.write_bytes(b"{}")])
def test_a_damaged_record_keeps_nothing_else_from_being_shown(store: Store, run: Run, harm: Callable[[Path], object]):
    made(store, "sft", "base", "train", {"training.json": RECORD})
    harm(store.layout.blob(canonical.digest(RECORD)))
    shown = run("show", "sft")
    assert "training.json cannot be read" in shown
    assert "model.safetensors" in shown


def test_of_several_names_the_one_that_has_the_record_tells_it(store: Store):
    made(store, "v7b.train", "base", "train", {"training.json": RECORD})
    made(store, "a-copy", "base", "train", {})
    made(store, "v7b", "v7b.train", "quantize", {})
    assert store.candidate("a-copy").digest == store.candidate("v7b.train").digest
    (told,) = training.of(store, "v7b", lineage.chain(store, store.candidate("v7b")))
    assert (told.of, told.record) == ("v7b.train", reports.TRAPPED)


def test_the_manifest_knows_nothing_of_how_training_went(store: Store):
    made(store, "one", "base", "train", {"training.json": RECORD})
    made(store, "other", "base", "train", {"training.json": b"{}"})
    assert store.candidate("one").digest == store.candidate("other").digest
    assert details.of(store, store.candidate("one")).training[0].record is not None


def test_the_page_of_a_verdict_on_a_quantised_candidate_draws_the_curves_of_its_training(
    store: Store, run: Run, tmp_path: Path
):
    made(store, "v7b.train", "base", "train", {"training.json": RECORD})
    made(store, "v7b", "v7b.train", "quantize", {})
    stores.observe(store, "v7b", right=9)
    policy = judging.read_policy(stores.write_policy(tmp_path / "policy.yaml"))
    judging.judge(store, "v7b", policy=policy, baseline=None)
    run("report", "v7b", "--out", str(tmp_path))
    page = (tmp_path / "v7b.html").read_text()
    assert "<h3>v7b.train" in page
    assert page.count("<polyline") == 3
