"""Scoring kept answers again: what a changed grader changes, and when it cannot be done."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from gates import canonical
from gates.errors import IntegrityError, UsageError
from gates.evidence import check, incomparable, totals
from gates.records import Conditions, Evidence
from registry import retractions
from registry.recipes import Evaluate
from registry.store import Store
from stages.common import execution
from stages.common.execution import Execution, records
from stages.common.grading import Grader
from stages.common.grading.items import Grade, Item
from stages.evaluate import __main__ as stage
from stages.evaluate.packs import Pack
from stages.evaluate.rescoring import rescore
from tests.support import stores
from tests.support.scripted import EXECUTES, RIGHT, TALKS, Server, Verifier, ask, codes, pack_of, says

LENIENT = SimpleNamespace(**vars(TALKS) | {"VERSION": 2, "grade": lambda *_: Grade(1.0)})


@pytest.fixture
def store(tmp_path):
    made = Store.init(tmp_path / "models")
    stores.add(made, "tiny", tmp_path)
    return made


@pytest.fixture
def take(store, tmp_path):
    """Takes evidence on a pack, as the stage does."""

    def taken(pack: Pack, server: Server, **more: Any) -> str:
        made = ask(server, pack, tmp_path / f"journal-{pack.grader.digest}", **more)
        evidence = Evidence(
            format=1,
            candidate=store.candidate("tiny").digest,
            pack=pack.name,
            repeats=1,
            conditions=Conditions(pack=pack.digest, grader=pack.grader.digest, dataset=pack.dataset, thinking="on"),
            totals=totals(made.rows),
            rows=canonical.digest(made.rows_bytes),
            responses=canonical.digest(made.responses),
            recorded={"concurrency": 32},
        )
        return store.add_evidence(evidence, rows=made.rows_bytes, responses=made.responses, timings={})

    return taken


@asynccontextmanager
async def nobody() -> Any:
    pytest.fail("the verifier is had, but there is nothing to run")
    yield


def again(store: Store, pack: Pack, verifier: Any = nobody) -> list[str]:
    return asyncio.run(rescore(store, store.candidate("tiny"), pack, verifier))


def half(body: dict[str, Any]) -> dict[str, Any]:
    return says("3" if int(body["messages"][0]["content"]) % 2 else "4")


def graded_by(module: Any, pack: Pack) -> Pack:
    return replace(pack, grader=Grader(pack.grader.name, module))


def test_a_changed_grader_makes_new_evidence_of_the_kept_answers_and_says_what_changed(store, take):
    pack = pack_of(TALKS, 10)
    before = take(pack, Server(half))
    (line,) = again(store, graded_by(LENIENT, pack))
    found = store.evidence(store.candidate("tiny").digest)
    (after,) = found.keys() - {before}
    assert line.startswith("tiny  scripted  50.0 -> 100.0  (5 of 10 items changed: item-00, item-02, ")
    assert line.endswith(f"evidence {before[:12]} -> {after[:12]})")
    old, new = found[before], found[after]
    assert check(new, store.read(new.rows)).complaints == ()
    assert new.responses == old.responses
    assert (new.totals.overall.points, new.totals.overall.of) == (10, 10)
    assert incomparable(old.conditions, new.conditions, totals_alone=True) == ["grader"]
    assert new.recorded == {"concurrency": 32, "rescored": before}


def test_scoring_again_by_the_same_grader_changes_nothing_and_twice_is_once(store, take):
    pack = pack_of(TALKS, 4)
    before = take(pack, Server(half))
    (line,) = again(store, pack)
    assert line == f"tiny  scripted  50.0  (evidence {before[:12]} is by this grader already)"
    first = again(store, graded_by(LENIENT, pack))
    assert len(store.evidence(store.candidate("tiny").digest)) == 2
    second = again(store, graded_by(LENIENT, pack))
    assert first[0] in second
    assert len(store.evidence(store.candidate("tiny").digest)) == 2


def test_scored_again_and_back_again_is_the_same_rows(store, take):
    pack = pack_of(TALKS, 4)
    before = take(pack, Server(half))
    again(store, graded_by(LENIENT, pack))
    stricter = graded_by(SimpleNamespace(**vars(TALKS) | {"VERSION": 3}), pack)
    again(store, stricter)
    found = store.evidence(store.candidate("tiny").digest)
    rows = {each.rows for each in found.values() if each.conditions.grader == stricter.grader.digest}
    assert rows == {found[before].rows}


@pytest.mark.parametrize(
    ("changed", "why"), [({"dataset": "2" * 64}, "the items have changed"), ({"digest": "2" * 64}, "limits")]
)
def test_answers_to_another_version_of_the_pack_are_refused(store, take, capsys, changed, why):
    pack = pack_of(TALKS, 4)
    before = take(pack, Server(half))
    with pytest.raises(UsageError, match=why):
        again(store, replace(graded_by(LENIENT, pack), **changed))
    assert list(store.evidence(store.candidate("tiny").digest)) == [before]
    assert why in capsys.readouterr().err


def test_without_kept_answers_there_is_nothing_to_score(store, take):
    pack = pack_of(TALKS, 4)
    with pytest.raises(UsageError, match="no kept answers"):
        again(store, pack)
    before = take(pack, Server(half))
    retractions.retract(store, before, "taken on a broken machine")
    with pytest.raises(UsageError, match="no kept answers"):
        again(store, graded_by(LENIENT, pack))


def test_only_code_that_was_not_run_before_is_run(store, take):
    pack, verify = pack_of(EXECUTES, 5), Verifier()
    take(pack, Server(codes), run=verify)
    kinder = SimpleNamespace(**vars(EXECUTES) | {"VERSION": 2})
    (line,) = again(store, graded_by(kinder, pack))
    assert "80.0 -> 80.0  (no item changed; " in line

    def other_code(item: Item, answers: Any) -> Any:
        more = Execution("python", f"{RIGHT}  # other", "double", ((2,), (3,)))
        return (more,) if item.id == "item-00" else EXECUTES.executions(item, answers)

    verify.ran.clear()

    @asynccontextmanager
    async def verifier() -> Any:
        yield verify

    changed = SimpleNamespace(**vars(EXECUTES) | {"VERSION": 3, "executions": other_code})
    again(store, graded_by(changed, pack), verifier)
    assert set(verify.ran) == {f"{RIGHT}  # other"}, "for each evidence that is scored again"


def test_a_pack_without_kept_answers_keeps_no_other_from_being_scored_again(store, take, tmp_path, monkeypatch, capsys):
    asked = replace(pack_of(TALKS, 4), name="asked")
    take(asked, Server(half))
    packs = {"never": replace(asked, name="never"), "asked": graded_by(LENIENT, asked)}
    monkeypatch.setattr(stage, "read_pack", lambda _project, name, _store: packs[name])
    job: Any = SimpleNamespace(
        store=store, project=tmp_path, source=store.candidate("tiny"), settings=Evaluate(packs=list(packs))
    )
    with pytest.raises(UsageError, match="no kept answers that could be scored again on never"):
        stage.rescore(job)
    assert "asked  50.0 -> 100.0" in capsys.readouterr().out


def test_what_another_version_of_the_verifier_came_to_is_not_taken_for_a_result_of_this_one(store, take, monkeypatch):
    pack = pack_of(EXECUTES, 5)
    take(pack, Server(lambda _: says(RIGHT)), run=Verifier(slow="def"))  # it was too slow then
    monkeypatch.setattr(records, "REVISION", "f" * 64)
    monkeypatch.setattr(execution, "REVISION", "f" * 64)
    verify = Verifier()

    @asynccontextmanager
    async def verifier() -> Any:
        yield verify

    (line,) = again(store, pack, verifier)
    assert "0.0 -> 100.0" in line
    assert verify.ran == [RIGHT]


def test_items_that_were_missing_for_want_of_a_verifier_are_made_up_for(store, take, capsys):
    pack = pack_of(EXECUTES, 5)
    take(pack, Server(codes), run=Verifier(down=True))
    assert "missing" in capsys.readouterr().err

    @asynccontextmanager
    async def verifier() -> Any:
        yield Verifier()

    (line,) = again(store, graded_by(SimpleNamespace(**vars(EXECUTES) | {"VERSION": 2}), pack), verifier)
    assert "0.0 -> 80.0" in line


def test_damaged_answers_are_said_to_be_damaged(store, take):
    pack = pack_of(TALKS, 2)
    digest = take(pack, Server(half))
    evidence = store.evidence(store.candidate("tiny").digest)[digest]
    for broken in (b"{}\n", b"3\n", b'{"item":"item-00","repeat":0,"response":{}}\n', b"\xff\n"):
        other = evidence.model_copy(update={"responses": canonical.digest(broken)})
        made = store.add_evidence(other, rows=store.read(evidence.rows), responses=broken, timings={})
        retractions.retract(store, digest, "to look at the other alone")
        with pytest.raises(IntegrityError, match="line 1 of the kept responses"):
            again(store, graded_by(LENIENT, pack))
        digest = made
