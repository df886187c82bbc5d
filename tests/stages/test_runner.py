"""The runner: conversations of many turns, code that is run elsewhere, and what either may do wrong."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from gates.errors import InvalidEvidence
from registry.recipes import Evaluate
from stages.common.execution import Execution, Result, settings_of, verifier
from stages.evaluate import client as client_module
from stages.evaluate import runner, scoring, together
from stages.evaluate.journal import Journal
from tests.support import serving
from tests.support.scripted import (
    DONE,
    EXECUTES,
    RIGHT,
    TALKS,
    Seen,
    Server,
    Verifier,
    ask,
    ask_together,
    codes,
    pack_of,
    says,
)


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(client_module, "PAUSES", (0.0, 0.0, 0.0))


# ------------------------------------------------------------------------------------------------------- conversations


def counts(body: dict[str, Any]) -> dict[str, Any]:
    told = [message["content"] for message in body["messages"] if message["role"] == "tool"]
    return says(told[-1]) if told[-1:] == ["3"] else says("next", "more")


def test_a_conversation_goes_on_until_the_grader_ends_it_and_all_of_it_is_kept(tmp_path):
    server, seen = Server(counts), Seen()
    made = ask(server, pack_of(TALKS, 5, turns=8), tmp_path / "journal", seen=seen)
    assert [(row.points, row.outcome, row.tokens) for row in made.rows] == [(1, "scored", 8)] * 5
    for line in map(json.loads, made.responses.splitlines()):
        assert [bool(each["choices"][0]["message"]["tool_calls"]) for each in line["responses"]] == [True] * 3 + [False]
        assert "random" not in json.dumps(line), "a call's own id differs from run to run"
    last = max(server.bodies, key=lambda body: len(body["messages"]))["messages"]
    assert [message["role"] for message in last] == ["user", *["assistant", "tool"] * 3]
    assert len({message["tool_call_id"] for message in last if message["role"] == "tool"}) == 3
    assert seen.done == 5
    assert seen.notes[-1].startswith("scripted 100.0, ")
    assert seen.notes[-1].endswith(" tokens/s")


def test_a_conversation_has_no_more_answers_than_the_pack_allows(tmp_path):
    server = Server(lambda _: says("on and on", "more"))
    made = ask(server, pack_of(TALKS, 2, turns=3), tmp_path / "journal")
    assert [row.points for row in made.rows] == [0, 0]
    assert [len(json.loads(line)["responses"]) for line in made.responses.splitlines()] == [3, 3]
    assert len(server.bodies) == 6


def test_a_conversation_that_outgrows_the_model_is_the_models_fault_and_the_others_go_on(tmp_path):
    server = Server(lambda body: says("3") if body["messages"][0]["content"] == "1" else says("on", "more"), room=4)
    made = ask(server, pack_of(TALKS, 3, turns=8), tmp_path / "journal")
    assert [(row.points, row.outcome) for row in made.rows] == [(0, "model_error"), (1, "scored"), (0, "model_error")]
    kept = json.loads(made.responses.splitlines()[0])["responses"]
    assert [each == runner.OUTGROWN for each in kept] == [False, False, True]


def test_a_refusal_that_room_does_not_explain_scores_nobody(tmp_path):
    class Picky(Server):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] == "/tokenize":
                self.room = 1000
            await super().__call__(scope, receive, send)

    with pytest.raises(InvalidEvidence, match="refuses a request: 400") as error:
        ask(Picky(counts, room=2), pack_of(TALKS, 1, turns=8), tmp_path / "journal")
    assert error.value.where == "scripted, item item-00"


def test_the_server_is_kept_full(tmp_path):
    server = Server(counts)
    ask(server, pack_of(TALKS, 100, turns=8), tmp_path / "journal")
    assert server.most_at_once == together.CONCURRENCY == 32


def test_packs_that_are_asked_together_share_the_places_with_the_server(tmp_path):
    server = Server(counts)
    few = [pack_of(TALKS, 15, turns=8) for _ in range(4)]
    made = ask_together(server, [(pack, None) for pack in few], tmp_path)
    assert [[row.points for row in each.rows] for each in made] == [[1] * 15] * 4
    assert server.most_at_once == together.CONCURRENCY


# ----------------------------------------------------------------------------------------------------- code in answers


def test_code_in_answers_is_run_and_what_came_of_it_is_kept(tmp_path):
    verify = Verifier()
    made = ask(Server(codes), pack_of(EXECUTES, 4), tmp_path / "journal", run=verify)
    assert [(row.points, row.outcome) for row in made.rows] == [
        (1, "scored"),
        (0, "scored"),
        (1, "scored"),
        (1, "scored"),
    ]
    lines = [json.loads(line) for line in made.responses.splitlines()]
    assert [len(line["executions"]) for line in lines] == [1, 0, 1, 1]
    assert lines[0]["executions"].popitem()[1] == DONE.to_json()
    assert len(verify.ran) == 3


def test_the_server_is_asked_on_while_the_verifier_takes_its_time(tmp_path):
    server = Server(codes)
    asked = []

    async def waits(_: Execution) -> Result:
        while len(server.bodies) < 100:
            await asyncio.sleep(0.001)
        asked.append(len(server.bodies))
        return DONE

    ask(server, pack_of(EXECUTES, 100), tmp_path / "journal", run=waits)
    assert set(asked) == {100}


def test_what_was_executed_is_not_executed_again_in_the_same_run(tmp_path):
    """A reference solution is asked for with every answer to its item."""
    verify = Verifier()
    rows = ask(Server(lambda _: says(RIGHT)), pack_of(EXECUTES, 9), tmp_path / "journal", run=verify).rows
    assert [row.points for row in rows] == [1] * 9
    assert verify.ran == [RIGHT]
    slow = Verifier(slow="def")
    rows = ask(Server(lambda _: says(RIGHT)), pack_of(EXECUTES, 3), tmp_path / "other", run=slow).rows
    assert [row.outcome for row in rows] == ["verifier_timeout"] * 3
    assert slow.ran == [RIGHT] * 6, "what ran out of time is never taken for executed"


@pytest.mark.parametrize(("always", "outcome"), [(True, "verifier_timeout"), (False, "scored")])
def test_what_ran_out_of_time_is_run_once_more_alone_after_everything_else(tmp_path, always, outcome):
    verify = Verifier(slow="# 2", always=always)
    made = ask(Server(codes), pack_of(EXECUTES, 9), tmp_path / "journal", run=verify)
    assert made.rows[2].outcome == outcome
    assert made.rows[2].points == (0 if always else 1)
    assert verify.ran.count(f"{RIGHT}  # 2") == 2
    assert verify.ran[-1] == f"{RIGHT}  # 2"
    assert verify.at_once[-1] == 1
    assert sum(row.points for row in made.rows) == 7 + (not always)


def test_alone_means_that_no_other_pack_is_at_work_either(tmp_path):
    verify = Verifier(slow="# 2")
    made = ask_together(Server(codes), [(pack_of(EXECUTES, 3), verify), (pack_of(EXECUTES, 20), verify)], tmp_path)
    assert [each.rows[2].outcome for each in made] == ["verifier_timeout"] * 2
    assert [sum(row.points for row in each.rows) for each in made] == [1, 18]
    again = [code == f"{RIGHT}  # 2" for code in verify.ran]
    assert again.count(True) == 4
    assert again[-2:] == [True, True], "after everything else"
    assert verify.at_once[-2:] == [1, 1], "and one after the other"


def test_without_a_verifier_items_are_missing_and_never_zero_and_only_they_are_made_up_for(tmp_path, capsys):
    smooth = ask(Server(codes), pack_of(EXECUTES, 9), tmp_path / "smooth", run=Verifier())
    broken = ask(Server(codes), pack_of(EXECUTES, 9), tmp_path / "journal", run=Verifier(down=True))
    assert [row.outcome for row in broken.rows] == ["infra", "scored", *["infra"] * 7], "the second has no code"
    assert "the verifier cannot be had, so items are missing: nobody there" in capsys.readouterr().err
    server = Server(codes)
    assert ask(server, pack_of(EXECUTES, 9), tmp_path / "journal", run=Verifier()) == smooth
    assert server.bodies == [], "the model is not asked again"


def test_a_verifier_that_comes_back_is_enough(tmp_path):
    verify = Verifier(down=True)

    async def back_later(execution: Execution) -> Result:
        verify.down = len(server.bodies) < 9
        return await verify(execution)

    server = Server(codes)
    rows = ask(server, pack_of(EXECUTES, 9), tmp_path / "journal", run=back_later).rows
    assert sum(row.points for row in rows) == 8


def test_a_run_that_was_killed_between_the_answer_and_its_code_only_runs_the_code(tmp_path):
    pack = pack_of(EXECUTES, 9)
    smooth = ask(Server(codes), pack, tmp_path / "journal", run=Verifier())
    lines = (tmp_path / "journal").read_text().splitlines()
    before = [line for line in lines if json.loads(line)["executions"] == {}]
    assert len(before) == 9
    (tmp_path / "journal").write_text("".join(f"{line}\n" for line in before[:6]) + before[6][:-3])
    server, verify, seen = Server(codes), Verifier(), Seen()
    assert ask(server, pack, tmp_path / "journal", run=verify, seen=seen) == smooth
    assert len(server.bodies) == 3
    assert len(verify.ran) == 8
    assert seen.done == 9


def test_answers_of_another_run_in_the_journal_count_for_nothing(tmp_path):
    pack = pack_of(EXECUTES, 4)
    ask(Server(codes), pack_of(EXECUTES, 9), tmp_path / "journal", run=Verifier(), repeats=2, temperature=1)
    made = ask(Server(codes), pack, tmp_path / "journal", run=Verifier())
    assert made == ask(Server(codes), pack, tmp_path / "fresh", run=Verifier())


PROGRAMS = [
    "def double(x): return x + x",
    "def double(x): return x ** 2",
    "double = 3",
    "import os; os._exit(0)",
    "import time; time.sleep(1)\ndef double(x): return 2 * x",
    "def double(x): return x * 2",
]


def in_the_real_verifier(journal: Path, during: Any = None) -> scoring.Results:
    """The programs as answers, run by a verifier of our own."""

    async def asked() -> scoring.Results:
        pack = pack_of(EXECUTES, len(PROGRAMS))
        server = Server(lambda body: says(PROGRAMS[int(body["messages"][0]["content"])]))
        async with verifier(settings_of({}, unsafe_local=True)) as run, serving.connected(server) as client:
            beside = asyncio.create_task(during()) if during else None
            with Journal(journal) as opened:
                await runner.ask(client, pack, Evaluate(packs=["any"]), opened, Seen(), check=lambda: None, run=run)
            if beside is not None:
                await beside
            return scoring.results(pack, 1, opened.answers)

    return asyncio.run(asked())


def test_real_code_in_the_real_verifier_scores_alike_whether_or_not_the_verifier_is_killed_meanwhile(tmp_path):
    undisturbed = in_the_real_verifier(tmp_path / "undisturbed")
    assert [(row.points, row.outcome) for row in undisturbed.rows] == [(each, "scored") for each in (1, 0, 0, 0, 1, 1)]
    killed = []

    async def kill() -> None:
        await asyncio.sleep(0.5)
        for process in _verifiers():
            os.kill(process, signal.SIGKILL)
            killed.append(process)

    assert in_the_real_verifier(tmp_path / "disturbed", kill) == undisturbed
    assert killed
    assert _verifiers() == [], "nothing is left behind"


def _verifiers() -> list[int]:
    """The verifiers that this process started and that live."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
            command = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == os.getpid() and b"stages.verifier" in command:
            found.append(int(entry.name))
    return found
