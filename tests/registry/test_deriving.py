"""Another template for the same weights is another candidate, and costs no bytes."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from gates.errors import IntegrityError, SluiceError, UsageError
from registry import comparison, judging
from registry.deriving import REPLACEABLE, derive, parsed
from registry.store import Candidate, Store
from registry.verify import verify
from tests.support import stores
from tests.support.tiny import write_checkpoint

TEMPLATE = "chat_template.jinja"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.init(tmp_path / "models")


@pytest.fixture
def v18(store: Store, tmp_path: Path) -> Candidate:
    return store.add("v18", write_checkpoint(tmp_path / "source"))


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "v19.jinja"
    path.write_text("{% for message in messages %}{{ message.content }}{% endfor %}", encoding="utf-8")
    return path


def blobs(store: Store) -> dict[str, int]:
    """Every blob with its inode."""
    folder = store.layout.root / "blobs"
    return {path.name: path.stat().st_ino for path in folder.rglob("*") if path.is_file()}


def test_a_derived_candidate_has_the_new_file_and_shares_all_others(store, v18, template):
    before = blobs(store)
    v19 = derive(store, "v18", "v19", {TEMPLATE: template})
    assert (v19.folder / TEMPLATE).read_bytes() == template.read_bytes()
    after = blobs(store)
    assert after.items() >= before.items()
    assert len(after) == len(before) + 1
    changed = {name for name, file in v19.manifest.files.items() if v18.manifest.files.get(name) != file}
    assert changed == {TEMPLATE}
    assert (v19.manifest.inputs.op, v19.manifest.inputs.parent) == ("derive", v18.digest)
    assert v19.manifest.inputs.settings == {"replaced": {TEMPLATE: v19.manifest.files[TEMPLATE].digest}}
    assert v19.manifest.shape == v18.manifest.shape
    assert verify(store, "v19", full=True) == []
    assert list(store.layout.staging.iterdir()) == []


def test_the_source_is_what_it_was(store, v18, template):
    derive(store, "v18", "v19", {TEMPLATE: template})
    assert store.candidate("v18").manifest == v18.manifest
    assert verify(store, "v18", full=True) == []


@pytest.mark.usefixtures("v18")
def test_deriving_the_same_again_finds_it_made(store, template):
    first = derive(store, "v18", "v19", {TEMPLATE: template})
    entries = len(list(store.log.entries()))
    assert derive(store, "v18", "v19", {TEMPLATE: template}) == first
    assert len(list(store.log.entries())) == entries


@pytest.mark.usefixtures("v18")
def test_another_file_under_the_same_name_is_refused_with_both_digests_unless_it_gives_way(store, template):
    first = derive(store, "v18", "v19", {TEMPLATE: template})
    template.write_text("{{ messages[0].content }}", encoding="utf-8")
    with pytest.raises(UsageError, match=r"settings\.replaced") as refused:
        derive(store, "v18", "v19", {TEMPLATE: template})
    assert first.manifest.files[TEMPLATE].digest in str(refused.value)
    assert derive(store, "v18", "v19", {TEMPLATE: template}, replace=True).digest != first.digest


def test_a_file_that_the_source_lacks_is_added(store, tmp_path, template):
    store.add("bare", stores.checkpoint(tmp_path / "bare", bare=True))
    spoken = derive(store, "bare", "spoken", {TEMPLATE: template})
    assert (spoken.folder / TEMPLATE).is_file()


def test_evidence_of_the_one_is_none_of_the_other(store, v18, template, tmp_path):
    stores.observe(store, "v18", right=10)
    v19 = derive(store, "v18", "v19", {TEMPLATE: template})
    assert store.evidence(v19.digest) == {}
    policy = stores.write_policy(tmp_path / "policy.yaml")
    assert judging.judge(store, "v18", policy=judging.read_policy(policy), baseline=None).verdict == "Pass"
    assert judging.judge(store, "v19", policy=judging.read_policy(policy), baseline=None).verdict == "Inconclusive"
    assert comparison.of(store, v18, v19).conclusion == "isolates the chat template: nothing else differs"


@pytest.mark.usefixtures("v18")
def test_a_channel_can_be_derived_from_and_a_derived_candidate_too(store, template, tmp_path):
    v19 = derive(store, "v18", "v19", {TEMPLATE: template})
    generation = tmp_path / "generation_config.json"
    generation.write_text('{"do_sample": true}', encoding="utf-8")
    sampled = derive(store, "v19", "v19.sampled", {"generation_config.json": generation})
    assert sampled.manifest.inputs.parent == v19.digest
    assert sampled.manifest.files[TEMPLATE] == v19.manifest.files[TEMPLATE]


@pytest.mark.usefixtures("v18")
@pytest.mark.parametrize(
    "file",
    [
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "../v18/model/x",
        "run.py",
        "",
        TEMPLATE + "/..",
    ],
)
def test_weights_and_configuration_and_anything_unknown_are_not_replaced(store, template, file):
    with pytest.raises(UsageError, match=r"only a step changes it|no file that is replaced"):
        derive(store, "v18", "v19", {file: template})
    assert store.names() == ["v18"]


@pytest.mark.usefixtures("v18")
@pytest.mark.parametrize(
    ("file", "content", "error"),
    [
        (TEMPLATE, b"\xff\xfe", IntegrityError),
        (TEMPLATE, b" \n", UsageError),
        (TEMPLATE, pickle.dumps(os.getcwd), IntegrityError),
        ("tokenizer.json", b"{", IntegrityError),
        ("tokenizer_config.json", b"[]", IntegrityError),
        ("generation_config.json", b'{"a": 1, "a": 2}', IntegrityError),
        ("tokenizer.model", b"PK\x03\x04", IntegrityError),
    ],
)
def test_a_file_that_is_not_what_its_name_says_is_refused(store, tmp_path, file, content, error):
    (tmp_path / "new").write_bytes(content)
    with pytest.raises(error) as refused:
        derive(store, "v18", "v19", {file: tmp_path / "new"})
    assert str(tmp_path / "new") in str(refused.value)
    assert store.names() == ["v18"]


@pytest.mark.usefixtures("v18")
def test_what_would_change_nothing_is_refused(store, tmp_path):
    with pytest.raises(UsageError, match="nothing is to be replaced"):
        derive(store, "v18", "v19", {})
    with pytest.raises(UsageError, match=f"has exactly this {TEMPLATE} already"):
        derive(store, "v18", "v19", {TEMPLATE: tmp_path / "source" / TEMPLATE})


@pytest.mark.usefixtures("v18")
@pytest.mark.parametrize("path", ["nowhere", "."])
def test_a_path_that_holds_no_file_is_refused(store, tmp_path, path):
    with pytest.raises(SluiceError, match=r"cannot be read|no regular file"):
        derive(store, "v18", "v19", {TEMPLATE: tmp_path / path})


@pytest.mark.usefixtures("v18")
def test_a_pipe_is_not_waited_for(store, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(IntegrityError, match="no regular file"):
        derive(store, "v18", "v19", {TEMPLATE: tmp_path / "pipe"})


def test_nothing_is_made_of_a_damaged_candidate(store, v18, template):
    (v18.folder / "model.safetensors").resolve().unlink()
    with pytest.raises(IntegrityError, match=r"v18 is damaged.*\n.*model\.safetensors"):
        derive(store, "v18", "v19", {TEMPLATE: template})
    assert store.names() == ["v18"]


def test_the_words_of_the_command_line_are_files_and_paths():
    assert parsed([f"{TEMPLATE}=a=b.jinja"]) == {TEMPLATE: Path("a=b.jinja")}
    for words in (["x"], ["=x"], ["x="], [f"{TEMPLATE}=a", f"{TEMPLATE}=b"]):
        with pytest.raises(UsageError):
            parsed(words)


def test_whatever_can_be_replaced_is_taken_in_with_a_model_too(store, tmp_path):
    source = write_checkpoint(tmp_path / "source")
    for name in REPLACEABLE:
        (source / name).write_text("{}", encoding="utf-8")
    assert store.add("whole", source).manifest.files.keys() >= set(REPLACEABLE)
