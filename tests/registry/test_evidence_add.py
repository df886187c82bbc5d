"""`registry evidence add`: other tools' results become evidence of a candidate, or nothing is added."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from registry.cli import app
from registry.store import Store
from tests.support.tiny import write_checkpoint

DATA = Path(__file__).parents[1] / "data" / "importers"
PACKS = ("toolcall-15", "bugfind-15", "dataextract-15", "instructfollow-15")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def store(memory_path: Path, tmp_path: Path) -> Store:
    store = Store.init(memory_path / "models")
    for seed, name in enumerate(("base", "small")):
        store.add(name, write_checkpoint(tmp_path / name, seed=seed))
    return store


@pytest.fixture
def run(store: Store) -> Run:
    def run(*words: object) -> tuple[int, str, str]:
        found = CliRunner().invoke(app, [*map(str, words), "--root", str(store.layout.root)])
        assert found.exception is None or isinstance(found.exception, SystemExit), found.exception
        return found.exit_code, found.stdout, found.stderr

    return run


def _totals(path: Path, scores: tuple[float, ...], template: str) -> Path:
    lines = [f"  {pack}: {{score: {score}, items: 15}}" for pack, score in zip(PACKS, scores, strict=False)]
    path.write_text("\n".join(["scores:", *lines, "conditions:", f"  chat_template: {template}", ""]))
    return path


def _count(store: Store, name: str = "small") -> int:
    return len(store.evidence_digests(store.candidate(name).digest))


def _logged(store: Store) -> int:
    return sum(entry.event == "evidence" for entry in store.log.entries())


@pytest.mark.parametrize(
    ("scores", "against", "template", "verdict", "code"),
    [
        ((63, 23, 24, 53), (90, 8, 5, 20), "v19", "FailToolcall", 1),
        ((90, 0, 4, 16), (90, 8, 5, 20), "v19", "FailAgentic", 1),
        ((93, 25, 22, 40), (90, 8, 5, 20), "v19", "Pass", 0),
        ((90, 10), (97, 8), "v18", "FailToolcall", 1),
        ((90, 3), (97, 8), "v18", "FailToolcall", 1),
        ((90, 0), (97, 8), "v18", "FailToolcall", 1),
    ],
)
def test_the_story_comes_out_of_totals_in_a_file(
    run: Run,
    tmp_path: Path,
    project: Path,
    scores: tuple[float, ...],
    against: tuple[float, ...],
    template: str,
    verdict: str,
    code: int,
):
    assert run("evidence", "add", "base", _totals(tmp_path / "base.yaml", against, template))[0] == 0
    assert run("evidence", "add", "small", _totals(tmp_path / "small.yaml", scores, template))[0] == 0
    judged = run("gate", "small", "--policy", project / "policies" / "agentic.yaml", "--baseline", "base")
    assert (judged[0], judged[1].splitlines()[0]) == (code, f"small: {verdict}")
    assert "unknown conditions" in judged[1]


def test_totals_under_another_template_are_refused_and_it_is_named(run: Run, tmp_path: Path, project: Path):
    run("evidence", "add", "base", _totals(tmp_path / "base.yaml", (97, 8, 5, 20), "v18"))
    run("evidence", "add", "small", _totals(tmp_path / "small.yaml", (93, 25, 22, 40), "v19"))
    code, out, _ = run("gate", "small", "--policy", project / "policies" / "agentic.yaml", "--baseline", "base")
    assert code == 4
    assert "chat_template" in out


def test_what_is_added_is_logged_listed_and_says_what_stayed_unknown(store: Store, run: Run):
    code, out, err = run("evidence", "add", "small", *sorted((DATA / "lm-eval-0.4.13").iterdir()))
    assert code == 0
    assert [line.split("  ")[:3] for line in out.splitlines()] == [
        ["small", "tiny_gen", "25.0"],
        ["small", "tiny_mc", "25.0"],
    ]
    assert "unknown: engine, engine_version" in err
    assert (_count(store), _logged(store)) == (2, 2)
    listed = json.loads(run("evidence", "ls", "small", "--json")[1])
    assert sorted(each["pack"] for each in listed.values()) == ["tiny_gen", "tiny_mc"]
    assert all(each["candidate"] == store.candidate("small").digest for each in listed.values())


def test_the_same_files_again_change_nothing_and_that_is_said(store: Store, run: Run):
    log = sorted((DATA / "inspect").glob("*.eval"))[0]
    first = json.loads(run("evidence", "add", "small", log, "--json")[1])
    logged = len(list(store.log.entries()))
    second = json.loads(run("evidence", "add", "small", log, "--json")[1])
    assert ([each["new"] for each in first], [each["new"] for each in second]) == ([True], [False])
    assert [each["evidence"] for each in first] == [each["evidence"] for each in second]
    assert "it was there already" in run("evidence", "add", "small", log)[1]
    assert len(list(store.log.entries())) == logged
    run("evidence", "retract", first[0]["evidence"], "--reason", "another model was served")
    assert "it is retracted: another model was served" in run("evidence", "add", "small", log)[1]


@pytest.mark.parametrize(
    "broken",
    [
        b'{"results": {}, "configs": {',
        b"",
        b"PK\x03\x04 and nothing",
        b"\xff\xfe",
        b"[1, 2]",
        b"scores: {tools: {score: 101}}",
    ],
)
def test_of_a_good_and_a_broken_file_neither_is_added(store: Store, run: Run, tmp_path: Path, broken: bytes):
    good = _totals(tmp_path / "good.yaml", (93, 25), "v19")
    (tmp_path / "broken.json").write_bytes(broken)
    for tool in ([], ["--from", "totals"], ["--from", "lm-eval"], ["--from", "inspect"], ["--from", "evalplus"]):
        code, _, err = run("evidence", "add", "small", good, tmp_path / "broken.json", *tool)
        assert (code, _count(store), _logged(store)) == (2, 0, 0), (tool, err)
        assert "where:" in err


def test_a_candidate_or_a_file_that_is_not_there_is_refused(run: Run, tmp_path: Path):
    assert run("evidence", "add", "none", _totals(tmp_path / "a.yaml", (1,), "v19"))[0] == 2
    assert run("evidence", "add", "small", tmp_path / "none.yaml")[0] == 2
    code, _, err = run("evidence", "add", "small", tmp_path)
    assert (code, "this is a folder" in err) == (2, True)


def test_what_is_no_regular_file_is_refused_and_not_waited_for(store: Store, run: Run, tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero"):
        code, _, err = run("evidence", "add", "small", path)
        assert (code, "no regular file" in err, _count(store)) == (2, True, 0)


@pytest.mark.parametrize(
    ("model", "doubted"),
    [("/models/candidates/small/model", False), ("org/Small-FP8", False), ("gpt-4o", True), ("base", True)],
)
def test_a_file_of_what_looks_like_another_model_is_taken_with_a_word(
    store: Store, run: Run, tmp_path: Path, model: str, doubted: bool
):
    results = json.loads(next((DATA / "lm-eval-0.4.13").glob("results*")).read_text()) | {"model_name": model}
    (tmp_path / "results_1.json").write_text(json.dumps(results))
    code, _, err = run("evidence", "add", "small", tmp_path / "results_1.json")
    assert (code, f"of the model {model}" in err) == (0, doubted)
    assert _count(store) == 2


def test_what_is_known_of_one_side_alone_keeps_scores_from_being_compared_and_is_named(run: Run, tmp_path: Path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("name: trial\ngates:\n  - name: Math\n    rules:\n      - drop: {pack: tiny_mc, at_most: 5}\n")
    mine = [*sorted((DATA / "lm-eval-0.4.13").iterdir()), "--task", "tiny_mc", "--totals-only"]
    assert run("evidence", "add", "base", *mine, "--state", "engine=vllm", "--state", "thinking=off")[0] == 0
    assert run("evidence", "add", "small", *mine)[0] == 0
    code, out, _ = run("gate", "small", "--policy", policy, "--baseline", "base")
    assert code == 4
    assert "engine (unknown / vllm), thinking (unknown / off)" in out


def test_scores_by_item_are_compared_once_all_their_conditions_are_stated(store: Store, run: Run, tmp_path: Path):
    """And not before: what nobody wrote down agrees with nothing."""
    policy = tmp_path / "policy.yaml"
    policy.write_text("name: trial\ngates:\n  - name: Math\n    rules:\n      - drop: {pack: tiny_mc, at_most: 5}\n")
    files = sorted((DATA / "lm-eval-0.4.13").iterdir())
    mine = [*files, "--task", "tiny_mc"]
    for name in ("base", "small"):
        assert run("evidence", "add", name, *mine)[0] == 0
    judge = ("gate", "small", "--policy", policy, "--baseline", "base", "--json")
    code, out, _ = run(*judge)
    assert (code, json.loads(out)["verdict"]) == (4, "Invalid")
    for name in ("base", "small"):
        for digest in store.evidence_digests(store.candidate(name).digest):
            run("evidence", "retract", digest, "--reason", "stated in full below")
    said = {
        "engine": "vllm",
        "engine_version": "0.32.0",
        "server_flags": "{max_model_len: 2048}",
        "reasoning_parser": "none",
        "tool_parser": "none",
        "tokenizer": "ours",
        "thinking": "off",
        "max_tokens": 1,
        "max_length": 2048,
    }
    stated = [word for field, value in said.items() for word in ("--state", f"{field}={value}")]
    for name in ("base", "small"):
        added = json.loads(run("evidence", "add", name, *mine, *stated, "--json")[1])
        assert added[0]["unknown"] == []
        assert added[0]["recorded"]["stated"] == sorted(said)
    code, out, _ = run(*judge)
    assert (code, json.loads(out)["verdict"]) == (0, "Pass")


def test_totals_only_are_compared_as_far_as_anybody_knows(run: Run, tmp_path: Path):
    policy = tmp_path / "policy.yaml"
    policy.write_text("name: trial\ngates:\n  - name: Math\n    rules:\n      - drop: {pack: arc, at_most: 5}\n")
    files = [*sorted((DATA / "lm-eval-0.4.13").iterdir()), "--task", "tiny_mc", "--pack", "arc", "--totals-only"]
    for name in ("base", "small"):
        assert run("evidence", "add", name, *files)[0] == 0
    code, out, _ = run("gate", "small", "--policy", policy, "--baseline", "base")
    assert (code, "unknown conditions" in out) == (0, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--pack", "one"], "--pack names one pack, and there are 2 here: tiny_gen, tiny_mc"),
        (["--task", "tiny_mc", "--pack", "Not A Name"], "is no pack's name"),
        (["--task", "none"], "tiny_gen, tiny_mc"),
        (["--metric", "none"], "exact_match,strict-match"),
        (["--model", "v7b"], "--model chooses in files of BenchLocal"),
        (["--from", "none"], "lm-eval, inspect, benchlocal, evalplus, totals"),
        (["--state", "nothing"], "FIELD=VALUE"),
        (["--state", "thinking=maybe"], "thinking"),
        (["--state", "engine=a", "--state", "engine=b"], "stated twice"),
        (["--state", "chat_template=v19"], "the files state another"),
        (["--state", "engine: [}=1"], "states no condition"),
        (["--state", "engine=[}"], "--state engine"),
    ],
)
def test_a_choice_that_cannot_be_is_refused_with_what_can(store: Store, run: Run, words: list[str], said: str):
    code, _, err = run("evidence", "add", "small", *sorted((DATA / "lm-eval-0.4.13").iterdir()), *words)
    assert (code, _count(store)) == (2, 0)
    assert said in err


def test_metrics_of_one_task_never_meet(run: Run):
    files = [*sorted((DATA / "lm-eval-0.4.13").iterdir()), "--task", "tiny_mc", "--json"]
    [acc], [normed] = (
        json.loads(run("evidence", "add", "small", *files, "--metric", each)[1]) for each in ("acc", "acc_norm")
    )
    assert acc["conditions"]["pack"] == normed["conditions"]["pack"]
    assert acc["conditions"]["grader"] != normed["conditions"]["grader"]
    assert (acc["totals"]["overall"]["points"], normed["totals"]["overall"]["points"]) == (1, 2)
