"""`registry push` to an OCI registry: what is sent, that a tag never names half of it, and that it comes back.

The registry is Debian's docker-registry; a proxy before it counts, breaks and forges. `oras` is Debian's too.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gates.errors import UsageError
from registry import judging, lineage, promotion, retractions
from registry.carried import records
from registry.pushing import eligibility
from registry.pushing import oci as to_oci
from registry.remotes import modelpack, oci
from registry.store import Store
from tests.support import invariants, stores, tiny
from tests.support.answers import Answer
from tests.support.commands import Commands, Done
from tests.support.oci import Asked, Proxy, Registry, Users

pytestmark = pytest.mark.needs("oci")

SHARD = "model.safetensors"
PASSWORD = "nobodysSecretPassword"  # noqa: S105 - nobody's
LAYERS = "application/vnd.cncf.model."


@pytest.fixture(scope="session")
def behind(tmp_path_factory) -> Iterator[Registry]:
    with Registry(tmp_path_factory.mktemp("oci")) as registry:
        yield registry


@pytest.fixture(scope="session")
def front(behind) -> Iterator[Proxy]:
    with Proxy(behind.port) as proxy:
        yield proxy


@pytest.fixture
def proxy(front) -> Proxy:
    front.clear()
    return front


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def command(home) -> Iterator[Commands]:
    with Commands({"HOME": str(home), "DOCKER_CONFIG": str(home / "docker")}) as command:
        yield command


@pytest.fixture
def repository(request) -> str:
    """A repository of this test's own."""
    return "me/" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:16]


@pytest.fixture
def target(proxy, repository) -> str:
    return f"oci://127.0.0.1:{proxy.port}/{repository}:v1"


@pytest.fixture
def store(memory_path) -> Store:
    """v7b, pruned from base, compared with that, and served."""
    store, policy = stores.judged(memory_path)
    promotion.promote(store, "v7b", policy=policy)
    return store


@pytest.fixture
def run(command, store):
    def run(*words: str | Path, root: Path = store.layout.root, **environment: str) -> Done:
        return command(*words, "--root", root, **environment)

    return run


@pytest.fixture
def sent(run, target, proxy) -> None:
    """v7b is there."""
    done = run("push", "v7b", target)
    assert done.returncode == 0, done.stderr
    proxy.requests.clear()


def model(store: Store, name: str = "v7b") -> dict[str, str]:
    return {file: each.digest for file, each in store.candidate(name).manifest.files.items()}


def another(store: Store, folder: Path) -> None:
    """A second candidate that passes, v8: another shard, the same of everything else."""
    stores.add(store, "v8", folder, seed=5)
    stores.judge(store, "v8", folder / "strict.yaml", right=10)


def changing(proxy: Proxy) -> list[Asked]:
    return [each for each in proxy.requests if each.method not in ("GET", "HEAD")]


def put_blobs(proxy: Proxy) -> list[str]:
    """The digests of the blobs that were sent."""
    return [
        each.path.rpartition("sha256:")[2] for each in proxy.requests if each.method == "PUT" and "/blobs/" in each.path
    ]


def tagged(behind: Registry, repository: str, tag: str = "v1") -> bool:
    try:
        behind.manifest(repository, tag)
    except KeyError:
        return False
    return True


def check_same(store: Store, root: Path, name: str = "v7b", own: str = "v7b") -> None:
    """A registry holds the candidate with its lineage, evidence and verdict."""
    fresh = Store.open(root)
    here, there = store.candidate(own), fresh.candidate(name)
    assert there.digest == here.digest
    assert list(lineage.ancestry(fresh, there.digest)) == list(lineage.ancestry(store, here.digest))
    assert fresh.verdicts(there.digest) == store.verdicts(here.digest)
    assert fresh.evidence(there.digest) == store.evidence(here.digest)
    invariants.check(root)


# ── what is sent ──


def test_a_push_is_an_artifact_with_a_layer_a_file_in_modelpacks_media_types(behind, store, run, target, repository):
    done = run("push", "v7b", target, "--json")
    assert done.returncode == 0, done.stderr
    raw = behind.get(f"{repository}/manifests/v1")
    manifest = json.loads(raw)
    assert json.loads(done.stdout)["digest"] == "sha256:" + hashlib.sha256(raw).hexdigest()
    assert manifest["artifactType"] == f"{LAYERS}manifest.v1+json"
    assert manifest["config"]["mediaType"] == f"{LAYERS}config.v1+json"
    layers = {each["annotations"]["org.opencontainers.image.title"]: each for each in manifest["layers"]}
    assert {name: each["digest"] for name, each in layers.items() if name in model(store)} == {
        name: f"sha256:{digest}" for name, digest in model(store).items()
    }
    kinds = {name: each["mediaType"] for name, each in layers.items()}
    assert kinds[SHARD] == f"{LAYERS}weight.v1.raw"
    assert kinds["config.json"] == kinds["tokenizer.json"] == f"{LAYERS}weight.config.v1.raw"
    assert kinds["README.md"] == kinds[".sluice/records.json"] == f"{LAYERS}doc.v1.raw"
    assert {kind for name, kind in kinds.items() if "/blobs/" in name} == {f"{LAYERS}dataset.v1.raw"}
    config = json.loads(behind.get(f"{repository}/blobs/{manifest['config']['digest']}"))
    assert config["modelfs"]["diffIds"] == [each["digest"] for each in manifest["layers"]]
    assert (config["descriptor"]["name"], config["config"]["format"]) == ("v7b", "safetensors")


def test_the_log_says_what_was_sent_where_and_by_which_verdict(store, run, target):
    done = run("push", "v7b", target, "--json")
    begun, finished = [each.about for each in store.log.entries() if each.event == "push"]
    assert (begun["state"], finished["state"]) == ("begun", "done")
    assert (finished["target"], finished["manifest"]) == (target, store.candidate("v7b").digest)
    assert f"sha256:{finished['digest']}" == json.loads(done.stdout)["digest"]
    assert store.verdicts(finished["manifest"])[finished["verdict"]].verdict == "Pass"
    store.log.verify()


@pytest.mark.usefixtures("sent")
def test_oras_pulls_byte_identical_files(store, run, target, tmp_path):
    done = subprocess.run(
        ["oras", "pull", "--plain-http", target.removeprefix("oci://"), "--output", tmp_path / "got"],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    got = {
        path.relative_to(tmp_path / "got").as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (tmp_path / "got").rglob("*")
        if path.is_file()
    }
    listed = json.loads(run("push", "v7b", target, "--dry-run", "--json").stdout)["files"]
    assert got.keys() == listed.keys()
    assert got.items() >= model(store).items()
    fresh = Store.init(tmp_path / "fresh")
    assert fresh.add("v7b", tmp_path / "got").digest == store.candidate("v7b").digest


def test_a_push_that_is_done_sends_nothing_again_and_says_the_same(proxy, store, run, target):
    first = json.loads(run("push", "v7b", target, "--json").stdout)
    proxy.requests.clear()
    entries = len(list(store.log.entries()))
    second = json.loads(run("push", "v7b", target, "--json").stdout)
    assert not changing(proxy)
    assert second == first | {"missing": 0}
    assert len(list(store.log.entries())) == entries


@pytest.mark.usefixtures("sent")
def test_a_second_version_transfers_only_what_differs(proxy, behind, store, run, target, repository, memory_path):
    there = {each["digest"] for each in behind.manifest(repository, "v1")["layers"]}
    another(store, memory_path)
    done = run("push", "v8", target.replace(":v1", ":v2"))
    assert done.returncode == 0, done.stderr
    manifest = behind.manifest(repository, "v2")
    new = {each["digest"] for each in (*manifest["layers"], manifest["config"])} - there
    digests = put_blobs(proxy)
    assert sorted(f"sha256:{each}" for each in digests) == sorted(new)
    assert model(store, "v8")[SHARD] in digests
    assert model(store, "v8")["tokenizer.json"] not in digests
    assert sum(each.size for each in proxy.requests if "/blobs/" in each.path) < 2 * sum(
        each["size"] for each in (*manifest["layers"], manifest["config"]) if each["digest"] in new
    )


def test_two_files_with_the_same_bytes_are_sent_once_and_both_come_back(
    proxy, store, run, target, memory_path, tmp_path
):
    source = stores.checkpoint(memory_path / "twins", seed=7)
    (source / "a.json").write_text("{}")
    (source / "b.json").write_text("{}")
    (source / "empty.txt").write_text("")
    store.add("twins", source)
    done = run("push", "twins", target, "--override", "--reason", "to try it")
    assert done.returncode == 0, done.stderr
    digests = put_blobs(proxy)
    assert len(digests) == len(set(digests))
    fresh = Store.init(tmp_path / "fresh")
    assert run("add", "twins", target, root=tmp_path / "fresh").returncode == 0
    assert fresh.candidate("twins").digest == store.candidate("twins").digest


def test_a_rehearsal_shows_the_card_and_sends_nothing(proxy, store, run, target):
    done = run("push", "v7b", target, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert not changing(proxy)
    assert not any(each.event == "push" for each in store.log.entries())
    assert all(words in done.stdout for words in (SHARD, ".sluice/records.json", "How to serve it", target))


def test_without_records_the_model_and_its_card_go_alone(behind, run, target, repository, tmp_path):
    assert run("push", "v7b", target, "--no-records").returncode == 0
    titles = [
        each["annotations"]["org.opencontainers.image.title"] for each in behind.manifest(repository, "v1")["layers"]
    ]
    assert not [each for each in titles if each.startswith(".sluice")]
    fresh = Store.init(tmp_path / "fresh")
    done = run("add", "v7b", target, root=tmp_path / "fresh")
    assert done.returncode == 0, done.stderr
    inputs = fresh.candidate("v7b").manifest.inputs
    digest = hashlib.sha256(behind.get(f"{repository}/manifests/v1")).hexdigest()
    assert (inputs.op, inputs.settings["source"]) == ("add", target.removesuffix(":v1"))
    assert inputs.settings["revision"] == f"sha256:{digest}"
    again = run("add", "v7b", f"{target}@sha256:{digest}", root=tmp_path / "fresh")
    assert (again.returncode, "is there already" in again.stderr) == (0, True)


# ── who may send what ──


def test_what_has_no_fresh_pass_is_not_sent_but_by_an_override_that_the_log_keeps(proxy, store, run, target):
    stores.observe(store, "v7b", right=0)
    done = run("push", "v7b", target)
    assert (done.returncode, "no verdict that rests on all its evidence" in done.stderr) == (2, True)
    assert run("push", "v7b", target, "--override").returncode == 2, "an override needs a reason"
    assert not proxy.requests
    proxy.refusals.append(lambda each: Answer(500) if each.method == "POST" else None)
    assert run("push", "v7b", target, "--override", "--reason", "they asked for it").returncode == 2
    entry = store.log.newest("push", target=target)
    assert entry is not None
    assert (entry["override"], entry["reason"], entry["state"]) == (True, "they asked for it", "begun")


def test_a_damaged_candidate_is_not_sent(proxy, store, run, target):
    for what in (model(store)[SHARD], next(iter(store.evidence(store.candidate("v7b").digest).values())).rows):
        blob = store.layout.blob(str(what))
        data = blob.read_bytes()
        blob.chmod(0o644)
        blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert run("push", "v7b", target).returncode in (2, 5)
        assert not changing(proxy)
        blob.write_bytes(data)
        blob.chmod(0o444)


def test_what_changes_after_it_was_verified_is_refused_by_the_registry(proxy, behind, store, run, target, repository):
    blob = store.layout.blob(model(store)[SHARD])
    data = blob.read_bytes()

    def rot(asked: Asked) -> None:
        if asked.method == "POST" and blob.read_bytes() == data:
            blob.chmod(0o644)
            blob.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))

    proxy.refusals.append(rot)
    done = run("push", "v7b", target)
    assert (done.returncode, "is not what its digest says" in done.stderr) == (5, True), done.stderr
    assert not tagged(behind, repository)


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("oci://{host}/me/v7b", "needs a tag"),
        ("oci://{host}/me/v7b:v1@sha256:" + "0" * 64, "needs a tag, and no digest"),
        ("oci://{host}/Me/v7b:v1", "no address in an OCI registry"),
        ("oci://{host}/../v7b:v1", "no address in an OCI registry"),
        ("oci://{host}", "no address in an OCI registry"),
        ("ftp://{host}/me/v7b", "nothing can be sent to"),
        ("oci://127.0.0.1:9/me/v7b:v1", "cannot be reached"),
        ("oci://no.such.host.invalid/me/v7b:v1", "cannot be reached"),
        ("oci://a..b/me/v7b:v1", "no address in an OCI registry"),
        ("oci://127.0.0.1:99999/me/v7b:v1", "cannot be reached"),
    ],
)
def test_what_cannot_be_sent_to_is_said(proxy, run, address, message):
    done = run("push", "v7b", address.format(host=f"127.0.0.1:{proxy.port}"))
    assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr
    assert not changing(proxy)


def test_options_of_the_other_kind_of_place_are_refused(proxy, run, target):
    for words, message in ((("push", "v7b", target, "--private"), "--private is for hf"),
                           (("push", "v7b", "hf://me/v7b", "--insecure"), "--insecure is for oci"),
                           (("add", "x", target, "--move"), "--move is for folders")):  # fmt: skip
        done = run(*words)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    assert not proxy.requests


def test_a_password_in_an_address_is_not_repeated(run):
    done = run("push", "v7b", f"oci://me:{PASSWORD}@host/me/v7b:v1")
    assert (done.returncode, PASSWORD in done.stderr) == (2, False)


def test_elsewhere_tls_is_spoken_unless_it_is_waived(proxy, run):
    name = f"oci://sluice.localdomain:{proxy.port}/me/v7b:v1"
    hosts = {"NO_PROXY": "*"}
    done = run("push", "v7b", name, **hosts)
    assert done.returncode == 2
    assert not proxy.requests, "nothing was said without TLS"
    done = run("push", "v7b", name, "--insecure", **hosts)
    assert (done.returncode, f"http://sluice.localdomain:{proxy.port}" in done.stderr) == (2, True), done.stderr


def test_a_tag_of_something_else_is_never_moved(proxy, behind, run, target, repository):
    digest = behind.put(repository, b"{}")
    image = {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
             "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": 2},
             "layers": []}  # fmt: skip
    behind.tag(repository, "v1", image)
    for words in ((), ("--replace",)):
        done = run("push", "v7b", target, *words)
        assert (done.returncode, "names something else" in done.stderr) == (2, True), done.stderr
    assert not changing(proxy)
    done = run("add", "x", target)
    assert (done.returncode, "this is no model but 'application/vnd.oci.image.config" in done.stderr) == (2, True)


@pytest.mark.usefixtures("sent")
def test_a_tag_moves_from_ones_own_candidate_but_not_from_anothers_unless_wanted(
    behind, store, run, target, repository, memory_path
):
    another(store, memory_path)
    done = run("push", "v8", target)
    assert (done.returncode, "so far the tag named the candidate" in done.stderr) == (0, True), done.stderr
    others = Store.init(memory_path / "others")
    assert run("add", "v7b", target, root=others.layout.root).returncode == 0
    stores.add(others, "mine", memory_path, seed=9)
    words = ("push", "mine", target, "--override", "--reason", "mine", "--policy", memory_path / "strict.yaml")
    done = run(*words, root=others.layout.root)
    assert (done.returncode, "somebody else put the candidate" in done.stderr) == (2, True), done.stderr
    assert run(*words, "--replace", root=others.layout.root).returncode == 0
    done = run("push", "v7b", target)
    assert (done.returncode, "somebody else put the candidate" in done.stderr) == (2, True), done.stderr
    assert run("push", "v7b", target, "--replace").returncode == 0
    assert behind.manifest(repository, "v1")["annotations"]["sluice.manifest"] == store.candidate("v7b").digest


# ── credentials ──


def log_in(home: Path, target: str, password: str) -> None:
    (home / "docker").mkdir(exist_ok=True)
    word = base64.b64encode(f"me:{password}".encode()).decode()
    host = target.removeprefix("oci://").partition("/")[0]
    (home / "docker" / "config.json").write_text(json.dumps({"auths": {host: {"auth": word}}}))


@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_credentials_are_those_that_docker_keeps_and_nobody_sees_them(
    proxy, store, run, home, target, memory_path, kind, behind
):
    proxy.users = Users(kind, password=PASSWORD)
    (home / "docker" / "config.json").unlink(missing_ok=True)
    said = [run("push", "v7b", target)]
    assert (said[-1].returncode, "docker login" in said[-1].stderr) == (2, True), said[-1].stderr
    log_in(home, target, "wrong")
    said.append(run("push", "v7b", target))
    assert (said[-1].returncode, "does not let you" in said[-1].stderr) == (2, True), said[-1].stderr
    assert not [each for each in changing(proxy) if each.method == "PUT"]
    log_in(home, target, PASSWORD)
    said.append(run("push", "v7b", target))
    assert said[-1].returncode == 0, said[-1].stderr
    Store.init(memory_path / "fresh")
    said.append(run("add", "v7b", target, root=memory_path / "fresh"))
    assert said[-1].returncode == 0, said[-1].stderr
    check_same(store, memory_path / "fresh")
    secrets = [PASSWORD, base64.b64encode(f"me:{PASSWORD}".encode()).decode(), *proxy.users.tokens]
    assert not [each for each in said for secret in secrets if secret in each.stdout + each.stderr]
    for path in (*memory_path.rglob("*"), *behind.root.rglob("*")):
        if path.is_file():
            assert not any(secret.encode() in path.read_bytes() for secret in secrets), path


def test_who_may_only_read_is_told_so_before_anything_is_sent(proxy, run, home, target):
    proxy.users = Users("bearer", password=PASSWORD, rights="pull")
    log_in(home, target, PASSWORD)
    done = run("push", "v7b", target)
    assert (done.returncode, "does not let you do this" in done.stderr) == (2, True), done.stderr
    assert not [each for each in proxy.requests if each.method == "PUT"]
    assert "***" in done.stderr, "the registry repeats the token"
    assert not any(token in done.stderr for token in proxy.users.tokens)


def test_no_credential_goes_to_another_host(proxy, behind, run, home, target):
    log_in(home, target, PASSWORD)
    proxy.users = Users("basic", password=PASSWORD)
    seen: list[str | None] = []
    with Proxy(behind.port) as other:

        def elsewhere(asked: Asked, answer: Answer) -> Answer | None:
            if asked.method != "POST":
                return None
            place = answer.headers["Location"].replace(str(proxy.port), str(other.port))
            return Answer(answer.status, answer.headers | {"Location": place}, answer.body)

        proxy.faults.append(elsewhere)
        done = run("push", "v7b", target)
        seen = [each.authorization for each in other.requests]
    assert done.returncode == 0, done.stderr
    assert seen
    assert not any(seen)


def test_no_password_goes_where_a_host_that_was_redirected_to_wants_it(proxy, behind, run, home, target, tmp_path):
    log_in(home, target, PASSWORD)
    assert run("push", "v7b", target).returncode == 0
    proxy.users = Users("basic", password=PASSWORD)
    with Proxy(behind.port) as storage, Proxy(behind.port) as thief:
        thief.refusals.append(lambda _: Answer(200, {}, b'{"token":"x"}'))
        wanted = {"Www-Authenticate": f'Bearer realm="http://127.0.0.1:{thief.port}/token",service="x"'}
        storage.refusals.append(lambda _: Answer(401, wanted))

        def elsewhere(asked: Asked, _: Answer) -> Answer | None:
            place = f"http://localhost:{storage.port}{asked.path}"
            return Answer(307, {"Location": place}) if asked.method == "GET" and "/blobs/" in asked.path else None

        proxy.faults.append(elsewhere)
        Store.init(tmp_path / "fresh")
        done = run("add", "v7b", target, root=tmp_path / "fresh")
        assert (done.returncode, "does not let you" in done.stderr) == (2, True), done.stderr
        assert storage.requests
        assert not [each for each in storage.requests if each.authorization]
        assert not thief.requests
        storage.refusals.clear()
        done = run("add", "v7b", target, root=tmp_path / "fresh")
        assert done.returncode == 0, done.stderr
        assert not [each for each in storage.requests if each.authorization]


def test_a_service_may_give_the_same_token_to_all_who_ask_at_once(proxy, run, home, target):
    log_in(home, target, PASSWORD)

    def gate(asked: Asked) -> Answer | None:
        """Its tokens are the scope itself; four uploads find at once that theirs is not enough."""
        if asked.path.startswith("/token"):
            token = "t-push" if "push" in asked.path else "t-pull"
            return Answer(200, {}, json.dumps({"access_token": token}).encode())
        scope = "pull" if asked.method in ("GET", "HEAD") else "pull,push"
        if asked.authorization == "Bearer t-push" or (scope == "pull" and asked.authorization == "Bearer t-pull"):
            return None
        realm = f'realm="http://127.0.0.1:{proxy.port}/token",service="x",scope="repository:x:{scope}"'
        return Answer(401, {"Www-Authenticate": f"Bearer {realm}"})

    proxy.refusals.append(gate)
    done = run("push", "v7b", target)
    assert done.returncode == 0, done.stderr


def test_the_credentials_are_those_of_the_folder_that_docker_config_names(proxy, run, home, target):
    log_in(home, target, PASSWORD)
    (home / ".docker").mkdir()
    (home / "docker" / "config.json").rename(home / ".docker" / "config.json")
    proxy.users = Users("basic", password=PASSWORD)
    assert run("push", "v7b", target).returncode == 2, "HOME's are another's"
    (home / ".docker" / "config.json").rename(home / "docker" / "config.json")
    log_in(home / ".docker", target, "wrong")
    (home / ".docker" / "docker" / "config.json").rename(home / ".docker" / "config.json")
    assert run("push", "v7b", target).returncode == 0
    assert len({each.authorization for each in proxy.requests}) == 2, "none, and the one"


@pytest.mark.parametrize(
    ("config", "works"),
    [
        *(({"HOST": each}, False) for each in ("x", 5, None, [], {"auth": 5}, {"auth": "%"}, {"identitytoken": "x"})),
        *((each, False) for each in ([], None, "x", {"auths": []}, {"auths": None}, {"credHelpers": "x"})),
        *(({"credHelpers": {"HOST": each}}, each == "sound") for each in ("sound", "failing", "odd", "barred", "none")),
        ({"credsStore": "sound", "auths": {"HOST": {}}}, True),
    ],
)
@pytest.mark.parametrize("kind", ["basic", "bearer"])
def test_whatever_docker_keeps_is_used_or_said_and_not_shown(proxy, run, home, target, config, works, kind):
    host = target.removeprefix("oci://").partition("/")[0]
    helpers = {
        "sound": f'echo \'{{"Username":"me","Secret":"{PASSWORD}"}}\'',
        "failing": f"echo {PASSWORD} >&2; exit 1",
        "odd": f"echo {PASSWORD}",
        "barred": "",
    }
    (home / "docker").mkdir(exist_ok=True)
    for name, script in helpers.items():
        path = home / f"docker-credential-{name}"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755 if script else 0o644)
    config = {"auths": config} if isinstance(config, dict) and "HOST" in config else config
    (home / "docker" / "config.json").write_text(json.dumps(config).replace("HOST", host))
    proxy.users = Users(kind, password=PASSWORD)
    done = run("push", "v7b", target, PATH=f"{home}:{os.environ['PATH']}")
    assert done.returncode == (0 if works else 2), done.stderr
    assert "Traceback" not in done.stderr
    assert PASSWORD not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("challenge", "body"),
    [
        ("Bearer", b""),
        ('Bearer REALM="HERE"', b""),
        ('Bearer realm="HERE",service="x"', b"null"),
        ('Bearer realm="HERE",service="x"', b"[]"),
        ('Bearer realm="HERE",service="x"', b'{"token":{"a":"\xc3\xb6"}}'),
        ('Bearer realm="HERE",service="x"', '{"token":"€"}'.encode()),
        ('Bearer realm="HERE",service="x"', b'{"token":"a\\nb"}'),
        ('Bearer realm="http://[::"', b""),
        ('Bearer realm="ftp://x/y"', b""),
        ("Digest x", b""),
    ],
)
def test_a_challenge_that_makes_no_sense_is_said(proxy, run, home, target, challenge, body):
    log_in(home, target, PASSWORD)
    wanted = {"Www-Authenticate": challenge.replace("HERE", f"http://127.0.0.1:{proxy.port}/token")}
    proxy.refusals.append(lambda each: Answer(200, {}, body) if "/token" in each.path else Answer(401, wanted))
    done = run("push", "v7b", target)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False), done.stderr


# ── what goes wrong on the way ──


@pytest.mark.parametrize("how", ["its evidence is retracted", "its shard is lost"])
def test_what_makes_it_unfit_while_it_is_sent_keeps_it_from_being_tagged(
    proxy, behind, store, run, target, repository, how
):
    def meddle(asked: Asked) -> None:
        if asked.method == "POST":
            proxy.refusals.clear()
            if "shard" in how:
                store.layout.blob(model(store)[SHARD]).unlink()
            else:
                for each in store.evidence(store.candidate("v7b").digest):
                    retractions.retract(store, each, "the server was broken")

    proxy.refusals.append(meddle)
    done = run("push", "v7b", target)
    message = "cannot be read any more" if "shard" in how else "judged otherwise"
    assert (done.returncode, message in done.stderr) == (5 if "shard" in how else 6, True), done.stderr
    assert not tagged(behind, repository)


@pytest.mark.parametrize("place", ["relative", "by another name", "with a fragment", "none", "ftp://x/y", "//[bad"])
def test_where_a_blob_is_to_be_sent_is_read_as_the_registry_says_it(proxy, run, target, place):
    def elsewhere(asked: Asked, answer: Answer) -> Answer | None:
        if asked.method != "POST":
            return None
        headers = dict(answer.headers)
        said = headers.pop("Location")
        there = {
            "relative": said[said.index("/v2/") :],
            "by another name": said.replace("127.0.0.1", "localhost"),
            "with a fragment": f"{said}#x",
        }
        return Answer(answer.status, headers | ({} if place == "none" else {"Location": there.get(place, place)}))

    proxy.faults.append(elsewhere)
    done = run("push", "v7b", target)
    if place in ("relative", "by another name", "with a fragment"):
        assert done.returncode == 0, done.stderr
    else:
        assert (done.returncode, "where the files are to be sent" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(("status", "code", "message"), [(409, 6, "cannot be moved"), (413, 2, "as large as this")])
def test_what_a_registry_takes_from_nobody_is_said(proxy, behind, run, target, repository, status, code, message):
    proxy.refusals.append(lambda each: Answer(status) if each.method == "PUT" and "/manifests/" in each.path else None)
    done = run("push", "v7b", target)
    assert (done.returncode, message in done.stderr) == (code, True), done.stderr
    assert not tagged(behind, repository)


@pytest.mark.parametrize(("module", "message"), [(modelpack, "than the manifest"), (records, "nobody takes in more")])
def test_what_nobody_could_add_is_not_sent(proxy, store, target, monkeypatch, module, message):
    address = oci.parse(target)
    assert address is not None
    candidate = store.candidate("v7b")
    approval = eligibility.approve(store, candidate, channel="best")
    monkeypatch.setattr(module, "LARGEST", 100)
    with pytest.raises(UsageError, match=message):
        to_oci.push(store, candidate, address, approval, to_oci.Options())
    assert not changing(proxy)


def test_certificates_that_are_not_there_are_named(run):
    done = run("add", "x", "oci://no.such.host.invalid/me/v7b:v1", REQUESTS_CA_BUNDLE="/no/such.pem")
    assert (done.returncode, "/no/such.pem" in done.stderr, "REQUESTS_CA_BUNDLE" in done.stderr) == (2, True, True)
    run("ls", REQUESTS_CA_BUNDLE="")


class Fault:
    """Fails the request of this number: dropped before it is done, or after; or answered with a status."""

    def __init__(self, proxy: Proxy, number: int, kind: str) -> None:
        self.failed: Asked | None = None
        self._left, self._kind = number, kind
        proxy.refusals[:], proxy.faults[:] = [self._refuse], [self._fail]

    def _refuse(self, asked: Asked) -> Answer | None:
        self._left -= 1
        if self._left:
            return None
        self.failed = asked
        if self._kind == "after":
            return None
        return Answer(dropped=True) if self._kind == "before" else Answer(int(self._kind), {"Retry-After": "1"})

    def _fail(self, asked: Asked, _: Answer) -> Answer | None:
        return Answer(dropped=True) if asked is self.failed and self._kind == "after" else None


def test_wherever_a_push_is_interrupted_the_tag_is_never_half_and_running_it_again_finishes(
    proxy, behind, run, target, repository
):
    words = ("--no-records",)  # fewer blobs; there are requests of every kind
    done = run("push", "v7b", target.replace(repository, f"{repository}/whole"), *words)
    assert done.returncode == 0, done.stderr
    asked = list(proxy.requests)
    statuses = ("429", "500", "409", "503", "403", "502", "404")
    ended = set()
    for number, request in enumerate(asked, 1):
        kinds = ("before", "after", statuses[number % len(statuses)])
        for kind in kinds if "/manifests/" in request.path else (kinds[number % 3],):
            name = f"{repository}/{kind}-{number}"
            place = target.replace(repository, name)
            proxy.clear()
            fault = Fault(proxy, number, kind)
            first = run("push", "v7b", place, *words)
            proxy.refusals.clear()
            proxy.faults.clear()
            assert first.returncode in (0, 2, 5, 6), (number, kind, first.stderr)
            assert first.returncode == 0 or "error:" in first.stderr
            assert "Traceback" not in first.stderr
            ended.add(first.returncode)
            if first.returncode:
                second = run("push", "v7b", place, *words)
                assert second.returncode == 0, (number, kind, first.stderr, second.stderr)
            assert fault.failed is not None
            digests = put_blobs(proxy)
            again = {each for each in digests if digests.count(each) > 1}
            assert again <= {fault.failed.path.rpartition("sha256:")[2]}, "no finished blob is sent again"
            manifest = behind.manifest(name, "v1")
            for each in (*manifest["layers"], manifest["config"]):
                assert len(behind.get(f"{name}/blobs/{each['digest']}")) == each["size"]
    assert ended >= {0, 2}


def test_a_tag_that_somebody_moves_meanwhile_is_said_and_not_overwritten(proxy, behind, run, target, repository):
    def meddle(asked: Asked) -> None:
        if asked.method == "POST":
            proxy.refusals.clear()
            digest = behind.put(repository, b"{}")
            config = {"mediaType": "application/x", "digest": digest, "size": 2}
            behind.tag(repository, "v1", {"schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                                          "config": config, "layers": []})  # fmt: skip

    proxy.refusals.append(meddle)
    done = run("push", "v7b", target)
    assert (done.returncode, "changed the tag meanwhile" in done.stderr) == (6, True), done.stderr
    assert behind.manifest(repository, "v1")["layers"] == []


def test_what_a_registry_gives_back_other_than_was_sent_is_found(proxy, run, target):
    def lie(asked: Asked, answer: Answer) -> Answer | None:
        if asked.method == "GET" and "/manifests/" in asked.path and answer.status == 200:
            headers = {name: value for name, value in answer.headers.items() if name != "Docker-Content-Digest"}
            return Answer(200, headers, answer.body.replace(b"weight.v1", b"weighs.v1"))
        return None

    proxy.faults.append(lie)
    done = run("push", "v7b", target)
    assert (done.returncode, "and sha256:" in done.stderr) == (5, True), done.stderr


def test_a_place_that_is_no_registry_is_said(proxy, run, target):
    for answer in (
        Answer(200, {}, b"<html>"),
        Answer(404, {}, b"<html>"),
        Answer(405),
        Answer(200, {}, b"x" * (5 << 20)),
    ):
        proxy.refusals[:] = [lambda _, answer=answer: answer]
        for words in (("push", "v7b", target), ("add", "x", target)):
            done = run(*words)
            assert (done.returncode in (2, 5), "Traceback" in done.stderr) == (True, False), done.stderr


# ── what comes back ──


@pytest.mark.usefixtures("sent")
def test_add_into_a_fresh_registry_gives_the_same_digests_lineage_and_verdict(proxy, store, run, target, tmp_path):
    fresh = Store.init(tmp_path / "fresh")
    done = run("add", "copy", target, root=fresh.layout.root)
    assert done.returncode == 0, done.stderr
    check_same(store, fresh.layout.root, "copy")
    policy = judging.policy_of(store, None, channel="best")
    assert promotion.promote(fresh, "copy", policy=policy).override is False
    assert run("verify", "copy", root=fresh.layout.root).returncode == 0
    proxy.requests.clear()
    entries = len(list(fresh.log.entries()))
    again = run("add", "copy", target, root=fresh.layout.root)
    assert (again.returncode, "is there already" in again.stderr) == (0, True)
    assert len(list(fresh.log.entries())) == entries
    received = fresh.log.newest("received", name="copy")
    assert received is not None
    assert received["source"] == target.removesuffix(":v1")


def test_names_with_spaces_and_of_any_script_go_and_come_back(store, run, target, memory_path, tmp_path):
    source = stores.checkpoint(tmp_path / "odd", seed=5)
    (source / "使用说明 (2)%20.txt").write_text("it")
    store.add("odd", source)
    stores.judge(store, "odd", memory_path / "strict.yaml", right=10)
    assert run("push", "odd", target).returncode == 0
    fresh = Store.init(tmp_path / "fresh")
    assert run("add", "odd", target, root=fresh.layout.root).returncode == 0
    assert model(fresh, "odd") == model(store, "odd")


@pytest.mark.usefixtures("sent")
def test_wherever_an_add_is_interrupted_nothing_is_half_taken_and_running_it_again_finishes(
    proxy, store, run, target, tmp_path
):
    Store.init(tmp_path / "whole")
    assert run("add", "v7b", target, root=tmp_path / "whole").returncode == 0
    asked = list(proxy.requests)
    kinds = ("before", "404", "403")
    for number, request in enumerate(asked, 1):
        for kind in kinds if "/manifests/" in request.path else (kinds[number % 3],):
            root = Store.init(tmp_path / f"{kind}-{number}").layout.root
            proxy.requests.clear()
            Fault(proxy, number, kind)
            first = run("add", "v7b", target, root=root)
            proxy.refusals.clear()
            proxy.faults.clear()
            assert first.returncode in (0, 2, 5), first.stderr
            assert "Traceback" not in first.stderr
            if first.returncode:
                assert not Store.open(root).names()
                assert run("add", "v7b", target, root=root).returncode == 0
            shard = [each for each in proxy.requests if each.path.endswith(model(store)[SHARD])]
            assert len(shard) <= 4, "the header and the shard, and one of them again"
            check_same(store, root)


def forge(behind: Registry, repository: str, change) -> None:
    manifest = behind.manifest(repository, "v1")
    change(manifest)
    behind.tag(repository, "v1", manifest)


TITLE, PATH = "org.opencontainers.image.title", "org.cncf.model.filepath"


def rename(name: str, wanted: str):
    def change(manifest) -> None:
        (layer,) = [each for each in manifest["layers"] if each["annotations"][TITLE] == name]
        layer["annotations"] = {TITLE: wanted, PATH: wanted}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *((rename("README.md", name), "would not stay") for name in
          ("../evil.json", "/etc/evil.json", "a/../../b", "..", "", "a//b", "a\\b", ".", "a/./b", "x\n")),
        (rename("README.md", "config.json"), "two layers"),
        (rename("README.md", "config.json/x.json"), "is a file and the folder"),
        (rename("README.md", "Config.json"), "differ by case alone"),
        (lambda m: m["layers"][0].pop("annotations"), "no name"),
        (lambda m: m["layers"][0]["annotations"].update({PATH: "other"}), "two names"),
        (lambda m: m["layers"][0].update(mediaType=f"{LAYERS}weight.v1.tar+gzip"), "no plain file"),
        (lambda m: m.update(artifactType="application/vnd.other"), "this is no model but 'application/vnd.other'"),
        (lambda m: m["layers"].clear(), "no config.json"),
    ],
)  # fmt: skip
@pytest.mark.usefixtures("sent")
def test_a_manifest_that_cannot_be_trusted_is_refused_and_nothing_is_half_taken(
    proxy, behind, run, target, repository, tmp_path, change, message
):
    forge(behind, repository, change)
    root = Store.init(tmp_path / "fresh").layout.root
    done = run("add", "x", target, root=root)
    assert (done.returncode in (2, 5), message in done.stderr) == (True, True), done.stderr
    assert not any("/blobs/" in each.path for each in proxy.requests)
    assert not Store.open(root).names()
    assert not list((root / "staging").iterdir())


@pytest.mark.parametrize("what", [SHARD, "config.json", ".sluice/records.json", "blob"])
@pytest.mark.parametrize("how", ["other", "short", "long"])
@pytest.mark.usefixtures("sent")
def test_forged_bytes_are_refused_and_nothing_is_half_taken(
    proxy, behind, run, target, repository, tmp_path, what, how
):
    layers = {each["annotations"][TITLE]: each["digest"] for each in behind.manifest(repository, "v1")["layers"]}
    name = what if what != "blob" else next(each for each in layers if "/blobs/" in each)

    def lie(asked: Asked, answer: Answer) -> Answer | None:
        if asked.method != "GET" or not asked.path.endswith(layers[name]):
            return None
        body = {
            "other": answer.body[:-1] + bytes([answer.body[-1] ^ 1]),
            "short": answer.body[:-1],
            "long": answer.body + b"x",
        }
        headers = {name: value for name, value in answer.headers.items() if name != "Content-Range"}
        return Answer(answer.status, headers, body[how])

    proxy.faults.append(lie)
    root = Store.init(tmp_path / "fresh").layout.root
    done = run("add", "x", target, root=root)
    assert done.returncode == 5, done.stderr
    assert not Store.open(root).names()
    proxy.faults.clear()
    assert run("add", "x", target, root=root).returncode == 0


@pytest.mark.usefixtures("sent")
def test_a_forged_manifest_or_another_than_its_digest_says_is_refused(proxy, behind, run, target, repository, tmp_path):
    digest = hashlib.sha256(behind.get(f"{repository}/manifests/v1")).hexdigest()

    def lie(asked: Asked, answer: Answer) -> Answer | None:
        if "/manifests/" not in asked.path:
            return None
        return Answer(answer.status, {}, answer.body.replace(b'"size":', b'"size" :'))

    proxy.faults.append(lie)
    root = Store.init(tmp_path / "fresh").layout.root
    for address in (f"{target}@sha256:{digest}", f"{target.removesuffix(':v1')}@sha256:{digest}"):
        done = run("add", "x", address, root=root)
        assert (done.returncode, "not what its digest says" in done.stderr) == (5, True), done.stderr
    proxy.faults.clear()
    for address in (f"{target}@sha256:{'0' * 64}", target.replace(":v1", ":v9"), target.replace("me/", "you/")):
        done = run("add", "x", address, root=root)
        assert (done.returncode, "no such tag or digest" in done.stderr) == (2, True), done.stderr
    assert run("add", "x", target.removesuffix(":v1") + f"@sha256:{digest}", root=root).returncode == 0


def test_what_another_tool_packed_in_the_same_format_comes_in_as_a_model(run, store, target, tmp_path):
    files = [f"{name}:{LAYERS}weight{'' if name == SHARD else '.config'}.v1.raw" for name in model(store)]
    place = target.removeprefix("oci://")
    done = subprocess.run(
        ["oras", "push", "--plain-http", place, "--artifact-type", f"{LAYERS}manifest.v1+json", *files],
        cwd=store.candidate("v7b").resolved(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    fresh = Store.init(tmp_path / "fresh")
    done = run("add", "x", target, root=tmp_path / "fresh")
    assert done.returncode == 0, done.stderr
    assert model(fresh, "x") == model(store)


def test_neither_push_nor_add_holds_a_file_in_memory(behind, store, memory_path, repository):
    source = tiny.write_checkpoint(
        memory_path / "large", layers=1, experts=4, hidden=1024, intermediate=1024, tied=True
    )
    size = (source / SHARD).stat().st_size
    assert size > 24 << 20
    store.add("large", source)
    target = f"oci://127.0.0.1:{behind.port}/{repository}:v1"
    fresh = Store.init(memory_path / "fresh").layout.root
    program = (
        "import resource, sys\nfrom typer.main import get_command\nfrom registry.cli import app\n"
        "get_command(app)(sys.argv[1:], standalone_mode=False)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, file=sys.stderr)\n"
    )

    def peak(*words: str | Path) -> int:
        done = subprocess.run([sys.executable, "-c", program, *map(str, words)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return int(done.stderr.splitlines()[-1])

    why, here = ("--override", "--reason", "to try it"), ("--root", store.layout.root)
    small = peak("push", "v7b", target.replace(":v1", ":v0"), *why, *here)
    assert peak("push", "large", target, *why, *here) < small + size // 2
    small = peak("add", "v7b", target.replace(":v1", ":v0"), "--root", fresh)
    assert peak("add", "large", target, "--root", fresh) < small + size // 2
    assert Store.open(fresh).candidate("large").digest == store.candidate("large").digest
