"""`verify` names what is wrong with a candidate: the file, the tensor, and what should be there."""

from __future__ import annotations

import json
import shutil
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from gates.errors import UsageError
from registry import removal
from registry import verify as verifying
from registry.checkpoint.values import all_positive, holds_no_number
from registry.cli import app
from registry.manifests import Inputs
from registry.store import Store
from registry.tensors import DTYPES, read_header
from registry.verify import Problem, verify, verify_records
from tests.support import stores, users
from tests.support.fp8 import fp8_checkpoint, write_fp8_checkpoint
from tests.support.tiny import write_checkpoint, write_json, write_weights

SHARD = "model-00002-of-00002.safetensors"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    root = tmp_path_factory.mktemp("made")
    Store.init(root / "models").add("toy", write_checkpoint(root / "source", shards=2))
    return root / "models"


@pytest.fixture
def store(made, tmp_path):
    return copied(made, tmp_path / "models")


def copied(made: Path, root: Path) -> Store:
    """The registry again, to be damaged: links are relative, so that a copy is as good."""
    return Store.open(shutil.copytree(made, root, symlinks=True))


def blob(store: Store, file: str, name: str = "toy") -> Path:
    """The blob of a candidate's file, made writable so that it can be damaged."""
    path = (store.layout.model(name) / file).resolve()
    path.chmod(0o644)
    return path


def link(store: Store, file: str, target: str) -> None:
    path = store.layout.model("toy") / file
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def found(store: Store, *, full: bool = False, name: str = "toy") -> str:
    problems = verify(store, name, full=full)
    assert problems
    return "\n".join(map(str, problems))


@pytest.mark.parametrize("full", [False, True])
def test_a_sound_candidate_has_no_problems(store, tmp_path, full):
    store.add("fp8", write_fp8_checkpoint(tmp_path / "fp8", shards=2))
    assert verify(store, "toy", full=full) == []
    assert verify(store, "fp8", full=full) == []


def test_a_name_that_nothing_has_is_a_usage_error(store):
    with pytest.raises(UsageError, match="tow") as refused:
        verify(store, "tow", full=False)
    assert "toy" in str(refused.value.remedy)


def test_a_channel_is_verified_as_what_it_serves(store):
    store.layout.channel("best").symlink_to("../candidates/toy/model")
    assert verify(store, "best", full=True) == []
    blob(store, SHARD).unlink()
    assert f"candidates/toy/model/{SHARD}" in found(store, name="best")


def test_a_channel_that_leads_nowhere_is_found(store):
    store.layout.channel("best").symlink_to("../candidates/gone/model")
    assert "channels/best: the channel leads to gone, which is not there" in found(store, name="best")
    store.layout.channel("odd").symlink_to("/etc")
    assert "channels/odd: the channel leads to /etc" in found(store, name="odd")


# ── bytes ──


@pytest.mark.parametrize("file", [SHARD, "config.json", "tokenizer.json", "chat_template.jinja"])
def test_one_flipped_bit_anywhere_is_found(store, file):
    path = blob(store, file)
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    what = found(store, full=True)
    assert f"candidates/toy/model/{file}: its bytes have the digest" in what


def test_a_truncated_shard_is_found_without_reading_it_all_and_its_tensor_named(store):
    path = blob(store, SHARD)
    last = list(read_header(path))[-1]
    path.write_bytes(path.read_bytes()[:-1])
    what = found(store)
    assert f"{SHARD}: tensor {last}: the file is truncated" in what
    assert f"{SHARD}: {path.stat().st_size} bytes (expected: {path.stat().st_size + 1} bytes)" in what


def test_a_missing_blob_is_found(store):
    blob(store, SHARD).unlink()
    what = found(store, full=True)
    assert f"candidates/toy/model/{SHARD}: its blob blobs/sha256/" in what
    assert "is missing" in what


def test_a_blob_that_is_a_link_is_found(store, tmp_path):
    path = blob(store, SHARD)
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert "no regular file" in found(store)


# ── links and manifest ──


def test_files_that_the_manifest_does_not_name_are_found(store):
    (store.layout.model("toy") / "notes.txt").write_text("x")
    deep = store.layout.model("toy") / "deep"
    deep.mkdir()
    (deep / "link").symlink_to("/etc")
    what = found(store)
    assert "model/notes.txt: the manifest does not name this file" in what
    assert "model/deep/link: the manifest does not name this file" in what


def test_a_missing_link_is_found(store):
    (store.layout.model("toy") / "tokenizer.json").unlink()
    assert "model/tokenizer.json: it is missing (expected: a link to blobs/sha256/" in found(store)


def test_a_file_in_place_of_a_link_is_found(store):
    path = store.layout.model("toy") / "tokenizer.json"
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)
    assert "model/tokenizer.json: it is no link" in found(store)


def test_a_link_to_another_blob_is_found(store):
    other = (store.layout.model("toy") / "config.json").readlink()
    link(store, "tokenizer.json", str(other))
    assert f"model/tokenizer.json: the link leads to {other}" in found(store)


def test_a_link_that_leaves_the_registry_is_found_though_it_holds_the_same_bytes(store, tmp_path):
    copy = tmp_path / "copy"
    shutil.copy((store.layout.model("toy") / SHARD).resolve(), copy)
    link(store, SHARD, str(copy))
    assert f"model/{SHARD}: the link leads to {copy}" in found(store)


def test_a_changed_manifest_is_found(store):
    path = store.layout.manifest(store.candidate("toy").digest)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes().replace(b'"experts":4', b'"experts":5'))
    what = found(store)
    assert f"manifests/{path.name}: the manifest is not what its name says" in what
    assert "experts=4" in what
    path.write_bytes(b"{}")
    assert f"manifests/{path.name}: this is no Manifest" in found(store)
    path.unlink()
    assert f"manifests/{path.name}: the manifest cannot be read" in found(store)


@pytest.mark.parametrize("target", [None, "../../manifests/x", "/etc/passwd", "../../manifests/../format.json"])
def test_a_candidate_without_a_right_link_to_its_manifest_is_found(store, target):
    path = store.layout.candidate("toy") / "manifest"
    path.unlink()
    if target:
        path.symlink_to(target)
    assert "candidates/toy/manifest: " in found(store, full=True)


def test_a_candidate_without_a_model_is_found(store):
    shutil.rmtree(store.layout.model("toy"))
    what = found(store, full=True)
    assert "config.json cannot be read" in what
    assert f"model/{SHARD}: it is missing" in what


def test_attachments_are_verified_too(store, tmp_path):
    toy = store.candidate("toy").manifest
    (tmp_path / "attachments").mkdir()
    (tmp_path / "attachments" / "scores.json").write_text("[1, 2]")
    inputs = toy.inputs.model_copy(update={"code": "another"})
    model = shutil.copytree(store.layout.model("toy"), store.layout.staging / "model")
    store.commit(
        "with", inputs, model, attachments=shutil.move(tmp_path / "attachments", store.layout.staging / "extra")
    )
    assert verify(store, "with", full=True) == []
    path = store.layout.candidate("with") / "attachments" / "scores.json"
    blob_of_it = path.resolve()
    blob_of_it.chmod(0o644)
    blob_of_it.write_text("[1, 3]")
    assert "candidates/with/attachments/scores.json: its bytes have the digest" in found(store, full=True, name="with")
    blob_of_it.unlink()
    assert "candidates/with/attachments/scores.json: its blob" in found(store, name="with")
    path.unlink()
    path.symlink_to("/etc/passwd")
    assert "candidates/with/attachments/scores.json: it is no link to a blob" in found(store, name="with")


# ── numbers ──


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("dtype", ["F32", "BF16"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_scale_that_cannot_be_is_found_though_every_digest_agrees(store, tmp_path, bad, dtype, full):
    name = "model.layers.1.mlp.experts.2.up_proj.weight_scale_inv"
    config, weights = fp8_checkpoint(hidden=256, intermediate=256)
    parts = [struct.pack("<f", each)[-DTYPES[dtype] :] for each in (1.0, 1.0, bad, 1.0)]
    weights[name] = replace(weights[name], dtype=dtype, data=b"".join(parts))
    source = tmp_path / "bad"
    source.mkdir()
    write_json(source / "config.json", config)
    write_weights(source, weights, shards=3)
    store.add("bad", source)
    (problem,) = verify(store, "bad", full=full)
    assert name in problem.what
    assert "safetensors" in problem.file or "blobs/sha256" in problem.file
    assert problem.expected == "finite numbers above 0"


@pytest.mark.parametrize("code", [b"\x7f", b"\xff"])
def test_a_weight_that_is_nan_in_fp8_is_found(store, tmp_path, code):
    name = "model.layers.1.mlp.experts.2.up_proj.weight"
    config, weights = fp8_checkpoint()
    weights[name] = replace(weights[name], data=weights[name].data[:-1] + code)
    source = tmp_path / "bad"
    source.mkdir()
    write_json(source / "config.json", config)
    write_weights(source, weights)
    store.add("bad", source)
    (problem,) = verify(store, "bad", full=True)
    assert f"tensor {name}: " in problem.what


FORMATS = {"F16": "<e", "F32": "<f", "F64": "<d"}


@pytest.mark.parametrize("dtype", sorted(FORMATS))
@given(st.data())
def test_every_number_that_is_none_is_seen_and_no_other(dtype, data):
    values = data.draw(st.lists(st.floats(width=8 * DTYPES[dtype]), max_size=20))
    packed = b"".join(struct.pack(FORMATS[dtype], value) for value in values)
    assert holds_no_number(dtype, packed) == any(value != value or abs(value) == float("inf") for value in values)
    assert all_positive(dtype, packed) == all(0 < value < float("inf") for value in values)


@given(st.lists(st.floats(width=32), max_size=20))
def test_bfloat16_is_the_upper_half_of_float32(values):
    upper = [struct.pack("<f", value)[2:] for value in values]
    expected = any(
        struct.unpack("<f", b"\0\0" + half)[0] - struct.unpack("<f", b"\0\0" + half)[0] != 0 for half in upper
    )
    assert holds_no_number("BF16", b"".join(upper)) == expected


def test_in_e4m3_only_two_codes_are_none_and_in_e5m2_eight():
    assert [code for code in range(256) if holds_no_number("F8_E4M3", bytes([code]))] == [0x7F, 0xFF]
    e5m2 = [code for code in range(256) if holds_no_number("F8_E5M2", bytes([code]))]
    assert e5m2 == [0x7C, 0x7D, 0x7E, 0x7F, 0xFC, 0xFD, 0xFE, 0xFF]
    assert not holds_no_number("U8", bytes(range(256)))


# ── laws ──


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40)
@given(st.data())
def test_whatever_is_damaged_is_found_and_never_a_traceback(made, tmp_path_factory, data):
    """Any one file of the candidate cut, changed, removed, or replaced by a folder or a loop: `verify` says so."""
    store = copied(made, tmp_path_factory.mktemp("damaged") / "models")
    files = sorted(
        path
        for folder in ("blobs", "manifests", "candidates")
        for path in store.layout.root.joinpath(folder).rglob("*")
        if path.is_symlink() or path.is_file()
    )
    path = data.draw(st.sampled_from(files))
    content = path.read_bytes()
    path.unlink()
    kind = data.draw(st.sampled_from(["gone", "cut", "flipped", "folder", "loop"]))
    if kind == "cut":
        path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    elif kind == "flipped":
        place = data.draw(st.integers(0, len(content) - 1))
        path.write_bytes(
            content[:place] + bytes([content[place] ^ 1 << data.draw(st.integers(0, 7))]) + content[place + 1 :]
        )
    elif kind == "folder":
        path.mkdir()
    elif kind == "loop":
        path.symlink_to(path.name)
    assert verify(store, "toy", full=True)


@pytest.mark.parametrize("damage", ["missing", "changed", "a folder", "a loop"])
@pytest.mark.parametrize("what", ["evidence", "verdicts", "rows", "policy"])
def test_damage_to_what_is_written_down_about_a_candidate_is_named(store, tmp_path, what, damage):
    verdict = stores.judge(store, "toy", stores.write_policy(tmp_path / "floor.yaml"))
    assert verify_records(store, "toy") == []
    digest = store.candidate("toy").digest
    (evidence,) = store.evidence(digest).values()
    path = {
        "evidence": store.layout.evidence(digest) / f"{evidence.identity()}.json",
        "verdicts": store.layout.verdicts(digest) / f"{verdict.identity()}.json",
        "rows": store.layout.blob(str(evidence.rows)),
        "policy": store.layout.blob(verdict.policy),
    }[what]
    data = path.read_bytes()
    path.unlink()
    if damage == "changed":
        path.write_bytes(data[:-2] + b" }")
    elif damage == "a folder":
        path.mkdir()
    elif damage == "a loop":
        path.symlink_to(path.name)
    problems = verify_records(store, "toy")
    if damage == "missing" and what in ("evidence", "verdicts"):
        assert problems == []  # nothing names them: a verdict without its evidence is stale
    else:
        assert [problem.file for problem in problems] == [str(path.relative_to(store.layout.root))]
    assert verify(store, "toy", full=True) == []


def test_a_parent_whose_manifest_is_damaged_is_named(store):
    parent = store.candidate("toy").digest
    with store.step("5" * 64) as folder:
        inputs = Inputs(op="prune", parent=parent, settings={}, code="prune-1")
        store.commit("child", inputs, write_checkpoint(folder / "model"))
    store.layout.manifest(parent).unlink()
    assert [problem.file for problem in verify_records(store, "child")] == [f"manifests/{parent}.json"]


def test_a_candidate_that_is_removed_since_it_was_listed_keeps_none_of_the_others_from_being_verified(
    store, tmp_path, monkeypatch
):
    store.add("gone", write_checkpoint(tmp_path / "gone", layers=1))
    look = verifying.verify

    def late(store: Store, name: str, *, full: bool) -> list[Problem]:
        if name == "gone":
            removal.remove(store, "gone")
        return look(store, name, full=full)

    monkeypatch.setattr(verifying, "verify", late)
    run = CliRunner().invoke(app, ["verify", "--all", "--json", "--root", str(store.layout.root)])
    assert (run.exit_code, json.loads(run.stdout)) == (0, {"toy": []})


def test_what_somebody_left_among_the_candidates_keeps_none_from_being_verified(store):
    candidates = store.layout.candidates
    (candidates / "notes").write_text("mine")
    (candidates / "gone").symlink_to("nowhere")
    (candidates / "empty").mkdir()
    (candidates / "README.md").write_text("no candidate is called so")
    run = CliRunner().invoke(app, ["verify", "--all", "--json", "--root", str(store.layout.root)])
    assert run.exit_code == 5
    told = json.loads(run.stdout)
    assert {name: bool(problems) for name, problems in told.items()} == {
        "empty": True,
        "gone": True,
        "notes": True,
        "toy": False,
    }
    assert told["notes"][0]["file"] == "candidates/notes"


def test_a_folder_that_cannot_be_listed_is_a_problem_and_no_empty_one(made, memory_path):
    store = copied(made, memory_path / "models")
    attachments = store.layout.candidate("toy") / "attachments"
    attachments.mkdir(mode=0o700)
    attachments.chmod(0)

    def look() -> None:
        problems = verify(store, "toy", full=False)
        assert [problem.file for problem in problems] == ["candidates/toy/attachments"]

    assert users.ordinary(look, owns=store.layout.root) == 0
    attachments.chmod(0o700)
