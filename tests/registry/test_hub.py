"""The Hub: what is fetched is one commit's, whole, and what the Hub says it is; what fails is said, and continued."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gates.errors import UsageError
from registry.remotes import hub
from registry.store import Store
from tests.support import invariants, tiny
from tests.support.answers import Answer
from tests.support.hub import Hub, Request

SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
TOKEN = "hf_thisIsNobodysToken"  # noqa: S105 - nobody's


@pytest.fixture
def site() -> Iterator[Hub]:
    with Hub() as site:
        yield site


@pytest.fixture
def files(tmp_path) -> dict[str, bytes]:
    """A model, and what else lies in repositories."""
    folder = tiny.write_checkpoint(tmp_path / "files", shards=2)
    others = {"README.md": b"# A model", ".gitattributes": b"*", "pytorch_model.bin": b"\x80\x02c__builtin__\neval\n."}
    return {path.name: path.read_bytes() for path in folder.iterdir()} | others


@pytest.fixture
def run(site, tmp_path):
    """Runs the command line against the simulated Hub."""
    Store.init(tmp_path / "models")

    def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "registry", *words, "--root", tmp_path / "models"],
            env=os.environ | site.environment(tmp_path / "home") | environment,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def candidate(tmp_path: Path, name: str = "toy"):
    return Store.open(tmp_path / "models").candidate(name)


def test_a_model_is_fetched_from_the_commit_that_its_branch_names_and_says_so(site, files, run, tmp_path):
    commit = site.repository("org/model").commit(files)
    done = run("add", "toy", "hf://org/model")
    assert done.returncode == 0, done.stderr
    found = candidate(tmp_path)
    settings = found.manifest.inputs.settings
    assert (settings["source"], settings["revision"]) == ("hf://org/model", commit)
    taken = {name: data for name, data in files.items() if name in found.manifest.files}
    assert {name: (found.folder / name).read_bytes() for name in found.manifest.files} == taken
    assert files.keys() - taken.keys() == {"README.md", ".gitattributes", "pytorch_model.bin"}
    assert not site.fetched("pytorch_model.bin"), "a pickle is not even fetched"
    assert not list((tmp_path / "models/staging").iterdir())
    invariants.check(tmp_path / "models")


@pytest.mark.parametrize("revision", ["v1", "refs/pr/3", ""])
def test_a_revision_is_a_branch_a_tag_a_reference_or_a_commit(site, files, run, tmp_path, revision):
    repository = site.repository("org/model")
    wanted = repository.commit(files, branch=revision or "main")
    repository.commit(files | {"config.json": b"{}"}, branch="dev")
    done = run("add", "toy", f"hf://org/model@{revision or wanted}")
    assert done.returncode == 0, done.stderr
    assert candidate(tmp_path).manifest.inputs.settings["revision"] == wanted


LEFT = [
    *("pytorch_model-00001-of-00002.bin", "training_args.bin", "original/consolidated.00.pth", "code.tar.gz", "w.npz"),
    *("consolidated.safetensors", "original/model.safetensors", "m-Q4_K_M.gguf", "onnx/m.onnx"),
    *("adapter_model.safetensors", "checkpoint-500/model-00001-of-00002.safetensors"),
    *("modeling_x.py", "assets/a.png", "logo.svg", "LICENSE"),
]
TAKEN = ["tokenizer.model", "vocab.json", "merges.txt", "qwen.tiktoken", "original/params.json", "empty.txt"]


@pytest.mark.parametrize("shards", [1, 2])
def test_what_else_lies_in_public_repositories_is_left_there(site, run, tmp_path, shards):
    folder = tiny.write_checkpoint(tmp_path / "model", shards=shards)
    files = {path.name: path.read_bytes() for path in folder.iterdir()} | dict.fromkeys(TAKEN, b"")
    weights = files["model.safetensors" if shards == 1 else SHARDS[0]]
    others = {name: weights if name.endswith("safetensors") else b"\x80\x02c__builtin__\neval\n." for name in LEFT}
    site.repository("org/model").commit(files | others | {".eval_results/x.yaml": b"x: 1\n"})
    done = run("add", "toy", "hf://org/model")
    assert done.returncode == 0, done.stderr
    assert candidate(tmp_path).manifest.files.keys() == files.keys()
    assert f"no part of a model: {', '.join(sorted(LEFT))}" in done.stderr
    again = run("add", "toy", "hf://org/model")
    assert (again.returncode, "is there already" in again.stderr) == (0, True), again.stderr


def test_a_shard_of_another_name_that_the_index_names_is_taken(site, files, run, tmp_path):
    index = json.loads(files["model.safetensors.index.json"])
    index["weight_map"] = {
        name: file.replace(SHARDS[1], "mtp.safetensors") for name, file in index["weight_map"].items()
    }
    renamed = {"mtp.safetensors" if name == SHARDS[1] else name: data for name, data in files.items()}
    commit = renamed | {
        "model.safetensors.index.json": json.dumps(index).encode(),
        "other.safetensors": files[SHARDS[0]],
    }
    site.repository("org/model").commit(commit)
    done = run("add", "toy", "hf://org/model")
    assert done.returncode == 0, done.stderr
    assert {"mtp.safetensors", SHARDS[0]} <= candidate(tmp_path).manifest.files.keys()
    assert "other.safetensors" not in candidate(tmp_path).manifest.files


def test_what_was_added_from_the_same_commit_is_found_without_fetching_anything(site, files, run):
    site.repository("org/model").commit(files)
    assert run("add", "toy", "hf://org/model").returncode == 0
    site.requests.clear()
    done = run("add", "toy", "hf://org/model@main")
    assert (done.returncode, "is there already" in done.stderr) == (0, True)
    assert {request.path for request in site.requests} == {"/api/models/org/model/revision/main"}


def test_a_newer_commit_under_the_same_name_is_refused_before_it_is_fetched(site, files, run, tmp_path):
    repository = site.repository("org/model")
    repository.commit(files)
    assert run("add", "toy", "hf://org/model").returncode == 0
    other = tiny.write_checkpoint(tmp_path / "other", shards=2, seed=1)
    newer = repository.commit(files | {name: (other / name).read_bytes() for name in SHARDS})
    site.requests.clear()
    done = run("add", "toy", "hf://org/model")
    assert done.returncode == 2
    assert SHARDS[0] in done.stderr
    assert not any(request.method == "GET" and "resolve" in request.path for request in site.requests)
    assert run("add", "toy", "hf://org/model", "--replace").returncode == 0
    assert candidate(tmp_path).manifest.inputs.settings["revision"] == newer


def test_a_shard_that_the_registry_has_is_not_fetched(site, files, run, tmp_path):
    Store.open(tmp_path / "models").add("local", tmp_path / "files")
    site.repository("org/model").commit(files)
    done = run("add", "toy", "hf://org/model")
    assert done.returncode == 0, done.stderr
    assert not site.fetched(SHARDS[0])
    assert candidate(tmp_path).manifest.files == candidate(tmp_path, "local").manifest.files


def test_a_checkpoint_that_is_not_whole_is_refused_by_its_headers_alone(site, files, run):
    config = json.loads(files["config.json"])
    site.repository("org/model").commit(files | {"config.json": json.dumps(config | {"num_experts": 9}).encode()})
    done = run("add", "toy", "hf://org/model")
    assert done.returncode == 5, done.stderr
    assert "not whole" in done.stderr
    assert all(request.range for request in site.fetched(SHARDS[0])), "no shard was fetched"


def test_a_file_that_is_not_what_the_hub_says_is_refused(site, files, run, tmp_path):
    site.repository("org/model").commit(files)

    def spoil(request: Request, answer: Answer) -> Answer | None:
        if request.method == "GET" and "/storage/" in request.path and not request.range:
            return Answer(answer.status, answer.headers, answer.body[:-1] + bytes([answer.body[-1] ^ 1]))
        return None

    site.faults.append(spoil)
    done = run("add", "toy", "hf://org/model")
    assert done.returncode == 5, done.stderr
    assert "not what the Hub says" in done.stderr
    site.faults.clear()
    assert run("add", "toy", "hf://org/model").returncode == 0
    invariants.check(tmp_path / "models")


def test_a_shard_that_was_fetched_is_not_fetched_again_after_a_failure(site, files, run, tmp_path):
    site.repository("org/model").commit(files)
    failing = [True]

    def fail(request: Request, _: Answer) -> Answer | None:
        """The second shard cannot be had once it is asked for whole."""
        wanted = failing[0] and not request.range and request in site.fetched(SHARDS[1])
        return Answer(500) if wanted else None

    site.faults.append(fail)
    done = run("add", "toy", "hf://org/model")
    assert done.returncode == 2, done.stderr
    assert "it continues" in done.stderr
    failing[0] = False
    before = len(site.fetched(SHARDS[0]))
    done = run("add", "toy", "hf://org/model")
    assert done.returncode == 0, done.stderr
    assert len(site.fetched(SHARDS[0])) == before
    invariants.check(tmp_path / "models")


def test_a_connection_that_breaks_is_taken_up_again(site, files, run, tmp_path):
    site.repository("org/model").commit(files)
    broken = []

    def cut(request: Request, answer: Answer) -> Answer | None:
        if request.method == "GET" and "/storage/" in request.path and not request.range and not broken:
            broken.append(request)
            return Answer(answer.status, answer.headers, answer.body, cut=1000)
        return None

    site.faults.append(cut)
    done = run("add", "toy", "hf://org/model")
    assert done.returncode == 0, done.stderr
    assert broken
    invariants.check(tmp_path / "models")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://org/nothing", "no such repository"),
        ("hf://org/model@gone", "no revision 'gone'"),
        ("hf://org/gated", "gated"),
        ("hf://org/empty", "no config.json"),
        ("hf://org", "no address on the Hub"),
        ("hf://org/model/config.json", "no address on the Hub"),
        ("hf://org/..", "no repository can be called so"),
    ],
)
def test_what_cannot_be_had_is_said_clearly(site, files, run, address, message):
    site.repository("org/model").commit(files)
    site.repository("org/gated", gated=True).commit(files)
    site.repository("org/empty").commit({"README.md": b"nothing"})
    done = run("add", "toy", address)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_that_there_is_no_network_is_said(run):
    for environment in ({"HF_ENDPOINT": "http://127.0.0.1:9"}, {"HF_HUB_OFFLINE": "1"}):
        done = run("add", "toy", "hf://org/model", **environment)
        assert done.returncode == 2
        assert "cannot be reached" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"HTTP_PROXY": "socks5://me:hidden@localhost:1"}, "socksio"),
        ({"HTTP_PROXY": "odd://me:hidden@localhost:1"}, "proxy"),
        ({"HF_TOKEN": "hf_hiddenö"}, "HF_TOKEN"),
        ({"HF_ENDPOINT": "http://me:hidden@127.0.0.1:1"}, "cannot be reached"),
        ({"SSL_CERT_FILE": "/no/such.pem"}, "SSL_CERT_FILE"),
        ({"SSL_CERT_FILE": "/etc/passwd"}, "SSL_CERT_FILE"),
    ],
)
def test_a_proxy_or_a_token_that_nobody_can_use_is_said_and_no_password_is_shown(run, settings, word):
    done = run("add", "mine", "hf://org/model", **({"NO_PROXY": "", "no_proxy": ""} | settings))
    assert (done.returncode, word in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr
    assert "hidden" not in done.stderr


def test_a_private_repository_needs_the_token_that_the_client_finds_and_nobody_sees_it(site, files, run):
    site.repository("org/private", token=TOKEN).commit(files)
    refused = run("add", "toy", "hf://org/private")
    assert refused.returncode == 2
    assert "no such repository, or it is private" in refused.stderr
    done = run("add", "toy", "hf://org/private", HF_TOKEN=TOKEN)
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stderr + done.stdout
    to_storage = [request for request in site.requests if request.path.startswith("/storage/")]
    assert to_storage
    assert not any(request.authorization for request in to_storage), "another host never sees the token"


def test_names_with_spaces_and_of_any_script_come_along(site, files, run, tmp_path):
    odd = {"read me (2).txt": b"read", "使用说明/größe%20#1.txt": b"it"}
    site.repository("org/odd").commit(files | odd)
    done = run("add", "odd", "hf://org/odd")
    assert done.returncode == 0, done.stderr
    assert {name: path.read_bytes() for name in odd for path in tmp_path.rglob(f"candidates/odd/model/{name}")} == odd


def test_names_that_would_leave_the_folder_are_not_taken(site, files, run, tmp_path):
    site.repository("org/model").commit(files | {"sub/../../evil.json": b"{}"})
    assert run("add", "toy", "hf://org/model").returncode == 0
    assert not list(tmp_path.rglob("evil.json"))
    site.repository("org/other").commit(files | {"sub/-rf.json": b"{}"})
    done = run("add", "other", "hf://org/other")
    assert (done.returncode, "cannot be kept" in done.stderr) == (2, True)


def test_a_model_on_the_hub_cannot_be_moved(run):
    done = run("add", "toy", "hf://org/model", "--move")
    assert (done.returncode, "--move is for folders" in done.stderr) == (2, True)


def test_an_address_is_read_as_it_is_written():
    for text in ("hf://org/model", "hf://org/model@main", "hf://Qwen/Qwen3.6-35B-A3B@refs/pr/1"):
        assert str(hub.parse(text)) == text
    assert hub.parse("models/toy") is None
    for text in ("hf://", "hf://org/model@", "hf://org/model@a b", "hf:///model", "hf://org/model@\n"):
        with pytest.raises(UsageError, match=re.escape("no address on the Hub")):
            hub.parse(text)
