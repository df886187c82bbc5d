"""`registry report` and the reports of `registry gate`: what the registry knows, written as files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as Xml

import pytest
from typer.testing import CliRunner

from gates.reports import KINDS, Overview, Report
from registry import fs, judging, promotion, reporting
from registry.cli import app
from registry.store import Store
from tests.support import stores


@pytest.fixture
def store(memory_path: Path, tmp_path: Path) -> Store:
    """`base`, which is promoted, and `small`, pruned from it; both are judged."""
    store = Store.init(memory_path / "models")
    policy = stores.write_policy(tmp_path / "policy.yaml")
    base = stores.add(store, "base", tmp_path)
    stores.prune(store, "small", base, experts=2, mix="broad", compression="0.5")
    stores.judge(store, "base", policy)
    stores.observe(store, "small", right=3)
    judging.judge(store, "small", policy=judging.read_policy(policy), baseline="base")
    promotion.promote(store, "base", policy=judging.read_policy(policy))
    return store


@pytest.fixture
def run(store: Store) -> Callable[..., tuple[int, str, str]]:
    def run(*words: str) -> tuple[int, str, str]:
        found = CliRunner().invoke(app, [*words, "--root", str(store.layout.root)])
        return found.exit_code, found.stdout, found.stderr

    return run


def test_a_report_names_what_the_candidate_was_made_of_what_is_missing_and_its_size(store: Store):
    said = reporting.report(store, reporting.latest(store, "small"), card=2**30)
    assert [step.op for step in said.subject.lineage] == ["prune", "add"]
    assert said.subject.lineage[0].settings["mix"].startswith("broad")
    assert said.subject.lineage[0].settings["depth"] == "0.5 (2 of 2 experts)"
    assert (said.subject.candidate, said.subject.baseline, said.subject.promoted) == ("small", "base", ())
    assert said.subject.size == store.candidate("small").manifest.size
    assert said.subject.fit is not None
    assert said.subject.fit.startswith("does not fit")  # a server has nothing left of 1 GiB
    assert not said.subject.stale


def test_a_verdict_that_rests_on_other_evidence_than_there_is_is_said_to_be_stale(store: Store):
    stores.observe(store, "small", right=9, of=10)
    said = reporting.report(store, reporting.latest(store, "small"))
    assert said.subject.stale
    for kind in ("md", "html"):
        assert b"Stale" in reporting.render(said, kind)


def test_every_kind_is_written_and_read_again(run: Callable[..., tuple[int, str, str]], tmp_path: Path):
    out = tmp_path / "out"
    code, stdout, _ = run("report", "small", "--as", ",".join(KINDS), "--out", str(out))
    assert code == 0
    assert sorted(path.name for path in out.iterdir()) == ["small.html", "small.json", "small.md", "small.xml"]
    assert sorted(stdout.split()) == sorted(str(path) for path in out.iterdir())
    assert Report.from_bytes((out / "small.json").read_bytes()).verdict.verdict == "FailToolcall"
    assert Xml.parse(out / "small.xml").getroot().get("failures") == "1"  # noqa: S314 - our own file


def test_gate_writes_reports_of_all_and_ends_with_the_worst(run: Callable[..., tuple[int, str, str]], tmp_path: Path):
    out = tmp_path / "out"
    code, _, _ = run("gate", "--all", "--report", "junit,md", "--out", str(out))
    assert code == 1
    assert sorted(path.name for path in out.iterdir()) == ["base.md", "base.xml", "small.md", "small.xml"]


def test_the_page_of_all_links_to_the_pages_that_lie_beside_it(
    run: Callable[..., tuple[int, str, str]], tmp_path: Path
):
    out = tmp_path / "out"
    assert run("report", "small", "--out", str(out))[0] == 0
    code, stdout, _ = run("report", "--all", "--out", str(out))
    assert (code, stdout.strip()) == (0, str(out / "index.html"))
    page = (out / "index.html").read_text()
    assert 'href="small.html"' in page
    assert 'href="base.html"' not in page


def test_the_page_of_all_knows_what_ls_and_lineage_know(run: Callable[..., tuple[int, str, str]]):
    found = Overview.model_validate(json.loads(run("report", "--all", "--json")[1]))
    listed = {line["name"]: line for line in json.loads(run("ls", "--json")[1])}
    assert [each.name for each in found.candidates] == list(listed)
    for each in found.candidates:
        line = listed[each.name]
        assert (each.verdict, each.size, list(each.channels)) == (line["verdict"], line["size"], line["channels"])
        assert {pack: list(scores) for pack, scores in each.scores.items()} == line["scores"]
    base, small = found.lineage
    assert (base.names, base.parent, small.names, small.parent) == (("base",), None, ("small",), base.digest)


def test_a_damaged_candidate_is_on_the_page_of_all_as_damaged(store: Store):
    fs.remove_tree(store.layout.candidate("small") / "manifest")
    (damaged,) = (each for each in reporting.of_all(store).candidates if each.damage)
    assert damaged.name == "small"
    assert b"small is damaged" in reporting.page_of_all(reporting.of_all(store))


def test_a_candidate_called_index_does_not_take_the_place_of_the_page_of_all(store: Store, tmp_path: Path):
    said = reporting.report(store, reporting.latest(store, "small"))
    assert reporting.write(tmp_path, "index", "html", said) != reporting.write_of_all(store, tmp_path)


def test_reports_judge_nothing_and_change_nothing(
    run: Callable[..., tuple[int, str, str]], store: Store, tmp_path: Path
):
    before = sorted(store.layout.root.rglob("*"))
    run("report", "small", "--out", str(tmp_path))
    run("report", "--all", "--out", str(tmp_path))
    assert sorted(store.layout.root.rglob("*")) == before


@pytest.mark.parametrize(
    "words",
    [
        ("report",),
        ("report", "small", "--all"),
        ("report", "nobody"),
        ("report", "small", "--as", "pdf"),
        ("report", "small", "--card", "much"),
        ("report", "small", "--out", "/dev/null/reports"),
        ("gate", "--all", "--report", "pdf"),
    ],
)
def test_what_cannot_be_reported_ends_with_2_and_says_what_to_do(
    run: Callable[..., tuple[int, str, str]], words: tuple[str, ...]
):
    code, stdout, stderr = run(*words)
    assert (code, stdout) == (2, "")
    assert stderr.startswith("error: ")


def test_what_was_never_judged_has_no_report(run: Callable[..., tuple[int, str, str]], store: Store, tmp_path: Path):
    stores.add(store, "new", tmp_path, seed=9)
    code, _, stderr = run("report", "new")
    assert code == 2
    assert "registry gate new" in stderr


@pytest.mark.parametrize("command", ["gate", "report"])
def test_help_names_every_kind_of_report(command: str):
    assert ",".join(KINDS) in CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "200"}).stdout


def test_a_report_names_the_files_that_lie_beside_the_model(store: Store):
    folder = store.layout.candidate("small") / "attachments"
    folder.mkdir()
    (folder / "scores.svg").symlink_to(store.layout.blob(store.put(b"<svg/>")))
    said = reporting.report(store, reporting.latest(store, "small"))
    assert said.subject.attachments == ("scores.svg",)
    for kind in ("md", "html"):
        assert b"Kept beside the model" in reporting.render(said, kind)
        assert b"scores.svg" in reporting.render(said, kind)
    assert reporting.subject(store, reporting.latest(store, "base")).attachments == ()
