"""The evaluate stage: evidence that a gate accepts, taken once, whatever interrupts it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from gates import canonical
from gates.errors import InvalidEvidence
from gates.evidence import check, incomparable, totals
from gates.records import Evidence, Row
from registry import deriving, judging, retractions
from registry.recipes import Evaluate
from registry.store import Store
from stages.common.execution import Result
from stages.evaluate import client as client_module
from stages.evaluate import runner, scoring
from stages.evaluate.journal import Answer, Journal
from stages.evaluate.packs import Pack, read_pack
from stages.evaluate.server.model import Generator
from tests.support import serving

ITEMS = 128
YAML = "name: {name}\ndescription: For tests.\ngrader: {grader}\nitems: packs/{name}.jsonl\nmax_tokens: {tokens}\n"
RECIPE = """\
name: again
parent: tiny
steps:
  - evaluate: {{packs: [words, calls], {more}}}
"""


def write_pack(project: Path, name: str, *, grader: str, count: int, tokens: int) -> None:
    (project / "packs").mkdir(exist_ok=True)
    (project / "packs" / f"{name}.yaml").write_text(YAML.format(name=name, grader=grader, tokens=tokens))
    rows = [
        {
            "id": f"{name}-{number:03d}",
            "category": "Odd" if number % 2 else "Even",
            "messages": [{"role": "user", "content": "word " * (number % 9) + str(number)}],
            "expected": {"answer": "nothing that random weights say"},
        }
        for number in range(count)
    ]
    (project / "packs" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return serving.write_chat_model(tmp_path_factory.mktemp("evaluate") / "model")


def write_project(folder: Path) -> Path:
    folder.mkdir()
    write_pack(folder, "words", grader="exact-text", count=ITEMS, tokens=40)
    write_pack(folder, "calls", grader="tool-call", count=8, tokens=8)
    (folder / "recipe.yaml").write_text(RECIPE.format(more="thinking: true"))
    return folder


def write_store(folder: Path, model: Path) -> Store:
    store = Store.init(folder)
    store.add("tiny", model)
    return store


@pytest.fixture
def project(tmp_path):
    return write_project(tmp_path / "project")


@pytest.fixture
def store(tmp_path, model):
    return write_store(tmp_path / "models", model)


@dataclass(frozen=True)
class Taken:
    project: Path
    store: Store
    found: dict[str, Evidence]


@pytest.fixture(scope="module")
def taken(tmp_path_factory, model):
    """Evidence that nothing interrupted."""
    folder = tmp_path_factory.mktemp("taken")
    project, store = write_project(folder / "project"), write_store(folder / "models", model)
    done = stage(project, store)
    assert done.returncode == 0, done.stderr
    return Taken(project, store, evidence(store))


def command(project: Path, store: Store) -> list[str]:
    root = str(store.layout.root)
    return [
        sys.executable,
        "-m",
        "stages.evaluate",
        "--root",
        root,
        "--project",
        str(project),
        "--recipe",
        "recipe.yaml",
    ]


ENVIRONMENT = os.environ | {"SLUICE_TORCH_PYTHON": sys.executable, "PYTHONPATH": str(serving.PROJECT)}


def stage(project: Path, store: Store, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*command(project, store), *words], env=ENVIRONMENT, capture_output=True, text=True, check=False
    )


def evidence(store: Store) -> dict[str, Evidence]:
    """By pack."""
    return {each.pack: each for each in store.evidence(store.candidate("tiny").digest).values()}


def asked(store: Store) -> dict[str, list[int]]:
    """How many items were asked for the evidence on each pack, from the log."""
    found: dict[str, list[int]] = {}
    for entry in store.log.entries():
        entry = entry if isinstance(entry, dict) else entry.model_dump()
        if entry["event"] == "evidence":
            found.setdefault(entry["pack"], []).append(entry["timings"]["asked"])
    return found


def test_evidence_is_complete_and_what_a_gate_accepts(taken, model):
    project, store, found = taken.project, taken.store, taken.found
    assert set(found) == {"words", "calls"}
    for name, each in found.items():
        pack = read_pack(project, name)
        rows = store.read(each.rows)
        assert check(each, rows).complaints == ()
        assert each.totals.missing == 0
        assert set(each.totals.categories) == {"Odd", "Even"}
        parsed = [json.loads(line) for line in rows.splitlines()]
        responses = [json.loads(line) for line in store.read(each.responses).splitlines()]
        assert [row["item"] for row in parsed] == [item.id for item in pack.items]
        assert [line["item"] for line in responses] == [item.id for item in pack.items]
        for row, line in zip(parsed, responses, strict=True):
            assert row["response"] == canonical.digest(canonical.dumps(line["responses"]))
            (response,) = line["responses"]
            assert {"id", "created", "model"}.isdisjoint(response)
            assert row["tokens"] == response["usage"]["completion_tokens"]
            assert line["executions"] == {}
        conditions = each.conditions.model_dump()
        assert None not in conditions.values()
        assert conditions["chat_template"] == canonical.digest((model / "chat_template.jinja").read_bytes())
        assert conditions["tokenizer"] == canonical.digest((model / "tokenizer.json").read_bytes())
        assert (conditions["pack"], conditions["dataset"]) == (pack.digest, pack.dataset)
        assert (conditions["thinking"], conditions["max_length"]) == ("on", 1024)
    assert list(store.layout.staging.iterdir()) == []


def test_what_is_made_is_found_and_under_other_conditions_it_is_made_again(taken):
    project, store, found = taken.project, taken.store, taken.found
    again = stage(project, store)
    assert again.returncode == 0
    assert again.stdout.count("made already") == 2
    assert "starting" not in again.stderr
    assert evidence(store) == found
    assert asked(store) == {"words": [ITEMS], "calls": [8]}

    (project / "recipe.yaml").write_text(RECIPE.format(more="thinking: both").replace("words, calls", "calls"))
    both = stage(project, store)
    assert both.returncode == 0
    assert both.stdout.count("made already") == 1
    made = store.evidence(store.candidate("tiny").digest).values()
    modes = sorted((each.pack, each.conditions.thinking) for each in made)
    assert modes == [("calls", "off"), ("calls", "on"), ("words", "on")], "other conditions are other evidence"
    (project / "recipe.yaml").write_text(RECIPE.format(more="thinking: true"))


def test_what_was_retracted_is_taken_again_and_counts_unless_it_is_the_very_same(project, store, taken):
    right, same = taken.found["calls"], taken.found["words"]
    rows = [Row(**json.loads(line) | {"points": 1}) for line in taken.store.read(right.rows).splitlines()]
    written = b"".join(row.to_bytes() + b"\n" for row in rows)
    wrong = right.model_copy(update={"totals": totals(rows), "rows": canonical.digest(written)})
    for each, its_rows in ((wrong, written), (same, taken.store.read(same.rows))):
        responses = taken.store.read(each.responses)
        digest = store.add_evidence(each, rows=its_rows, responses=responses, timings={"asked": 0})
        retractions.retract(store, digest, "taken on a broken card")

    done = stage(project, store)
    assert done.returncode == 0, done.stderr
    assert list(retractions.standing(store, store.candidate("tiny").digest).values()) == [right]
    assert "made already" not in done.stdout
    assert done.stdout.count("the very one that is retracted and counts no more: taken on a broken card") == 1


def test_whatever_is_killed_and_however_often_only_what_is_missing_is_asked_and_the_evidence_is_the_same(
    project, store, taken
):
    """The server, then the stage, then the stage politely; each time after some more answers were journalled."""
    kept = 0
    for what, how, code in (
        ("server", signal.SIGKILL, 4),
        ("stage", signal.SIGKILL, -signal.SIGKILL),
        ("stage", signal.SIGTERM, 130),
    ):
        running = subprocess.Popen(command(project, store), env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
        with running:
            deadline = time.monotonic() + 120
            while answered(store) <= kept:
                assert running.poll() is None, running.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            if what == "server":
                (server,) = _servers(store, keepers=False)
                os.kill(server, how)
            else:
                running.send_signal(how)
            begun = time.monotonic()
            assert running.wait(120) == code
            assert what == "server" or time.monotonic() - begun < 10
            assert what == "stage" or "the server ended with -9" in running.stderr.read()
        _wait_until_gone(store)
        for journal in store.layout.staging.glob("*/answers.jsonl"):
            with journal.open("ab") as file:
                file.write(b'{"item": "words-0')  # as a power cut would leave it
        kept = answered(store)
        assert 0 < kept < ITEMS
        assert "words" not in evidence(store)

    words = sum(line.startswith(b'{"item": "words-') and line.endswith(b"}") for line in written(store).splitlines())
    done = stage(project, store)
    assert done.returncode == 0, done.stderr
    assert asked(store)["words"] == [ITEMS - words]
    assert len(asked(store)["calls"]) == 1
    assert evidence(store) == taken.found


def _servers(store: Store, *, keepers: bool = True) -> list[int]:
    """The processes that serve something of this registry, and those that keep them (registry/processes.py)."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if (
            b"stages.evaluate.embedded" in command
            and os.fsencode(store.layout.root) in command
            and (keepers or b"processes.py" not in command)
        ):
            found.append(int(entry.name))
    return found


def _wait_until_gone(store: Store) -> None:
    """The kernel ends a server whose stage was killed; that takes a moment."""
    deadline = time.monotonic() + 30
    while _servers(store):
        assert time.monotonic() < deadline, "a server is left behind"
        time.sleep(0.05)


def test_evidence_under_another_chat_template_is_not_compared_and_the_template_is_named(taken, tmp_path):
    """The same weights behind another template (v18, v19) are another candidate, and were asked otherwise."""
    store = taken.store
    template = tmp_path / "chat_template.jinja"
    template.write_text(serving.template() + "{# v19 #}")
    deriving.derive(store, "tiny", "tiny-v19", {"chat_template.jinja": template})
    recipe = taken.project / "recipe.yaml"
    recipe.write_text(RECIPE.format(more="thinking: true").replace("words, calls", "calls"))
    done = stage(taken.project, store, "--candidate", "tiny-v19")
    recipe.write_text(RECIPE.format(more="thinking: true"))
    assert done.returncode == 0, done.stderr
    (newer,) = store.evidence(store.candidate("tiny-v19").digest).values()
    assert incomparable(taken.found["calls"].conditions, newer.conditions) == ["chat_template"]
    (tmp_path / "policy.yaml").write_text(
        "name: drop\ngates:\n  - name: Calls\n    rules:\n      - drop: {pack: calls, at_most: 5}\n"
    )
    policy = judging.read_policy(tmp_path / "policy.yaml")
    verdict = judging.judge(store, "tiny-v19", policy=policy, baseline="tiny")
    assert verdict.verdict == "Invalid"
    assert "chat_template" in str(verdict.reasons) + str(verdict.gates)


def test_packs_with_code_are_refused_without_a_verifier_before_anything_starts(project, store):
    shutil.copytree(serving.PROJECT / "packs", project / "packs", dirs_exist_ok=True)
    (project / "recipe.yaml").write_text(RECIPE.format(more="repeats: 1").replace("calls", "bugfind-15"))
    done = stage(project, store)
    assert done.returncode == 2
    assert "--unsafe-local-execution" in done.stderr
    assert "bugfind-15" in done.stderr
    assert "starting" not in done.stderr
    assert list(store.layout.staging.iterdir()) == []


def test_a_preflight_refuses_what_the_step_would_refuse_and_else_says_what_would_be_asked(project, store):
    told = stage(project, store, "--preflight")
    assert told.returncode == 0, told.stderr
    record = json.loads(told.stdout)
    assert record["packs"] == {"words": ITEMS, "calls": 8}
    assert record["answers"] == ITEMS + 8
    assert record["engine"] == "embedded"
    shutil.copytree(serving.PROJECT / "packs", project / "packs", dirs_exist_ok=True)
    (project / "recipe.yaml").write_text(RECIPE.format(more="repeats: 1").replace("calls", "bugfind-15"))
    refused = stage(project, store, "--preflight")
    assert refused.returncode == 2
    assert "--unsafe-local-execution" in refused.stderr
    assert store.evidence(store.candidate("tiny").digest) == {}


def answered(store: Store) -> int:
    """Items that will not be asked again."""
    recorded = sum(each.totals.overall.items for each in evidence(store).values())
    return recorded + written(store).count(b"\n")


def written(store: Store) -> bytes:
    return b"".join(path.read_bytes() for path in store.layout.staging.glob("*/answers.jsonl"))


def test_a_candidate_that_is_not_whole_is_not_asked(project, store):
    (store.candidate("tiny").folder / "tokenizer.json").unlink()
    done = stage(project, store)
    assert done.returncode == 5
    assert "tokenizer.json" in done.stderr


def test_a_pack_that_is_not_there_is_said_before_anything_starts(project, store):
    (project / "recipe.yaml").write_text(RECIPE.format(more="repeats: 1").replace("calls", "call"))
    done = stage(project, store)
    assert done.returncode == 2
    assert "there is no pack call" in done.stderr
    assert "starting" not in done.stderr


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_said_before_anything_starts(project, store):
    done = stage(project, store, "--device", "cuda")
    assert done.returncode == 2
    assert "the embedded engine computes on cpu here, not on cuda" in done.stderr
    assert "starting" not in done.stderr


# ------------------------------------------------------------------------------------------------ faults on the way


@pytest.fixture(scope="module")
def generator(model):
    return Generator(model, device="cpu", dtype="float32")


class _Nobody:
    def advance(self, amount: float = 1, note: str = "") -> None:
        pass


def run(app: Any, pack: Pack, journal: Path, **settings: Any) -> scoring.Results:
    """Asks `pack` of an application, as the stage does."""
    wanted = Evaluate(packs=[pack.name], **settings)

    async def ask() -> dict:
        async with serving.connected(app) as client:
            with Journal(journal) as opened:
                await runner.ask(client, pack, wanted, opened, _Nobody(), check=lambda: None)
            return opened.answers

    return scoring.results(pack, wanted.repeats, asyncio.run(ask()))


def failing(app: Any, text: str, *, times: int) -> Any:
    """`app` behind something that answers 503 to requests with `text` in them, so many times."""
    left = [times]

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        message: Any = await receive()
        if text.encode() in message.get("body", b"") and left[0]:
            left[0] -= 1
            await send({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body", "body": b"busy"})
            return

        unread = [message]

        async def again() -> Any:
            return unread.pop() if unread else await receive()

        await app(scope, again, send)

    return answer


@pytest.fixture
def small(project, monkeypatch):
    monkeypatch.setattr(client_module, "PAUSES", (0.0, 0.0, 0.0))
    write_pack(project, "small", grader="exact-text", count=6, tokens=4)
    return read_pack(project, "small")


def test_a_fault_of_the_infrastructure_that_passes_costs_nothing(small, generator, tmp_path):
    app = serving.application(generator)
    smooth = run(app, small, tmp_path / "smooth")
    assert run(failing(app, "word 1", times=3), small, tmp_path / "rough") == smooth


def test_a_fault_that_stays_is_a_missing_answer_and_never_a_zero(small, generator, tmp_path):
    app = serving.application(generator)
    rows = run(failing(app, "word 1", times=1000), small, tmp_path / "journal").rows
    (missing,) = [row for row in rows if row.outcome == "infra"]
    assert missing.item == "small-001"
    assert missing.points is None
    assert missing.response is None
    sums = totals(rows)
    assert (sums.missing, sums.overall.items, sums.overall.of) == (1, 5, 5)

    healed = run(app, small, tmp_path / "journal")
    assert healed == run(app, small, tmp_path / "afresh")


DEEP = b'{"choices": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"


def answering(app: Any, status: int, body: bytes) -> Any:
    """`app` behind something that answers this to every chat."""

    async def answer(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/v1/chat/completions":
            await app(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return answer


@pytest.mark.parametrize("body", [b"<html>busy</html>", b"null", b"[]", b"", b'{"choices": [', b'{"a": "\xff"}', DEEP])
def test_what_no_model_can_answer_is_a_missing_answer_and_never_a_zero(small, tmp_path, body):
    rows = run(answering(None, 200, body), small, tmp_path / "journal").rows
    assert {(row.outcome, row.points) for row in rows} == {("infra", None)}


def test_an_answer_that_cannot_be_kept_is_the_models_fault(small, tmp_path):
    body = b'{"choices": [{"message": {"content": "\\ud800"}, "finish_reason": "stop"}]}'
    rows = run(answering(None, 200, body), small, tmp_path / "journal").rows
    assert {(row.outcome, row.points) for row in rows} == {("model_error", 0)}


def test_a_server_that_sends_elsewhere_is_not_followed_and_not_scored(small, tmp_path):
    with pytest.raises(InvalidEvidence, match="refuses a request: 307"):
        run(answering(None, 307, b"{}"), small, tmp_path / "journal")


def test_everything_that_bears_on_sampling_is_said_and_stands_in_the_conditions(small, generator, tmp_path):
    """vLLM takes what is not said from the checkpoint's generation_config.json, the repetition penalty at temperature 0
    included."""
    said: list[dict[str, Any]] = []
    app = serving.application(generator)

    async def listening(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        said.append(json.loads(message["body"]))
        unread = [message]

        async def again() -> Any:
            return unread.pop() if unread else await receive()

        await app(scope, again, send)

    run(listening, small, tmp_path / "journal")
    bearing = {"temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"}
    for each in said:
        assert each.keys() > bearing | {"seed", "max_tokens"}


def test_repeats_differ_by_their_seed_and_are_reproducible(small, generator, tmp_path):
    app = serving.application(generator)
    rows = run(app, small, tmp_path / "a", repeats=3, temperature=1).rows
    assert [(row.item, row.repeat) for row in rows] == [(item.id, n) for item in small.items for n in range(3)]
    assert len({row.response for row in rows if row.item == "small-001"}) == 3
    assert run(app, small, tmp_path / "b", repeats=3, temperature=1).rows == rows


def test_a_journal_keeps_whole_lines_and_drops_what_was_torn(tmp_path):
    path = tmp_path / "journal"
    first = Answer("a", 0, ({"choices": []}, None), 0.1, {"d": Result("failed", detail="it ended").to_json()})
    with Journal(path) as journal:
        journal.add(first)
    line = path.read_bytes()
    damaged = [
        line.replace(old, new)
        for old, new in [(b'"failed"', b'"passed"'), (b"0.1", b'"0.1"'), (b": 0,", b": true,"), (b'"a"', b"7")]
    ]
    assert line not in damaged
    for torn in (b"{", b'{"item": "b", "repeat": 0', b"\xff", b"\0\0\0\n", b'{"item": "b"}\n', b"3\n", DEEP, *damaged):
        with path.open("ab") as file:
            file.write(torn)
        with Journal(path) as again:
            assert again.answers == {("a", 0): first}
    with Journal(path) as again:
        again.add(Answer("b", 1, (None,), 0.2))
    with Journal(path) as again:
        assert again.answers.keys() == {("a", 0), ("b", 1)}
