"""The store: what is visible is complete, and what is made is found."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from gates import canonical
from gates.errors import BusyError, IntegrityError, UsageError
from registry import fs
from registry.manifests import Inputs, Manifest, MixUse, Taken
from registry.marker import Format
from registry.store import Store
from tests.support import invariants, stores, users
from tests.support.processes import KILLED, dying_at, end, start, together


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.init(tmp_path / "models")


def tree(folder: Path) -> dict[str, bytes | str]:
    """Every file and link below `folder`, with what it holds."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


def worked(store: Store, inputs: Inputs, *, seed: int = 1, bare: bool = False) -> Path:
    """What a stage leaves in its step's folder."""
    with store.step(inputs.identity()) as folder:
        return stores.checkpoint(folder / "model", seed=seed, bare=bare)


# A registry


def test_a_registry_made_again_stays_as_it_is(store, tmp_path):
    stores.add(store, "toy", tmp_path)
    before = tree(store.layout.root)
    Store.init(store.layout.root)
    assert tree(store.layout.root) == before


def test_a_folder_without_a_marker_is_refused_with_the_command_that_makes_one(tmp_path):
    with pytest.raises(UsageError) as caught:
        Store.open(tmp_path)
    assert "registry init" in str(caught.value)


def test_a_folder_that_holds_something_else_is_not_made_a_registry(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(UsageError, match="not empty"):
        Store.init(tmp_path)
    assert tree(tmp_path) == {"thesis.tex": b"years of work"}
    with pytest.raises(UsageError, match="not a folder"):
        Store.init(tmp_path / "thesis.tex")


def test_no_registry_is_made_inside_another(tmp_path):
    Store.init(tmp_path / "models")
    before = tree(tmp_path)
    (tmp_path / "link").symlink_to("models")
    for inside in ("models/mine", "models/blobs/deep/down", "link/mine"):
        with pytest.raises(UsageError, match=f"inside the registry {tmp_path / 'models'}"):
            Store.init(tmp_path / inside)
    (tmp_path / "link").unlink()
    assert tree(tmp_path) == before
    (tmp_path / "format.json").write_text("{}")  # of something else
    Store.init(tmp_path / "beside")


def test_hidden_files_do_not_keep_a_folder_from_becoming_a_registry(tmp_path):
    (tmp_path / ".gitignore").write_text("*\n")
    Store.init(tmp_path)
    invariants.check(tmp_path)


def test_a_registry_of_a_newer_format_or_of_something_else_is_refused(store):
    marker = store.layout.marker
    for content, message in (
        (Format(kind="sluice-registry", format=2), "format 2"),
        (Format(kind="wine-cellar", format=1), "wine-cellar"),
    ):
        marker.unlink()
        marker.write_bytes(content.to_bytes())
        with pytest.raises(UsageError, match=message):
            Store.open(store.layout.root)
    marker.unlink()
    marker.write_bytes(b"{")
    with pytest.raises(IntegrityError):
        Store.open(store.layout.root)


def test_the_marker_of_format_1_still_reads_and_writes_as_the_same_bytes(project):
    data = (project / "tests/golden/format1/format.json").read_bytes()
    assert Format.from_bytes(data).to_bytes() == data
    assert Format.from_bytes(data).format == 1


def test_an_init_killed_anywhere_is_made_whole_by_the_next(memory_path):
    for killed_at in range(1, 200):
        root = memory_path / str(killed_at)
        status = end(start(dying_at(killed_at, lambda root=root: Store.init(root))))
        Store.init(root)
        invariants.check(root)
        if status == 0:
            return
    pytest.fail("init never finished")


# Blobs


def test_a_blob_is_kept_once_read_only_and_under_its_digest(store):
    digest = store.put(b"rows")
    assert store.put(b"rows") == digest
    assert store.read(digest) == b"rows"
    assert store.layout.blob(digest).stat().st_mode & 0o222 == 0


def test_a_damaged_blob_is_never_handed_out_and_is_mended_by_putting_it_again(store):
    digest = store.put(b"rows")
    path = store.layout.blob(digest)
    path.chmod(0o644)
    path.write_bytes(b"rowz")
    with pytest.raises(IntegrityError, match="damaged"):
        store.read(digest)
    store.put(b"rows")
    assert store.read(digest) == b"rows"
    path.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        store.read(digest)


# Names


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../toy",
        "/toy",
        "a/b",
        "-rf",
        ".tmp-1",
        "Toy",
        "toy\n",
        "to\ny",
        "to\0y",
        "toy ",
        "tóy",
        "x" * 65,
        "x" * 300,
    ],
)
def test_names_that_attack_are_refused_everywhere(store, tmp_path, name):
    source = stores.checkpoint(tmp_path / "source")
    inputs = Inputs(op="prune", parent=None, settings={}, code="test-1")
    before = tree(tmp_path)
    for use in (
        lambda: store.add(name, source),
        lambda: store.candidate(name),
        lambda: store.made(name, inputs),
        lambda: store.commit(name, inputs, source),
    ):
        with pytest.raises(UsageError, match="is not a name"):
            use()
    assert tree(tmp_path) == before


# Looking up


def test_an_unknown_name_is_answered_with_the_near_ones(store, tmp_path):
    with pytest.raises(UsageError, match="registry add"):
        store.candidate("toy")
    stores.add(store, "v7b", tmp_path)
    stores.add(store, "qwen", tmp_path)
    with pytest.raises(UsageError) as caught:
        store.candidate("v7a")
    assert "the nearest is v7b" in str(caught.value)
    assert store.names() == ["qwen", "v7b"]


def test_a_manifest_that_was_changed_is_found(store, tmp_path):
    candidate = stores.add(store, "toy", tmp_path)
    path = store.layout.manifest(candidate.digest)
    data = path.read_bytes()
    path.unlink()
    with pytest.raises(IntegrityError, match="missing"):
        store.candidate("toy")
    path.write_bytes(data.replace(b'"experts":2', b'"experts":3'))
    with pytest.raises(IntegrityError, match="damaged"):
        store.candidate("toy")


def test_a_candidate_whose_manifest_is_damaged_can_be_made_again(store, tmp_path):
    candidate = stores.add(store, "toy", tmp_path)
    path = store.layout.manifest(candidate.digest)
    path.unlink()
    path.write_bytes(b"{}")
    with pytest.raises(IntegrityError):
        stores.add(store, "toy", tmp_path)
    assert stores.add(store, "toy", tmp_path, replace=True) == candidate
    invariants.check(store.layout.root)


# Making


@pytest.fixture
def parent(store, tmp_path):
    return stores.add(store, "toy", tmp_path)


def test_a_candidate_made_again_from_the_same_inputs_is_found(store, parent):
    inputs = stores.pruned(parent)
    assert store.made("v7b", inputs) is None
    made = store.commit("v7b", inputs, worked(store, inputs))
    store.discard(inputs.identity())
    before = tree(store.layout.root)
    assert store.made("v7b", inputs) == made
    assert store.commit("v7b", inputs, Path("nothing here is looked at")) == made
    assert tree(store.layout.root) == before
    invariants.check(store.layout.root)


def test_other_inputs_under_the_same_name_are_refused_with_both_values(store, parent):
    inputs, other = stores.pruned(parent, "0.25"), stores.pruned(parent, "0.5")
    store.commit("v7b", inputs, worked(store, inputs))
    with pytest.raises(UsageError) as caught:
        store.made("v7b", other)
    assert "settings.compression: 0.25 / 0.5" in str(caught.value)
    assert "parent" not in str(caught.value)
    assert store.made("v7b", other, replace=True) is None
    replaced = store.commit("v7b", other, worked(store, other, seed=2), replace=True)
    assert store.candidate("v7b") == replaced
    invariants.check(store.layout.root)


def test_the_same_work_gives_the_same_identity_whenever_and_whatever_it_is_called(store, parent):
    inputs = stores.pruned(parent)
    first = store.commit("v7b", inputs, worked(store, inputs))
    second = store.commit("again", inputs, worked(store, inputs))
    assert first.digest == second.digest


def test_files_are_not_copied_but_become_blobs(store, parent):
    inputs = stores.pruned(parent)
    model = worked(store, inputs)
    inode = (model / "model.safetensors").stat().st_ino
    candidate = store.commit("v7b", inputs, model)
    assert (candidate.folder / "model.safetensors").stat().st_ino == inode


def test_attachments_lie_beside_the_model_and_are_no_part_of_it(store, parent):
    inputs = stores.pruned(parent)
    attachments = store.layout.step(inputs.identity()) / "attachments"
    (attachments / "plots").mkdir(parents=True)
    (attachments / "plots/scores.svg").write_text("<svg/>")
    candidate = store.commit("v7b", inputs, worked(store, inputs), attachments=attachments)
    kept = store.layout.candidate("v7b") / "attachments/plots/scores.svg"
    assert kept.read_text() == "<svg/>"
    assert kept.is_symlink()
    assert "plots/scores.svg" not in candidate.manifest.files
    assert not (candidate.folder / "plots").exists()
    invariants.check(store.layout.root)


def test_the_log_says_what_lies_beside_the_model_also_where_a_kill_left_the_entry_to_the_next(store, parent):
    inputs = stores.pruned(parent)
    extra = store.layout.step(inputs.identity()) / "attachments"
    (extra / "plots").mkdir(parents=True)
    (extra / "plots/scores.svg").write_text("<svg/>")
    store.commit("v7b", inputs, worked(store, inputs), attachments=extra)
    logged = store.log.newest("candidate", name="v7b")
    assert logged["attachments"] == {"plots/scores.svg": canonical.digest(b"<svg/>")}
    max(store.layout.log.iterdir()).unlink()
    assert store.log.newest("candidate", name="v7b") is None
    assert store.made("v7b", inputs) is not None
    assert store.log.newest("candidate", name="v7b") == logged
    assert "attachments" not in store.log.newest("candidate", name="toy")


def test_what_a_candidate_was_made_from_must_be_there(store, parent):
    orphan = Inputs(op="prune", parent="0" * 64, settings={}, code="test-1")
    mix = MixUse(name="broad", rows="1" * 64, datasets=(Taken(dataset="a.jsonl", count=1),))
    blind = Inputs(op="prune", parent=parent.digest, settings={}, mix=mix, code="test-1")
    for inputs in (orphan, blind):
        with pytest.raises(IntegrityError, match="missing"):
            store.commit("v7b", inputs, worked(store, inputs))
    assert store.names() == ["toy"]


def test_a_checkpoint_that_is_not_whole_never_gets_a_name(store, parent):
    inputs = stores.pruned(parent)
    model = worked(store, inputs)
    (model / "config.json").write_text(
        (model / "config.json").read_text().replace('"num_experts": 2', '"num_experts": 3')
    )
    with pytest.raises(IntegrityError):
        store.commit("v7b", inputs, model)
    assert store.names() == ["toy"]
    assert len(invariants.visible(store.layout.root / "manifests")) == 1


def test_a_link_in_a_stage_s_folder_is_refused(store, parent):
    inputs = stores.pruned(parent)
    model = worked(store, inputs)
    (model / "extra.json").symlink_to(store.layout.marker)
    with pytest.raises(IntegrityError, match="neither a file nor a folder"):
        store.commit("v7b", inputs, model)


# Steps


def test_a_step_is_one_process_s_alone_and_its_folder_stays(store):
    def intrude() -> None:
        with pytest.raises(BusyError), store.step("a" * 64):
            pass

    with store.step("a" * 64) as folder:
        (folder / "layer-3").write_text("done")
        assert end(start(intrude)) == 0
        with store.step("b" * 64):
            pass
    with store.step("a" * 64) as folder:
        assert (folder / "layer-3").read_text() == "done"
    store.discard("a" * 64)
    store.discard("a" * 64)
    assert not folder.exists()


def test_work_in_a_step_whose_files_are_blobs_already_cannot_change_a_blob(store, parent):
    inputs = stores.pruned(parent)
    candidate = store.commit("v7b", inputs, worked(store, inputs))
    before = (candidate.folder / "config.json").read_bytes()
    with store.step(inputs.identity()) as folder:
        assert (folder / "model/config.json").read_bytes() == before
        (folder / "model/config.json").write_bytes(b"rewritten")
    assert (candidate.folder / "config.json").read_bytes() == before
    invariants.check(store.layout.root)


def test_a_step_whose_process_was_killed_is_free_at_once(store):
    def work() -> None:
        with store.step("a" * 64) as folder:
            (folder / "layer-3").write_text("done")
            os.kill(os.getpid(), signal.SIGKILL)

    assert end(start(work)) == KILLED
    with store.step("a" * 64) as folder:
        assert (folder / "layer-3").read_text() == "done"


# Evidence and verdicts


def test_evidence_is_kept_under_its_digest_with_its_rows_and_its_timings_in_the_log(store, parent):
    evidence, rows, responses = stores.evidence_on(parent.digest, right=9)
    digest = store.add_evidence(evidence, rows=rows, responses=responses, timings={"seconds": 3.25})
    assert store.evidence(parent.digest) == {digest: evidence}
    assert store.evidence_digests(parent.digest) == [digest]
    assert store.read(evidence.rows) == rows
    assert store.log.newest("evidence", evidence=digest)["timings"] == {"seconds": 3.25}
    before = tree(store.layout.root)
    assert store.add_evidence(evidence, rows=rows, responses=responses, timings={"seconds": 9}) == digest
    assert tree(store.layout.root) == before
    invariants.check(store.layout.root)


def test_evidence_with_other_rows_than_it_names_is_refused(store, parent):
    evidence, rows, responses = stores.evidence_on(parent.digest, right=9)
    for given in ({"rows": rows + b"\n", "responses": responses}, {"rows": rows, "responses": b""}):
        with pytest.raises(IntegrityError, match="other"):
            store.add_evidence(evidence, **given, timings={})
    alone = evidence.model_copy(update={"rows": None, "responses": None})
    with pytest.raises(IntegrityError, match="other rows"):
        store.add_evidence(alone, rows=rows, responses=b"", timings={})
    assert store.evidence(parent.digest) == {}
    stranger = evidence.model_copy(update={"candidate": "0" * 64})
    with pytest.raises(IntegrityError, match="missing"):
        store.add_evidence(stranger, rows=rows, responses=responses, timings={})
    assert store.add_evidence(alone, rows=b"", responses=b"", timings={}) in store.evidence(parent.digest)


def test_evidence_and_verdicts_that_were_changed_or_moved_are_found(store, parent, tmp_path):
    other = stores.add(store, "other", tmp_path, seed=1)
    verdict = stores.judge(store, "toy", stores.write_policy(tmp_path / "floor.yaml"))
    assert list(store.verdicts(parent.digest).values()) == [verdict]
    for folder, read in ((store.layout.evidence, store.evidence), (store.layout.verdicts, store.verdicts)):
        (path,) = folder(parent.digest).iterdir()
        fs.make_folders(folder(other.digest))
        moved = folder(other.digest) / path.name
        shutil.copy(path, moved)
        with pytest.raises(IntegrityError, match="another candidate"):
            read(other.digest)
        data = path.read_bytes()
        path.unlink()
        path.write_bytes(data + b" ")
        with pytest.raises(IntegrityError, match="damaged"):
            read(parent.digest)


# Several writers, and ends without warning


def test_of_writers_of_different_files_under_one_name_one_wins_and_the_others_are_told(store, tmp_path):
    def write(seed: int) -> None:
        try:
            stores.add(store, "toy", tmp_path, seed=seed)
        except UsageError:
            os._exit(3)

    ends = together([lambda seed=seed: write(seed) for seed in range(6)])
    assert sorted(ends) == [0, 3, 3, 3, 3, 3]
    invariants.check(store.layout.root)


def test_writers_of_the_same_work_all_find_it_made(store, parent):
    inputs = stores.pruned(parent)
    models = [stores.checkpoint(store.layout.staging / f"{number:064x}" / "model", seed=1) for number in range(6)]
    assert together([lambda model=model: store.commit("v7b", inputs, model) for model in models]) == [0] * 6
    assert [entry.about["name"] for entry in store.log.entries()].count("v7b") == 1
    invariants.check(store.layout.root)


def test_manifests_written_before_still_read_as_the_same_bytes(project):
    data = (project / "tests/golden/format1/manifest.json").read_bytes()
    manifest = Manifest.from_bytes(data)
    assert manifest.to_bytes() == data


def test_a_registry_that_cannot_be_written_is_read_though_a_folder_is_missing(memory_path, tmp_path):
    """Such as one of an older Sluice that is mounted read-only: a newer one may have a folder more."""
    store = Store.init(memory_path / "models")
    digest = stores.add(store, "toy", tmp_path).digest
    store.layout.waivers(digest).parent.rmdir()
    store.layout.root.chmod(0o555)

    def look() -> None:
        assert Store.open(store.layout.root).candidate("toy").digest == digest

    assert users.ordinary(look, owns=store.layout.root) == 0
    store.layout.root.chmod(0o755)
