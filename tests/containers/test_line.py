"""The line in containers: what the README says, typed into a fresh clone on a machine without a GPU."""

from __future__ import annotations

import http.client
import json
import os
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from tests.containers.conftest import TOKEN, UID, Compose

pytestmark = pytest.mark.needs("containers")

RUNS_FP8 = Path("/dev/nvidiactl").exists() or "amx_tile" in Path("/proc/cpuinfo").read_text()
"""Whether vLLM runs experts in FP8 here. Where it does not, the candidate on the way is judged and promoted instead."""

JUDGED = "v7b" if RUNS_FP8 else "v7b.prune"


WITHOUT_FP8 = """\
name: v7b.prune
parent: toy
steps:
  - evaluate: {packs: [toy-toolcall, toy-arithmetic, toy-facts, toy-strings]}
  - prune: {compression: 0.25, criterion: reap, mix: mixes/toy/broad.yaml}
  - evaluate: {packs: [toy-toolcall, toy-arithmetic, toy-facts, toy-strings]}
  - gate: {policy: policies/toy.yaml, baseline: toy}
  - promote: {channel: best}
"""


@pytest.fixture(scope="module")
def line(compose: Compose) -> Compose:
    """The whole line, run once by one command: made, judged against the toy as it is, promoted."""
    compose.empty_registry()
    compose.registry("init")
    compose.registry("add", "toy", "stages/toy/checkpoint")
    if RUNS_FP8:
        compose.registry("run", "--containers", "recipes/toy/v7b.yaml")
    else:
        (compose.project / "recipes" / "toy" / "without-fp8.yaml").write_text(WITHOUT_FP8)
        compose.registry("run", "--containers", "recipes/toy/without-fp8.yaml")
        refused = compose.registry("run", "--containers", "recipes/toy/v7b.yaml", expect=2)
        assert refused.stderr.count("made already") >= 9, "the toy's evidence, the candidate and its evidence"
        assert "AMX" in refused.stderr
    return compose


def test_the_line_ends_with_a_candidate_served_that_resolves_outside(line: Compose) -> None:
    best = line.models / "channels" / "best"
    assert best.resolve() == (line.models / "candidates" / JUDGED / "model").resolve()
    assert (best / "config.json").is_file()
    assert {each["name"]: each["verdict"] for each in line.json("ls")}[JUDGED] == "Pass"
    line.run("registry", "verify", "--all")


def test_everything_belongs_to_the_person_outside_and_no_container_is_left(line: Compose) -> None:
    owners = {os.lstat(path).st_uid for path in (line.models, *line.models.rglob("*"))}
    assert owners == {UID}
    assert line.containers() == []


def test_nothing_that_was_made_said_or_logged_holds_the_token(line: Compose) -> None:
    line.registry("report", "--all", "--out", "reports")
    judged = ("gate", JUDGED, "--policy", "policies/toy.yaml", "--baseline", "toy", "--report", "md,json,junit,html")
    said = [line.registry(*judged), line.registry("run", "recipes/toy/v2.yaml", "--dry-run")]
    said += [line.run("mix", "--recipe", "recipes/toy/v7b.yaml"), line.run("registry", "log")]
    assert not any(TOKEN in done.stdout + done.stderr for done in said)
    made = [path for path in line.project.rglob("*") if path.is_file()]
    assert {"log", "verdicts", "evidence", "reports"} <= {part for path in made for part in path.parts}
    assert not [path for path in made if TOKEN.encode() in path.read_bytes()]


def test_the_line_again_makes_nothing_new(line: Compose) -> None:
    def records() -> list[Path]:
        folders = ("manifests", "evidence", "verdicts", "generations", "log")
        return sorted(path for folder in folders for path in (line.models / folder).rglob("*"))

    before = records()
    line.run("prune")
    line.run("quantize")
    line.run("eval", "--candidate", JUDGED)
    line.run("registry", "gate", JUDGED, "--policy", "policies/toy.yaml", "--baseline", "toy")
    line.run("registry", "promote", JUDGED)
    line("rm", "--force", "--stop", "verifier")  # stays after an eval by hand
    assert records() == before


def test_the_promoted_candidate_is_served_as_it_was_judged(line: Compose) -> None:
    evidence = line.json("show", "best")["evidence"].values()
    line("up", "--detach", "serve")
    try:
        _wait(line)
        assert {each["conditions"]["engine_version"] for each in evidence} == {_ask(line, "/version")["version"]}
        item = json.loads((line.project / "packs" / "toy" / "arithmetic.jsonl").read_text().splitlines()[0])
        asked = {"model": "best", "messages": item["messages"], "temperature": 0, "max_tokens": 48}
        message = _ask(line, "/v1/chat/completions", asked)["choices"][0]["message"]
        assert message["content"].strip() == item["expected"]["answer"]
        assert "<think>" not in message["content"]
        log = line("logs", "--no-log-prefix", "serve")
    finally:
        line("stop", "--timeout", "30", "serve")
        (code,) = subprocess.run(
            ["docker", "inspect", "--format", "{{.State.ExitCode}}", *line.containers()],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.split()
        line("rm", "--force")
    said = line.run("registry", "show", "best", "--serve").stdout.strip().replace("--host 127.0.0.1", "--host 0.0.0.0")
    assert said.replace("/models/", "./models/", 1) in (log.stdout + log.stderr), "told as it is called outside"
    assert code != "137", "the server had to be killed"
    assert line.containers() == []


def test_a_registry_that_belongs_to_root_is_refused_with_the_command_that_mends_it(line: Compose) -> None:
    line.own(line.models, 0)
    try:
        for words in (("prune",), ("registry", "init"), ("registry", "add", "again", "stages/toy/checkpoint")):
            refused = line.run(*words, expect=2)
            assert "sudo chown -R $(id -u):$(id -g) ./models" in refused.stderr, refused.stderr
            assert "Traceback" not in refused.stderr
        assert line.run("registry", "ls").stdout, "whoever may not write may still read"
    finally:
        line.own(line.models, UID)


def test_a_registry_of_somebody_else_says_which_user_to_set(line: Compose) -> None:
    line.own(line.models, 4321)
    try:
        refused = line.run("prune", expect=2)
        assert "SLUICE_UID=4321 and SLUICE_GID=4321 into .env" in refused.stderr
    finally:
        line.own(line.models, UID)


def _wait(line: Compose) -> None:
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline:
        try:
            _ask(line, "/version")
        except (OSError, http.client.HTTPException):
            time.sleep(0.5)
        else:
            return
    pytest.fail("the server was not ready after three minutes:\n" + line("logs", "serve").stdout)


def _ask(line: Compose, path: str, asked: Any = None) -> Any:
    connection = http.client.HTTPConnection("127.0.0.1", line.port, timeout=60)
    try:
        words = {"Content-Type": "application/json"}
        connection.request("POST" if asked else "GET", path, json.dumps(asked) if asked else None, words)
        return json.loads(connection.getresponse().read())
    finally:
        connection.close()
