"""`registry push` to the Hub: what may be sent, what is sent, that main is never half of it, and that it comes back.

The Hub is a simulator in memory; the client is the real one. (Xet, the Hub's newer transfer, is off.)
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from gates import canonical
from registry import commits, judging, lineage, promotion, retractions
from registry.store import Store
from tests.support import invariants, scores, stores
from tests.support.answers import Answer
from tests.support.commands import Commands, Done
from tests.support.hub import Request, card_data
from tests.support.hub_uploads import Account, WritableHub

TOKEN = "hf_thisIsNobodysSecretToken"  # noqa: S105 - nobody's
REPOSITORY = "me/v7b"
TARGET = f"hf://{REPOSITORY}"
BASE = "qwen/base"
SHARD = "model.safetensors"


@pytest.fixture(scope="module")
def site() -> Iterator[WritableHub]:
    with WritableHub() as site:
        yield site


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def command(site, home) -> Iterator[Commands]:
    with Commands(site.environment(home) | {"HF_TOKEN": TOKEN}) as command:
        yield command


@pytest.fixture
def hub(site) -> WritableHub:
    """The Hub, empty but for the base's repository."""
    site.repositories.clear()
    site.pull_requests.clear()
    site.objects.clear()
    site.received.clear()
    site.requests.clear()
    site.faults.clear()
    site.refusals.clear()
    site.part = None
    site.accounts = {TOKEN: Account("me", orgs={"org": "write", "readers": "read"})}
    card = b"---\nlicense: other\nlicense_name: base-licence\nlicense_link: LICENSE\nlanguage:\n- en\n---\n# Base\n"
    folder_files = {"README.md": card, "LICENSE": b"Do what is right.\n"}
    site.repository(BASE).commit(folder_files)
    return site


@pytest.fixture
def store(hub, memory_path) -> Store:
    """A candidate that was pruned from a model of the Hub, compared with that, and served."""
    store = Store.init(memory_path / "models")
    source = stores.checkpoint(memory_path / "base")
    commit = hub.repository(BASE).commit(
        hub.main(BASE) | {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()}
    )
    snapshot = memory_path / "cache" / "models--qwen--base" / "snapshots" / commit
    snapshot.parent.mkdir(parents=True)
    (snapshot.parent.parent / "blobs").mkdir()
    source.rename(snapshot)
    base = store.add("base", snapshot)
    assert base.manifest.inputs.settings["source"] == f"hf://{BASE}"
    stores.prune(store, "v7b", base, experts=2, mix="broad", compression="0.25")
    policy = policy_of(memory_path)
    stores.observe(store, "base", right=8)
    stores.observe(store, "v7b", right=9)
    judging.judge(store, "v7b", policy=judging.read_policy(policy), baseline="base")
    promotion.promote(store, "v7b", policy=judging.read_policy(policy))
    return store


@pytest.fixture
def run(command, store):
    def run(*words: str | Path, root: Path = store.layout.root, **environment: str) -> Done:
        return command(*words, "--root", root, **({"HF_TOKEN": TOKEN} | environment))

    return run


def policy_of(folder: Path) -> Path:
    path = folder / "strict.yaml"
    rules = "[{floor: {pack: toolcall, at_least: 50}}, {drop: {pack: toolcall, at_most: 5}}]"
    path.write_text(f"name: strict\ngates:\n  - {{name: Toolcall, rules: {rules}}}\n")
    return path


def main(hub: WritableHub, name: str = REPOSITORY) -> dict[str, bytes]:
    """The files on main, without the Hub's own."""
    return {file: data for file, data in hub.main(name).items() if file != ".gitattributes"}


def model(store: Store, name: str = "v7b") -> dict[str, str]:
    return {file: each.digest for file, each in store.candidate(name).manifest.files.items()}


def digests(files: dict[str, bytes]) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}


def another(store: Store, folder: Path, *, seed: int = 5) -> None:
    """A second candidate that passes, v8."""
    stores.add(store, "v8", folder, seed=seed)
    stores.observe(store, "v8", right=10)
    judging.judge(store, "v8", policy=judging.read_policy(policy_of(folder)), baseline="base")


def sent(hub: WritableHub) -> list[Request]:
    """The requests that change anything."""
    return [each for each in hub.requests if each.method != "GET" and each.path != "/api/validate-yaml"]


# ── what is sent ──


def test_a_push_puts_the_model_its_card_and_its_records_on_main_and_tags_that(hub, store, run):
    done = run("push", "v7b", TARGET)
    assert done.returncode == 0, done.stderr
    files, digest = main(hub), store.candidate("v7b").digest
    assert {name: sha for name, sha in digests(files).items() if name in model(store)} == model(store)
    rest = files.keys() - model(store).keys()
    assert {"README.md", "LICENSE", ".sluice/records.json"} < rest
    assert all(name.startswith(".sluice/") for name in rest - {"README.md", "LICENSE"})
    repository = hub.repositories[REPOSITORY]
    assert repository.tags == {f"sluice-{digest[:12]}": repository.branches["main"]}
    assert [each.status for each in hub.pull_requests[REPOSITORY]] == ["merged"]
    assert not repository.private


def test_the_log_says_what_was_sent_where_and_by_which_verdict(hub, store, run):
    assert run("push", "v7b", TARGET).returncode == 0
    begun, done = [each.about for each in store.log.entries() if each.event == "push"]
    assert (begun["state"], done["state"]) == ("begun", "done")
    assert done["target"] == TARGET
    assert done["manifest"] == store.candidate("v7b").digest
    assert store.verdicts(done["manifest"])[done["verdict"]].verdict == "Pass"
    assert done["commit"] == hub.repositories[REPOSITORY].branches["main"]
    store.log.verify()


def test_a_push_that_is_done_sends_nothing_again_and_says_the_same(hub, store, run):
    first = run("push", "v7b", TARGET, "--json")
    hub.requests.clear()
    entries = len(list(store.log.entries()))
    second = run("push", "v7b", TARGET, "--json")
    assert second.returncode == 0, second.stderr
    assert not sent(hub)
    told = [json.loads(each.stdout) | {"pull_request": None} for each in (first, second)]
    assert told[0] == told[1]
    assert len(list(store.log.entries())) == entries


def test_the_card_says_what_the_model_is_and_how_sure_that_is(hub, store, run):
    assert run("push", "v7b", TARGET).returncode == 0
    card = main(hub)["README.md"].decode()
    about = card_data(card.encode())
    assert about["base_model"] == [BASE]
    assert about["base_model_relation"] == "finetune"
    assert (about["license"], about["license_name"], about["license_link"]) == ("other", "base-licence", "LICENSE")
    assert (about["pipeline_tag"], about["language"]) == ("text-generation", ["en"])
    assert {"sluice", "mixture-of-experts", "pruned"} <= set(about["tags"])
    candidate = store.candidate("v7b")
    assert candidate.manifest.inputs.mix is not None
    for words in (candidate.digest, candidate.manifest.inputs.mix.rows, "broad", "90.0", "toolcall", "temperature"):
        assert words in card, words
    assert re.search(r"\| toolcall \| 90\.0 \| \d+\.\d to \d+\.\d \| 10 . 1 \| 80\.0 \|", card)
    assert "### v7b: Pass" in card
    assert f"vllm serve {REPOSITORY}" in card
    assert f"registry add v7b {TARGET}" in card
    assert main(hub)["LICENSE"] == b"Do what is right.\n"


def test_whatever_the_bases_card_says_the_hubs_client_reads_ours_as_it_is_meant(hub, store, run):
    from huggingface_hub import ModelCard

    name = "x\n---\n# <script>"
    about = {"license": "other", "license_name": name, "license_link": "a: b", "language": ["en", "日本", "no"]}
    revision = store.candidate("base").manifest.inputs.settings["revision"]
    text = f"---\n{json.dumps(about)}\n---\n# Base\n".encode()
    hub.repositories[BASE].history[str(revision)]["README.md"] = text
    assert run("push", "v7b", TARGET).returncode == 0
    card = ModelCard(main(hub)["README.md"].decode())
    assert {key: card.data.to_dict()[key] for key in about} == about
    assert "<script" not in card.text


def test_a_model_that_was_judged_on_vllm_is_served_under_the_same_flags(store, run):
    digest = store.candidate("v7b").digest
    rows = scores.right(9, 10)
    evidence = scores.header(
        rows,
        pack="more",
        candidate=digest,
        engine="vllm",
        engine_version="0.32.0",
        server_flags={"max-model-len": 4096},
    ).model_copy(update={"responses": canonical.digest(b"{}\n")})
    store.add_evidence(evidence, rows=scores.written(rows), responses=b"{}\n", timings={})
    done = run("push", "v7b", TARGET, "--override", "--reason", "to try it", "--dry-run")
    assert "--tool-call-parser hermes --max-model-len 4096" in done.stdout, done.stderr


def test_text_from_outside_does_nothing_in_the_card(hub, store, run):
    reason = "</details><script>alert(1)</script> @everyone [x](javascript:y)"
    stores.observe(store, "v7b", right=1)  # now it is stale
    assert run("push", "v7b", TARGET, "--override", "--reason", reason).returncode == 0
    card = main(hub)["README.md"].decode()
    assert "<script" not in card
    assert "@everyone" not in card
    assert "](javascript" not in card
    assert "It has no Pass" in card


def test_a_flag_or_a_revision_that_somebody_made_up_leaves_its_place_in_the_card_nowhere(store, run, memory_path):
    evil = "1\n\n<script>alert(1)</script>\n\n[x](javascript:y) `"
    was = store.candidate("base").manifest.inputs
    settings = was.settings | {"source": "hf://qwen/gone", "revision": evil}
    shutil.copytree(store.layout.model("base"), memory_path / "evil")
    made = commits.commit(store, "evil", was.model_copy(update={"settings": settings}), memory_path / "evil")
    rows = scores.right(9, 10)
    on_vllm = {"engine": "vllm", "engine_version": "0.32.0", "server_flags": {"max-model-len": evil}}
    evidence = scores.header(rows, pack="more", candidate=made.digest, **on_vllm)
    evidence = evidence.model_copy(update={"responses": canonical.digest(b"{}\n")})
    store.add_evidence(evidence, rows=scores.written(rows), responses=b"{}\n", timings={})
    options = ("--override", "--reason", "to try it", "--license", "mit", "--dry-run")
    done = run("push", "evil", "hf://me/evil", *options)
    assert done.returncode == 0, done.stderr
    assert "<script" not in done.stdout
    assert "](javascript" not in done.stdout
    assert "    vllm serve me/evil\n" in done.stdout


def test_a_rehearsal_shows_the_card_and_sends_nothing(hub, store, run):
    done = run("push", "v7b", TARGET, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not sent(hub)
    assert not any(each.event == "push" for each in store.log.entries())
    for words in ("model.safetensors", ".sluice/records.json", "base_model", "How to serve it"):
        assert words in done.stdout
    assert "calibration rows" in done.stderr


def test_without_records_the_model_and_its_card_go_alone(hub, run, tmp_path):
    assert run("push", "v7b", TARGET, "--no-records").returncode == 0
    assert not [name for name in main(hub) if name.startswith(".sluice")]
    Store.init(tmp_path / "fresh")
    assert run("add", "v7b", TARGET, root=tmp_path / "fresh").returncode == 0
    assert Store.open(tmp_path / "fresh").candidate("v7b").manifest.inputs.op == "add"


def test_a_repository_that_is_made_can_be_private(hub, run):
    done = run("push", "v7b", TARGET, "--private")
    assert done.returncode == 0, done.stderr
    assert hub.repositories[REPOSITORY].private
    again = run("push", "v7b", TARGET, "--private")
    assert (again.returncode, "only its members can add it" in again.stderr) == (0, True)


def test_large_files_go_in_parts_where_the_hub_wants_parts(hub, store, run):
    hub.part = 1000
    done = run("push", "v7b", TARGET)
    assert done.returncode == 0, done.stderr
    assert sum("/lfs-part/" in each.path for each in hub.requests) > 3
    assert digests(main(hub))[SHARD] == model(store)[SHARD]


def test_a_second_version_sends_only_what_differs_and_leaves_nothing_of_the_first(hub, store, run, memory_path):
    assert run("push", "v7b", TARGET).returncode == 0
    another(store, memory_path)
    before = main(hub)
    hub.received.clear()
    done = run("push", "v8", TARGET)
    assert done.returncode == 0, done.stderr
    after = main(hub)
    assert {name: sha for name, sha in digests(after).items() if name in model(store, "v8")} == model(store, "v8")
    blobs = {name for name in before if name.startswith(".sluice/blobs/")}
    gone = {name for name in blobs if name not in after}
    assert gone, "the first one's calibration rows are not the second's"
    assert set(hub.received) == {model(store, "v8")[SHARD]}
    committed = next(each for each in hub.requests[::-1] if "/commit/refs/pr/" in each.path).body
    assert b'"path": "tokenizer.json"' not in committed, "what is there already is not sent again"
    assert len(hub.repositories[REPOSITORY].tags) == 2


def test_the_same_candidate_can_follow_another_and_gets_a_tag_of_its_own(store, run, memory_path):
    another(store, memory_path)
    tags = []
    for name in ("v7b", "v8", "v7b"):
        done = run("push", name, TARGET, "--json")
        assert done.returncode == 0, done.stderr
        tags.append(json.loads(done.stdout)["tag"])
    assert tags[2] == f"{tags[0]}.2"


# ── who may send what ──


def test_what_has_no_fresh_pass_is_not_sent(hub, store, run):
    stores.observe(store, "v7b", right=0)
    done = run("push", "v7b", TARGET)
    assert (done.returncode, "no verdict that rests on all its evidence" in done.stderr) == (2, True)
    judging.judge(store, "v7b", policy=judging.policy_of(store, None, channel="best"), baseline="base")
    done = run("push", "v7b", TARGET)
    assert (done.returncode, "FailToolcall" in done.stderr) == (2, True)
    assert not hub.requests
    assert run("push", "v7b", TARGET, "--override").returncode == 2, "an override needs a reason"
    assert not hub.requests


def test_an_override_is_in_the_log_before_anything_is_sent(hub, store, run):
    stores.observe(store, "v7b", right=0)
    hub.refusals.append(lambda each: Answer(500) if each in sent(hub) else None)
    assert run("push", "v7b", TARGET, "--override", "--reason", "they asked for it").returncode == 2
    entry = store.log.newest("push", target=TARGET)
    assert entry is not None
    assert (entry["override"], entry["reason"], entry["state"]) == (True, "they asked for it", "begun")


def test_a_pass_under_a_policy_of_ones_own_choice_is_none(hub, store, run, memory_path):
    weak = stores.write_policy(memory_path / "weak.yaml", at_least=1)
    judging.judge(store, "v7b", policy=judging.read_policy(weak), baseline=None)
    done = run("push", "v7b", TARGET, "--policy", weak)
    assert (done.returncode, "bound to another" in done.stderr) == (2, True)
    assert not hub.requests


@pytest.mark.parametrize(
    ("account", "target", "message"),
    [
        (None, TARGET, "does not take the token"),
        (Account("me", role="read"), TARGET, "may only read"),
        (Account("you"), TARGET, "you may not write to me"),
        (Account("me", orgs={"readers": "read"}), "hf://readers/v7b", "may not write to readers"),
        (Account("me"), "hf://me", "no address on the Hub"),
        (Account("me"), "oci", "nothing can be sent"),
        (Account("me"), f"{TARGET}@dev", "a push goes to main"),
    ],
)
def test_a_missing_right_is_said_before_anything_is_sent(hub, run, account, target, message):
    hub.accounts = {TOKEN: account} if account else {}
    done = run("push", "v7b", target)
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert not sent(hub)
    assert TOKEN not in done.stderr


def test_without_a_token_nothing_is_asked(hub, run):
    done = run("push", "v7b", TARGET, HF_TOKEN="")
    assert (done.returncode, "no token" in done.stderr) == (2, True)
    assert not hub.requests


def test_a_repository_that_holds_something_else_is_left_as_it_is(hub, run):
    files = {"README.md": b"# Poems\n", "poem.txt": b"roses"}
    hub.repository(REPOSITORY).commit(files)
    for words in ((), ("--replace",)):
        done = run("push", "v7b", TARGET, *words)
        assert (done.returncode, "holds something else" in done.stderr) == (2, True)
    assert hub.main(REPOSITORY) == files
    assert not sent(hub)


def test_another_ones_private_repository_of_that_name_is_not_touched(hub, run):
    hub.accounts["other"] = Account("org")
    hub.accounts[TOKEN] = Account("me", orgs={"org": "write"}, role="fineGrained")
    hub.repository("org/v7b", token="other").commit({"secret.txt": b"x"})  # noqa: S106 - nobody's
    done = run("push", "v7b", "hf://org/v7b")
    assert done.returncode in (2, 6), done.stderr
    assert hub.main("org/v7b") == {"secret.txt": b"x"}


def test_a_public_repository_is_not_taken_for_a_private_one(hub, run):
    hub.repository(REPOSITORY).commit({".gitattributes": b""})
    done = run("push", "v7b", TARGET, "--private")
    assert (done.returncode, "public already" in done.stderr) == (2, True)
    assert not sent(hub)


def test_that_a_repository_is_gated_is_said(hub, run):
    hub.repository(REPOSITORY, gated=True).commit({".gitattributes": b""})
    done = run("push", "v7b", TARGET)
    assert (done.returncode, "gated" in done.stderr) == (0, True), done.stderr


def test_a_damaged_candidate_is_not_sent(hub, store, run):
    for what in (model(store)[SHARD], next(iter(store.evidence(store.candidate("v7b").digest).values())).rows):
        blob = store.layout.blob(str(what))
        data = blob.read_bytes()
        blob.chmod(0o644)
        blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        done = run("push", "v7b", TARGET)
        assert done.returncode in (2, 5), done.stderr
        assert not sent(hub)
        blob.write_bytes(data)
        blob.chmod(0o444)
    assert run("push", "v7b", TARGET).returncode == 0


def test_a_card_that_the_hub_does_not_take_is_said_before_anything_is_sent(hub, run):
    for words in (("--dry-run",), ()):
        done = run("push", "v7b", TARGET, "--license", "my own licence", *words)
        assert (done.returncode, "license must be an id" in done.stderr) == (2, True), done.stderr
        assert not sent(hub)


def test_a_base_whose_licence_cannot_be_read_needs_one_stated(hub, run):
    del hub.repositories[BASE]
    done = run("push", "v7b", TARGET)
    assert (done.returncode, "--license" in done.stderr) == (2, True)
    done = run("push", "v7b", TARGET, "--license", "apache-2.0")
    assert done.returncode == 0, done.stderr
    assert card_data(main(hub)["README.md"])["license"] == "apache-2.0"


# ── what goes wrong on the way ──


def whole(hub: WritableHub, store: Store, name: str) -> bool:
    """Whether main holds the whole candidate; it must hold nothing of it otherwise."""
    if name not in hub.repositories:
        return False
    there = digests(main(hub, name))
    if not there:
        return False
    assert {file: there.get(file) for file in model(store)} == model(store), "main is half"
    assert {"README.md", ".sluice/records.json"} <= there.keys(), "main is half"
    return True


def watched(hub: WritableHub, name: str) -> list[frozenset[str]]:
    """The names of main's files after every single request."""
    seen: list[frozenset[str]] = []
    hub.faults.append(lambda *_: seen.append(frozenset(main(hub, name) if name in hub.repositories else ())))
    return seen


class Fault:
    """Fails the request of this number: dropped before it is done, or after; or answered with a status."""

    def __init__(self, hub: WritableHub, number: int, kind: str) -> None:
        self.failed: Request | None = None
        self._left, self._kind = number, kind
        hub.refusals[:], hub.faults[:] = [self._refuse], [self._fail]

    def _refuse(self, request: Request) -> Answer | None:
        self._left -= 1
        if self._left:
            return None
        self.failed = request
        if self._kind == "after":
            return None
        if self._kind == "before":
            return Answer(dropped=True)
        return Answer(int(self._kind), {"Retry-After": "1"}, b'{"error":"no"}')

    def _fail(self, request: Request, _: Answer) -> Answer | None:
        return Answer(dropped=True) if request is self.failed and self._kind == "after" else None


def test_wherever_a_push_is_interrupted_main_is_never_half_and_running_it_again_finishes(hub, store, run):
    assert run("push", "v7b", "hf://me/whole").returncode == 0
    asked = list(hub.requests)
    changing = sent(hub)
    shard = model(store)[SHARD]
    statuses = ("429", "500", "409", "503", "412", "403", "502")
    ended = set()
    for number, request in enumerate(asked, 1):
        status = [statuses[number % len(statuses)]] if request in changing else []
        for kind in ("before", "after", *status):
            name = f"me/{kind}-{number}"
            hub.received.clear()
            fault = Fault(hub, number, kind)
            seen = watched(hub, name)
            first = run("push", "v7b", f"hf://{name}")
            assert first.returncode in (0, 2, 6), (number, kind, first.stderr)
            assert first.returncode == 0 or "error:" in first.stderr
            assert first.returncode != 0 or whole(hub, store, name)
            ended.add(first.returncode)
            if first.returncode:
                second = run("push", "v7b", f"hf://{name}")
                assert second.returncode == 0, (number, kind, first.stderr, second.stderr)
            assert fault.failed is not None
            assert set(seen) <= {frozenset(), frozenset(main(hub, name))}, "main was half for a moment"
            assert whole(hub, store, name)
            repository = hub.repositories[name]
            assert repository.branches["main"] in repository.tags.values()
            assert len([each for each in hub.pull_requests[name] if each.status == "merged"]) == 1
            # of bytes whose answer was lost the client cannot know that they came
            times = 1 + (kind == "after" and fault.failed.path.startswith("/lfs-put/"))
            assert hub.received[shard] <= times * len(store.read(shard)), "no finished file is sent again"
    assert ended >= {0, 2}


def test_wherever_a_second_version_is_interrupted_main_is_the_one_or_the_other(hub, store, run, memory_path):
    assert run("push", "v7b", TARGET).returncode == 0
    another(store, memory_path)
    before = copy.deepcopy((hub.repositories[REPOSITORY], hub.pull_requests[REPOSITORY]))
    first = main(hub)
    hub.requests.clear()
    assert run("push", "v8", TARGET).returncode == 0
    second = main(hub)
    assert first.keys() - second.keys(), "a file of the first that must go is what this is about"
    asked, changing = list(hub.requests), sent(hub)
    for number, request in enumerate(asked, 1):
        if request in changing:
            hub.repositories[REPOSITORY], hub.pull_requests[REPOSITORY] = copy.deepcopy(before)
            Fault(hub, number, "after")
            seen: list[bool] = []
            hub.faults.append(lambda *_, seen=seen: seen.append(main(hub) in (first, second)))
            done = run("push", "v8", TARGET)
            assert main(hub) in (first, second)
            assert done.returncode == 0 or run("push", "v8", TARGET).returncode == 0
            assert all(seen)
            assert main(hub) == second
            assert hub.repositories[REPOSITORY].branches["main"] in hub.repositories[REPOSITORY].tags.values()


@pytest.mark.parametrize("where", ["before the merge", "after the look"])
def test_a_main_that_somebody_changes_meanwhile_is_said_and_not_overwritten(hub, run, where):
    def change(request: Request) -> None:
        moment = "/commit/" in request.path if where == "before the merge" else request.path.endswith("/merge")
        if moment:
            hub.refusals.clear()
            hub.repositories[REPOSITORY].commit(hub.main(REPOSITORY) | {"README.md": b"# Mine\n"})

    hub.refusals.append(change)
    done = run("push", "v7b", TARGET)
    assert done.returncode == 6, done.stderr
    assert main(hub) == {"README.md": b"# Mine\n"}
    assert not hub.repositories[REPOSITORY].tags
    again = run("push", "v7b", TARGET)
    assert (again.returncode, "something else" in again.stderr) == (2, True)


def test_what_others_changed_since_the_last_push_gives_way_only_if_that_is_wanted(hub, run):
    assert run("push", "v7b", TARGET).returncode == 0
    repository = hub.repositories[REPOSITORY]
    repository.commit(hub.main(REPOSITORY) | {"README.md": b"# Edited\n", "heat.png": b"\x89PNG", "old.json": b"{}"})
    done = run("push", "v7b", TARGET)
    assert (done.returncode, "changed since the last push" in done.stderr) == (2, True)
    assert main(hub)["README.md"] == b"# Edited\n"
    done = run("push", "v7b", TARGET, "--replace")
    assert done.returncode == 0, done.stderr
    assert main(hub)["README.md"] != b"# Edited\n"
    assert main(hub)["heat.png"] == b"\x89PNG", "what is no model's stays"
    assert "old.json" not in main(hub), "what a loader could take for the model's goes"


def test_a_pull_request_on_what_main_was_is_closed_and_another_takes_its_place(hub, run):
    hub.refusals.append(lambda each: Answer(500) if each.path.endswith("/merge") else None)
    assert run("push", "v7b", TARGET).returncode == 2
    hub.refusals.clear()
    hub.repositories[REPOSITORY].commit({".gitattributes": b"* text\n"})
    hub.received.clear()
    done = run("push", "v7b", TARGET)
    assert done.returncode == 0, done.stderr
    assert [each.status for each in hub.pull_requests[REPOSITORY]] == ["closed", "merged"]
    assert not hub.received, "no finished file is sent again"


def test_the_pull_requests_of_others_are_left_alone(hub, run):
    hub.accounts["other"] = Account("other")
    hub.repository(REPOSITORY).commit({".gitattributes": b""})
    head = {"Authorization": "Bearer other"}
    for title in ("Sluice: 0123 on 4567", "please merge", "more"):
        hub.answer(
            Request("POST", f"/api/models/{REPOSITORY}/discussions", head["Authorization"], None, "", {},
                    json.dumps({"title": title, "description": "", "pullRequest": True}).encode())
        )  # fmt: skip
    assert run("push", "v7b", TARGET).returncode == 0
    assert [each.status for each in hub.pull_requests[REPOSITORY]] == ["draft"] * 3 + ["merged"]


@pytest.mark.parametrize("file", [SHARD, "config.json", ".sluice/records.json"])
@pytest.mark.parametrize("revision", ["commit", "main"])
def test_a_file_that_the_hub_states_another_digest_of_is_not_merged_or_not_tagged(hub, run, file, revision):
    def lie(request: Request, answer: Answer) -> Answer | None:
        path = f"/api/models/{REPOSITORY}"
        is_main = request.path == path and any(
            each.status == "merged" for each in hub.pull_requests.get(REPOSITORY, [])
        )
        is_commit = re.fullmatch(path + "/revision/[0-9a-f]{40}", request.path) is not None
        if request.method != "GET" or not (is_main if revision == "main" else is_commit):
            return None
        said = json.loads(answer.body)
        for each in said["siblings"]:
            if each["rfilename"] == file:
                each.get("lfs", each)["sha256" if "lfs" in each else "blobId"] = "0" * 40
        return Answer(answer.status, answer.headers, json.dumps(said).encode())

    hub.faults.append(lie)
    done = run("push", "v7b", TARGET)
    assert (done.returncode, file in done.stderr) == (5, True), done.stderr
    assert not hub.repositories[REPOSITORY].tags
    assert bool(main(hub)) == (revision == "main")


def test_a_file_that_somebody_slips_into_the_pull_request_is_not_merged(hub, run):
    def slip(request: Request, _: Answer) -> None:
        if "/commit/refs/pr/1" in request.path:
            hub.faults.clear()
            repository = hub.repositories[REPOSITORY]
            head = repository.history[repository.branches["refs/pr/1"]]
            commit = repository.branches["refs/pr/1"]
            repository.history[commit] = head | {"modeling_evil.py": b"import os\n"}

    hub.faults.append(slip)
    done = run("push", "v7b", TARGET)
    assert (done.returncode, "modeling_evil.py" in done.stderr) == (5, True), done.stderr
    assert not main(hub)


def test_a_pull_request_that_somebody_closed_meanwhile_is_not_opened_again(hub, run):
    def close(request: Request, _: Answer) -> None:
        if "/commit/refs/pr/1" in request.path:
            hub.faults.clear()
            hub.pull_requests[REPOSITORY][0].status = "closed"

    hub.faults.append(close)
    done = run("push", "v7b", TARGET)
    assert (done.returncode, "the status closed" in done.stderr) == (6, True), done.stderr
    assert hub.pull_requests[REPOSITORY][0].status == "closed"
    assert not main(hub)
    assert run("push", "v7b", TARGET).returncode == 0
    assert [each.status for each in hub.pull_requests[REPOSITORY]] == ["closed", "merged"]


@pytest.mark.parametrize("body", [b"<html>", b"null", b"[]", b"{}"])
def test_answers_that_make_no_sense_are_said_without_a_traceback(hub, run, body):
    places = (
        "whoami",
        "/api/models/",
        "/refs",
        "/repos/create",
        "/discussions",
        "/preupload/",
        "/info/lfs/",
        "/commit/",
    )
    for path in (*places, "/status"):
        hub.faults[:] = [lambda each, _, path=path: Answer(200, {}, body) if path in each.path else None]
        name = f"me/odd{abs(hash((path, body)))}"
        done = run("push", "v7b", f"hf://{name}")
        assert done.returncode == 2 or (body == b"{}" and done.returncode in (0, 5)), (path, done.stderr)
        assert "Traceback" not in done.stderr


@pytest.mark.parametrize("how", ["its evidence is retracted", "it is judged again", "its shard is lost"])
def test_what_makes_it_unfit_while_it_is_sent_keeps_it_from_being_merged(hub, store, run, memory_path, how):
    def meddle(request: Request) -> None:
        if request.method == "POST" and request.path.endswith("/discussions"):
            hub.refusals.clear()
            if how == "its evidence is retracted":
                for each in store.evidence(store.candidate("v7b").digest):
                    retractions.retract(store, each, "the server was broken")
            elif how == "it is judged again":
                stores.observe(store, "v7b", right=1)
                judging.judge(store, "v7b", policy=judging.read_policy(policy_of(memory_path)), baseline="base")
            else:
                store.layout.blob(model(store)[SHARD]).unlink()

    hub.refusals.append(meddle)
    done = run("push", "v7b", TARGET)
    message = f"{SHARD} is gone" if "shard" in how else "judged otherwise"
    assert (done.returncode, message in done.stderr) == (5 if "shard" in how else 6, True), done.stderr
    assert not main(hub)
    assert not hub.repositories[REPOSITORY].tags
    again = run("push", "v7b", TARGET)
    assert again.returncode in (2, 5), "nor is it sent again"


def test_what_the_hub_makes_one_wait_for_is_said_and_no_signature_is(hub, run):
    first = []

    def busy(request: Request, _: Answer) -> Answer | None:
        if "/lfs-put/" not in request.path or first:
            return None
        first.append(request)
        return Answer(429, {"Retry-After": "1"})

    hub.faults.append(busy)
    done = run("push", "v7b", TARGET)
    assert (done.returncode, "Rate limited. Waiting" in done.stderr) == (0, True), done.stderr
    assert "signature" not in done.stderr


def test_a_hub_that_answers_nothing_is_not_waited_for_for_ever(hub, store, tmp_path):
    def hang(request: Request, _: Answer) -> None:
        if "discussions" in request.path:
            threading.Event().wait(1.5)

    hub.faults.append(hang)
    program = "from registry.remotes import hub\nhub.PATIENCE = 0.3\nfrom registry.__main__ import main\nmain()"
    done = subprocess.run(
        [sys.executable, "-c", program, "push", "v7b", TARGET, "--root", store.layout.root],
        env=os.environ | hub.environment(tmp_path / "home") | {"HF_TOKEN": TOKEN},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, "cannot be reached" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("address", ["hf://me:{}@huggingface.co/me/v7b", "https://me:{}@huggingface.co/me/v7b"])
def test_a_password_in_an_address_is_not_repeated(run, address):
    for words in (("push", "v7b"), ("add", "x")):
        done = run(*words, address.format("hidden"))
        assert (done.returncode, "hidden" in done.stderr, "…@" in done.stderr) == (2, False, True), done.stderr


@pytest.mark.parametrize("address", ["hf://me/gated", f"hf://{BASE}@gone"])
def test_a_password_in_the_endpoint_is_not_repeated(hub, store, tmp_path, address):
    hub.repository("me/gated", gated=True).commit({"config.json": b"{}"})
    settings = {"HF_ENDPOINT": hub.url.replace("http://", "http://me:hidden@"), "HF_DEBUG": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "registry", "add", "x", address, "--root", store.layout.root],
        env=os.environ | hub.environment(tmp_path / "home") | settings,
        capture_output=True,
        text=True,
    )
    said = done.stdout + done.stderr
    assert (done.returncode, "hidden" in said, "…@" in said) == (2, False, True), said


@pytest.mark.parametrize("kept", ["in the environment", "in a file"])
def test_no_log_no_record_no_report_and_no_message_holds_the_token(hub, run, home, memory_path, kept):
    said = []
    known = {} if kept == "in the environment" else {"HF_TOKEN": ""}
    if known:
        (home / "token").write_text(TOKEN)
    for status in (None, 400, 401, 403, 404, 409, 413, 429, 500):
        answer = Answer(status or 200, {"X-Error-Message": f"bad token {TOKEN}"}, f'{{"error":"no {TOKEN}"}}'.encode())
        hub.refusals[:] = [lambda each, answer=answer: answer if "/commit/" in each.path else None] if status else []
        said.append(run("push", "v7b", TARGET, **known))
    (home / "token").unlink(missing_ok=True)
    assert {each.authorization for each in hub.requests if each.path.startswith("/api/")} == {f"Bearer {TOKEN}"}
    assert all(TOKEN not in each.stdout + each.stderr for each in said)
    assert {each.returncode for each in said} <= {0, 2, 6}
    for path in memory_path.rglob("*"):
        if path.is_file():
            assert TOKEN.encode() not in path.read_bytes(), path
    everything = b"".join(data for files in hub.repositories[REPOSITORY].history.values() for data in files.values())
    assert TOKEN.encode() not in everything
    assert not any(each.authorization for each in hub.requests if each.path.startswith(("/lfs-put", "/storage")))


# ── what comes back ──


def test_add_into_a_fresh_registry_gives_the_same_digests_lineage_and_verdict(hub, store, run, tmp_path):
    assert run("push", "v7b", TARGET).returncode == 0
    fresh = Store.init(tmp_path / "fresh")
    done = run("add", "copy", TARGET, root=fresh.layout.root)
    assert done.returncode == 0, done.stderr
    here, there = store.candidate("v7b"), fresh.candidate("copy")
    assert there.digest == here.digest
    assert list(lineage.ancestry(fresh, there.digest)) == list(lineage.ancestry(store, here.digest))
    assert fresh.verdicts(there.digest) == store.verdicts(here.digest)
    assert fresh.evidence(there.digest) == store.evidence(here.digest)
    policy = judging.policy_of(store, None, channel="best")
    verdict = judging.fresh(fresh, there, policy.identity())
    assert verdict is not None
    assert verdict.verdict == "Pass"
    assert promotion.promote(fresh, "copy", policy=policy).override is False
    invariants.check(fresh.layout.root)
    assert run("verify", "copy", root=fresh.layout.root).returncode == 0
    assert run("doctor", root=fresh.layout.root).returncode == 0
    hub.requests.clear()
    entries = len(list(fresh.log.entries()))
    again = run("add", "copy", TARGET, root=fresh.layout.root)
    assert (again.returncode, "is there already" in again.stderr) == (0, True)
    assert len(list(fresh.log.entries())) == entries
    assert not any("storage" in each.path for each in hub.requests)


def test_an_add_that_breaks_off_among_the_records_goes_on(hub, run, store, tmp_path):
    assert run("push", "v7b", TARGET).returncode == 0
    hub.requests.clear()
    Store.init(tmp_path / "whole")
    assert run("add", "v7b", TARGET, root=tmp_path / "whole").returncode == 0
    numbers = [number for number, each in enumerate(hub.requests, 1) if ".sluice" in each.path]
    assert len(numbers) >= 8
    for number in numbers[::2]:
        root = Store.init(tmp_path / f"{number}").layout.root
        Fault(hub, number, "500")
        first = run("add", "v7b", TARGET, root=root)
        hub.refusals.clear()
        assert first.returncode in (0, 2), first.stderr
        assert run("add", "v7b", TARGET, root=root).returncode == 0
        there = Store.open(root).candidate("v7b")
        assert Store.open(root).verdicts(there.digest) == store.verdicts(there.digest)
        invariants.check(root)


@pytest.mark.parametrize(("file", "size"), [(".sluice/records.json", 1 << 30), ("blob", 7)])
def test_records_larger_than_can_be_are_not_fetched(hub, run, tmp_path, file, size):
    assert run("push", "v7b", TARGET).returncode == 0
    name = file if file != "blob" else next(each for each in main(hub) if each.startswith(".sluice/blobs/"))

    def lie(request: Request, answer: Answer) -> Answer | None:
        if request.path != f"/api/models/{REPOSITORY}":
            return None
        said = json.loads(answer.body)
        next(each for each in said["siblings"] if each["rfilename"] == name)["size"] = size
        return Answer(answer.status, answer.headers, json.dumps(said).encode())

    hub.faults.append(lie)
    hub.requests.clear()
    Store.init(tmp_path / "fresh")
    done = run("add", "v7b", TARGET, root=tmp_path / "fresh")
    assert (done.returncode, "too large" in done.stderr or "state" in done.stderr) == (5, True), done.stderr
    assert not [each for each in hub.requests if each.path.endswith(name)]
    assert not Store.open(tmp_path / "fresh").names()


def test_what_comes_back_can_be_sent_on_and_is_the_same(hub, store, run, tmp_path):
    assert run("push", "v7b", TARGET).returncode == 0
    fresh = Store.init(tmp_path / "fresh")
    assert run("add", "v7b", TARGET, root=fresh.layout.root).returncode == 0
    promotion.promote(fresh, "v7b", policy=judging.policy_of(store, None, channel="best"))
    done = run("push", "v7b", "hf://org/v7b", root=fresh.layout.root)
    assert done.returncode == 0, done.stderr
    first, second = main(hub), main(hub, "org/v7b")
    assert first[".sluice/records.json"] == second[".sluice/records.json"]
    assert {name for name in first if first[name] != second.get(name)} == {"README.md"}


@pytest.mark.usefixtures("hub")
def test_names_with_spaces_and_of_any_script_go_and_come_back(store, run, tmp_path):
    source = stores.checkpoint(tmp_path / "odd", seed=5)
    (source / "使用说明 (2)%20.txt").write_text("it")
    store.add("odd", source)
    done = run("push", "odd", TARGET, "--license", "mit", "--override", "--reason", "its names")
    assert done.returncode == 0, done.stderr
    fresh = Store.init(tmp_path / "fresh")
    assert run("add", "odd", TARGET, root=fresh.layout.root).returncode == 0
    assert fresh.candidate("odd").manifest.files == store.candidate("odd").manifest.files


def test_hf_download_gives_the_same_bytes(hub, store, run, tmp_path):
    assert run("push", "v7b", TARGET).returncode == 0
    program = Path(sys.executable).with_name("hf")
    done = subprocess.run(
        [program, "download", REPOSITORY, "--local-dir", tmp_path / "got"],
        env=os.environ | hub.environment(tmp_path / "home") | {"HF_TOKEN": TOKEN},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    got = {
        path.relative_to(tmp_path / "got").as_posix(): path.read_bytes()
        for path in (tmp_path / "got").rglob("*")
        if path.is_file() and ".cache" not in path.parts
    }
    assert got == hub.main(REPOSITORY)
    fresh = Store.init(tmp_path / "fresh")
    assert fresh.add("v7b", tmp_path / "got").digest == store.candidate("v7b").digest


def test_retractions_travel_so_that_a_verdict_holds_there_as_it_does_here(store, run, tmp_path):
    wrong = stores.observe(store, "v7b", right=2)
    retractions.retract(store, wrong, "the server was broken")
    done = run("push", "v7b", TARGET)
    assert done.returncode == 0, done.stderr
    fresh = Store.init(tmp_path / "fresh")
    assert run("add", "v7b", TARGET, root=fresh.layout.root).returncode == 0
    digest = fresh.candidate("v7b").digest
    assert retractions.retracted(fresh, digest) == retractions.retracted(store, digest)
    policy = judging.policy_of(store, None, channel="best")
    assert judging.fresh(fresh, fresh.candidate("v7b"), policy.identity()) is not None
