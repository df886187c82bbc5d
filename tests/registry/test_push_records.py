"""Records that travel with a model: what is whole is taken in as it is, what is damaged or forged is refused."""

from __future__ import annotations

import contextlib
import copy
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gates import canonical
from gates.errors import IntegrityError, SluiceError, UsageError
from gates.records import Evidence, Verdict
from registry import judging, retractions, waivers
from registry.carried import records
from registry.store import Store
from tests.support import faults, invariants, scores, stores

Values = dict[str, Any]


@pytest.fixture
def store(memory_path) -> Store:
    """v7b, pruned from base on the mix broad, judged against base; and base judged by itself."""
    return stores.judged(memory_path)[0]


@pytest.fixture
def folder(store, memory_path) -> Path:
    """v7b with its records, as it lies where it was sent."""
    return write(store, "v7b", memory_path / "sent")


@pytest.fixture
def fresh(memory_path) -> Store:
    return Store.init(memory_path / "fresh")


def write(store: Store, name: str, folder: Path) -> Path:
    candidate = store.candidate(name)
    carried = records.gather(store, candidate)
    files = {file: each.digest for file, each in candidate.manifest.files.items()} | carried.files()
    for file, digest in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(store.layout.blob(digest), folder / file)
        (folder / file).chmod(0o644)
    (folder / records.FILE).write_bytes(carried.to_bytes())
    return folder


def parsed(folder: Path) -> Values:
    return json.loads((folder / records.FILE).read_bytes())


def refused(fresh: Store, folder: Path, *words: str) -> None:
    before = sorted(path for path in fresh.layout.root.rglob("*") if path.is_file())
    with pytest.raises(IntegrityError) as caught:
        fresh.add("v7b", folder)
    assert caught.value.exit_code == 5
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not fresh.names()
    after = [path for path in fresh.layout.root.rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert sorted(after) == [path for path in before if path.suffix != ".lock"], "nothing is half taken"


def rewritten(folder: Path, change: Callable[[Values], None]) -> None:
    value = parsed(folder)
    change(value)
    (folder / records.FILE).write_bytes(canonical.dumps(value))


def put(values: Values, kind: str, old: str, record: Values) -> str:
    """Replaces a record and everything that names it, as a careful forger would."""
    text = canonical.dumps(record)
    new = canonical.digest(text)
    del values[kind][old]
    values[kind][new] = record
    changed = json.loads(canonical.dumps(values).decode().replace(old, new))
    values.clear()
    values.update(changed)
    return new


# ── what is whole ──


def test_a_folder_with_records_is_taken_in_with_its_manifest_lineage_evidence_and_verdict(store, folder, fresh):
    here, there = store.candidate("v7b"), fresh.add("copy", folder)
    assert there.digest == here.digest
    assert records.gather(fresh, there) == records.gather(store, here)
    policy = next(iter(store.verdicts(here.digest).values())).policy
    verdict = judging.fresh(fresh, there, policy)
    assert verdict is not None
    assert verdict.verdict == "Pass"
    invariants.check(fresh.layout.root)


def test_taking_it_in_again_changes_nothing(folder, fresh):
    fresh.add("v7b", folder)
    entries = list(fresh.log.entries())
    fresh.add("v7b", folder)
    assert list(fresh.log.entries()) == entries
    invariants.check(fresh.layout.root)


def test_it_can_be_moved_in(folder, fresh, store):
    digest = fresh.add("v7b", folder, move=True).digest
    assert digest == store.candidate("v7b").digest
    assert not (folder / "model.safetensors").exists()
    invariants.check(fresh.layout.root)


def test_what_lies_beside_the_model_and_is_not_named_stays_where_it_is(folder, fresh, store):
    (folder / "README.md").write_text("# A card\n")
    (folder / "added.json").write_text("{}")
    assert fresh.add("v7b", folder).digest == store.candidate("v7b").digest
    assert (folder / "added.json").exists()


def test_reading_and_writing_records_gives_the_same_bytes(store):
    data = records.gather(store, store.candidate("v7b")).to_bytes()
    assert records.parse(data, where="x").to_bytes() == data


def test_a_waiver_that_let_a_gate_pass_travels_with_the_verdict(store, fresh, memory_path):
    path = memory_path / "waiver.yaml"
    path.write_text(
        "name: waiver\ninconclusive: {means: waiver}\ngates:\n  - name: Toolcall\n    rules:\n"
        "      - paired: {pack: toolcall, margin: 5}\n"
    )
    policy = judging.read_policy(path)
    candidate = store.candidate("v7b")
    assert judging.judge(store, "v7b", policy=policy, baseline="base").verdict == "Inconclusive"
    waivers.waive(store, candidate, policy, gate="Toolcall", reason="seen by eye", until="2999-12-31")
    assert judging.judge(store, "v7b", policy=policy, baseline="base").verdict == "Pass"
    there = fresh.add("v7b", write(store, "v7b", memory_path / "sent"))
    verdict = judging.fresh(fresh, there, policy.identity())
    assert verdict is not None
    assert verdict.verdict == "Pass"
    assert waivers.of(fresh, there.digest) == waivers.of(store, candidate.digest)


def test_what_a_candidate_failed_travels_too(store, fresh, memory_path):
    """A Pass against one baseline does not hide a failure against another."""
    path = memory_path / "drop.yaml"
    rule = "      - drop: {pack: toolcall, at_most: 5}\n"
    path.write_text(f"name: drop\ngates:\n  - name: Toolcall\n    rules:\n{rule}")
    policy = judging.read_policy(path)
    stores.add(store, "other", memory_path, seed=3)
    stores.observe(store, "other", right=10)
    assert judging.judge(store, "v7b", policy=policy, baseline="base").verdict == "Pass"
    assert judging.judge(store, "v7b", policy=policy, baseline="other").verdict == "FailToolcall"
    there = fresh.add("v7b", write(store, "v7b", memory_path / "sent"))
    verdict = judging.fresh(fresh, there, policy.identity())
    assert verdict is not None
    assert verdict.verdict == "FailToolcall"


def test_nobody_adds_to_the_evidence_of_a_candidate_that_one_has_oneself(store, fresh, memory_path):
    """The baseline's evidence decides about one's own candidates: it is not taken from somebody else."""
    base = fresh.add("mine", memory_path / "base-0")
    assert base.digest == store.candidate("base").digest
    mine = stores.observe(fresh, "mine", right=3)
    there = fresh.add("v7b", write(store, "v7b", memory_path / "sent"))
    assert list(fresh.evidence(base.digest)) == [mine]
    policy = next(iter(store.verdicts(there.digest).values())).policy
    assert judging.fresh(fresh, there, policy) is None, "it was judged against other scores of its baseline"


@pytest.mark.parametrize("first", ["made here", "taken in from elsewhere"])
def test_what_one_knows_of_a_model_oneself_no_stranger_adds_to_takes_back_or_waives(store, memory_path, fresh, first):
    """The stranger is `fresh`, to whom the same model came with all that was known of it."""
    digest = store.candidate("v7b").digest
    policy, path = judging.read_policy(memory_path / "strict.yaml"), memory_path / "lenient.yaml"
    rules = "[{paired: {pack: toolcall, margin: 5}}]"
    path.write_text(f"name: lenient\ninconclusive: {{means: waiver}}\ngates:\n  - {{name: Toolcall, rules: {rules}}}\n")
    mine, name = store, "v7b"
    if first != "made here":
        mine, name = Store.init(memory_path / "mine"), "theirs"
        mine.add(name, write(store, "v7b", memory_path / "from-somebody"))
    failing = stores.observe(mine, name, right=0)
    assert judging.judge(mine, name, policy=policy, baseline=None).verdict == "FailToolcall"
    known = mine.evidence(digest)
    fresh.add("v7b", write(mine, name, memory_path / "sent"))
    for each in list(fresh.evidence(digest)):
        retractions.retract(fresh, each, "they say so")
    stores.observe(fresh, "v7b", right=1000, of=1000)
    lenient = judging.read_policy(path)
    waivers.waive(fresh, fresh.candidate("v7b"), lenient, gate="Toolcall", reason="they say so", until="2999-12-31")
    assert judging.judge(fresh, "v7b", policy=policy, baseline=None).verdict == "Pass"
    theirs = write(fresh, "v7b", memory_path / "stranger")
    for _ in range(2):
        for each in ("again", name):
            assert mine.add(each, theirs).digest == digest
        assert mine.evidence(digest) == known
        assert failing in retractions.standing(mine, digest)
        assert not waivers.of(mine, digest)
        verdict = judging.fresh(mine, mine.candidate(name), policy.identity())
        assert verdict is not None
        assert verdict.verdict == "FailToolcall"
    invariants.check(mine.layout.root)


def test_what_its_sender_learns_later_is_taken_in_with_it_again(store, fresh, memory_path):
    folder = write(store, "v7b", memory_path / "sent")
    digest = fresh.add("v7b", folder).digest
    wrong = stores.observe(store, "v7b", right=1)
    retractions.retract(store, wrong, "the server was broken")
    write(store, "v7b", folder)
    fresh.add("v7b", folder)
    assert fresh.evidence(digest) == store.evidence(digest)
    assert retractions.retracted(fresh, digest) == retractions.retracted(store, digest)


def test_a_name_that_is_another_candidates_is_refused_before_anything_is_copied(folder, fresh, memory_path):
    stores.add(fresh, "v7b", memory_path, seed=9)
    with pytest.raises(UsageError, match="made from something else"):
        fresh.add("v7b", folder)
    assert fresh.add("v7b", folder, replace=True).manifest.inputs.op == "prune"
    invariants.check(fresh.layout.root)


def test_records_of_a_newer_format_are_said_to_be_so(folder, fresh):
    rewritten(folder, lambda value: value.update(format=2))
    with pytest.raises(UsageError, match="format 2"):
        fresh.add("v7b", folder)


# ── what is damaged or forged ──


def test_another_model_under_the_same_records_is_refused(folder, fresh, memory_path):
    other = stores.checkpoint(memory_path / "other", seed=4)
    shutil.copy(other / "model.safetensors", folder / "model.safetensors")
    refused(fresh, folder, "model.safetensors", "not the one that the model's records state")


@pytest.mark.parametrize("file", ["tokenizer.json", "config.json", "model.safetensors"])
def test_a_file_of_the_model_that_is_missing_or_changed_is_named(folder, fresh, file):
    data = (folder / file).read_bytes()
    (folder / file).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    refused(fresh, folder, file)
    (folder / file).unlink()
    if file != "config.json":
        refused(fresh, folder, file)


def test_a_blob_that_is_missing_or_changed_is_refused(folder, fresh):
    for path in sorted((folder / records.FOLDER / "blobs").iterdir()):
        data = path.read_bytes()
        path.write_bytes(data + b"\n")
        refused(fresh, folder, path.name[:12])
        path.unlink()
        refused(fresh, folder, path.name)
        path.write_bytes(data)
    fresh.add("v7b", folder)


def test_records_without_their_file_are_refused(folder, fresh):
    (folder / records.FILE).unlink()
    refused(fresh, folder, "are missing")


def test_a_verdict_that_was_made_better_is_refused(folder, fresh, store, memory_path):
    stores.observe(store, "v7b", right=0)
    policy = judging.policy_of(store, memory_path / "strict.yaml", channel="best")
    assert judging.judge(store, "v7b", policy=policy, baseline="base").verdict == "FailToolcall"
    folder = write(store, "v7b", memory_path / "failed")

    def forge(value: Values) -> None:
        old, failed = next((key, each) for key, each in value["verdicts"].items() if each["verdict"] != "Pass")
        put(value, "verdicts", old, failed | {"verdict": "Pass"})

    rewritten(folder, forge)
    refused(fresh, folder, "does not follow from its evidence")


def test_a_pass_under_a_policy_that_demands_less_is_another_policys(folder, fresh):
    def forge(value: Values) -> None:
        old, policy = next(iter(value["policies"].items()))
        policy = json.loads(canonical.dumps(policy).decode().replace("50", "10"))
        new = put(value, "policies", old, policy)
        (key, verdict) = next(iter(value["verdicts"].items()))
        put(value, "verdicts", key, verdict | {"policy": new})

    rewritten(folder, forge)
    refused(fresh, folder, "does not follow")


def test_evidence_whose_totals_are_not_its_rows_is_refused(folder, fresh, store):
    digest = store.candidate("v7b").digest

    def forge(value: Values) -> None:
        key, each = next((key, each) for key, each in value["evidence"].items() if each["candidate"] == digest)
        each = copy.deepcopy(each)
        each["totals"]["overall"]["points"] = 10
        each["totals"]["categories"]["all"]["points"] = 10
        put(value, "evidence", key, each)
        key, verdict = next(iter(value["verdicts"].items()))
        put(value, "verdicts", key, verdict)

    rewritten(folder, forge)
    refused(fresh, folder, "does not follow")


def test_evidence_that_was_left_out_is_missed(folder, fresh):
    rewritten(folder, lambda value: value["evidence"].pop(next(iter(value["evidence"]))))
    refused(fresh, folder, "cannot be trusted")


def test_a_lineage_that_was_cut_or_grew_is_refused(folder, fresh, store, memory_path):
    parent = store.candidate("v7b").manifest.inputs.parent
    assert parent is not None
    value = parsed(folder)
    rewritten(folder, lambda value: value["manifests"].pop(parent))
    refused(fresh, folder, "manifest")
    stranger = stores.add(store, "stranger", memory_path, seed=8)
    value["manifests"][stranger.digest] = json.loads(stranger.manifest.to_bytes())
    (folder / records.FILE).write_bytes(canonical.dumps(value))
    refused(fresh, folder, "nothing leads to the manifest")


def test_evidence_about_somebody_elses_candidate_is_refused(folder, fresh):
    rows = scores.right(0, 10)
    evidence = scores.header(rows, pack="toolcall", candidate="a" * 64).model_copy(update={"responses": None})
    rewritten(folder, lambda value: value["evidence"].update({evidence.identity(): json.loads(evidence.to_bytes())}))
    refused(fresh, folder, "no verdict names")


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"[]", b"null", b'{"format":1}', b"\xff\xfe", b'{"format":"1"}', b"[" * 9999]
)
def test_what_is_no_record_is_refused(folder, fresh, data):
    (folder / records.FILE).write_bytes(data)
    refused(fresh, folder)


def test_names_that_leave_the_folder_are_refused(folder, fresh, memory_path):
    outside = memory_path / "secret.json"
    outside.write_text("{}")

    def forge(value: Values) -> None:
        digest = value["manifest"]
        manifest = copy.deepcopy(value["manifests"][digest])
        manifest["files"]["../secret.json"] = {"digest": canonical.digest(b"{}"), "size": 2}
        put(value, "manifests", digest, manifest)

    rewritten(folder, forge)
    with pytest.raises(SluiceError, match="cannot"):
        fresh.add("v7b", folder)
    assert not fresh.names()


def test_a_link_in_the_records_that_leads_elsewhere_is_refused(folder, fresh, memory_path):
    blob = next((folder / records.FOLDER / "blobs").iterdir())
    target = memory_path / "elsewhere"
    blob.rename(target)
    blob.symlink_to(target)
    with pytest.raises(UsageError, match="leaves the source folder"):
        fresh.add("v7b", folder)
    assert not fresh.names()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
def test_no_change_of_a_single_byte_is_taken(store, data):
    whole = records.gather(store, store.candidate("v7b")).to_bytes()
    at = data.draw(st.integers(0, len(whole) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != whole[at]))
    try:
        found = records.parse(whole[:at] + bytes([byte]) + whole[at + 1 :], where="x")
    except SluiceError:
        return
    # the order of verdicts and the sizes of blobs stand under no digest; the latter are held against the blobs
    assert found.manifests == records.parse(whole, where="x").manifests
    assert {**found.blobs} != records.parse(whole, where="x").blobs


def test_every_record_is_known_again(store):
    carried = records.gather(store, store.candidate("v7b"))
    assert {type(each) for each in carried.evidence.values()} == {Evidence}
    assert {type(each) for each in carried.verdicts.values()} == {Verdict}
    assert not retractions.retracted(store, carried.manifest)
    assert carried.blobs.keys() == set(carried.files().values())


@pytest.mark.parametrize("error", [errno.EIO, errno.ENOSPC])
def test_whatever_fails_while_it_is_taken_in_it_is_there_whole_or_not_and_running_it_again_finishes(
    folder, memory_path, error
):
    counting = faults.Counting()
    with faults.around(counting):
        Store.init(memory_path / "counted").add("v7b", folder)
    failed = 0
    for number in range(1, len(counting.names) + 1, 8):
        store = Store.init(memory_path / f"{number}")
        failing = faults.Failing(number, error, for_good=False)
        with faults.around(failing), contextlib.suppress(OSError, SluiceError):
            store.add("v7b", folder)
        failed += failing.failed
        faults.injected += failing.failed
        invariants.check(store.layout.root)
        digest = store.add("v7b", folder).digest
        assert records.gather(store, store.candidate("v7b")).verdicts
        assert store.candidate("v7b").digest == digest
        invariants.check(store.layout.root)
        shutil.rmtree(store.layout.root)
    assert failed > 10
