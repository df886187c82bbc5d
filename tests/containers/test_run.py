"""`registry run` in containers: the services of compose.yaml as Compose starts them, and none left behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.containers.conftest import UID, Compose
from tests.support.dropping import Dropping

pytestmark = pytest.mark.needs("containers")

CUT = """\
name: {name}
parent: toy
steps:
  - prune: {{compression: {compression}, mix: mixes/toy/broad.yaml}}
  - quantize: {{format: fp8-block}}
"""
ONE = """\
name: {name}
parent: toy
steps:
  - {step}
"""

FIRST = {
    "prune": "prune: {compression: 0.5, mix: mixes/toy/broad.yaml}",
    "mix": "prune: {compression: 0.5, mix: mixes/far.yaml}",
    "quantize": "quantize: {}",
    "train": "train: {mix: mixes/toy/train/toolcall.yaml, reference: mixes/toy/train/reference.yaml}",
    "eval": "evaluate: {packs: [toy-facts]}",
}
"""A step for each service that a run starts, as the first of a recipe."""

STARTED_WITH = {"eval": ("verifier",)}

ALIKE = ("User", "WorkingDir", "Entrypoint", "Cmd", "Env", "Image", "Volumes", "StopSignal", "Tty")


@pytest.fixture
def place(compose: Compose) -> Iterator[Compose]:
    """The project with nothing but the toy in its registry."""
    kept = compose.models.with_name("kept")
    shutil.move(compose.models, kept)
    try:
        compose.empty_registry()
        compose.registry("init")
        compose.registry("add", "toy", "stages/toy/checkpoint")
        yield compose
    finally:
        shutil.rmtree(compose.models)
        shutil.move(kept, compose.models)


def _recipe(compose: Compose, text: str, **values: str) -> str:
    path = compose.project / "recipes" / f"{values['name']}.yaml"
    path.write_text(text.format(**values))
    return f"recipes/{path.name}"


def _digest(models: Path, name: str) -> str:
    return (models / "candidates" / name / "manifest").readlink().stem


def _inspect(*names: str) -> list[dict[str, Any]]:
    done = subprocess.run(["docker", "inspect", *names], capture_output=True, text=True, check=True)
    return list(json.loads(done.stdout))


def _until(found: Callable[[], Any], seconds: float = 90) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if result := found():
            return result
        time.sleep(0.1)
    return pytest.fail(f"waited {seconds} s in vain")


def test_a_recipe_runs_in_containers_as_in_processes_and_leaves_none(place: Compose, project: Path) -> None:
    recipe = _recipe(place, CUT, name="cut", compression="0.25")
    done = place.registry("run", recipe, "--json")
    assert [(each["candidate"], each["code"]) for each in json.loads(done.stdout)] == [("cut", 0)]
    assert place.containers() == []
    owners = {os.lstat(path).st_uid for path in (place.models, *place.models.rglob("*"))}
    assert owners == {UID}
    here = place.project.parent / "here"
    local = [project / ".venv" / "bin" / "registry"]
    for words in (["init"], ["add", "toy", "stages/toy/checkpoint"], ["run", "--local", place.project / recipe]):
        subprocess.run([*local, *words, "--root", here], cwd=project, check=True, capture_output=True)
    assert [_digest(here, name) for name in ("cut.prune", "cut")] == [
        _digest(place.models, name) for name in ("cut.prune", "cut")
    ]
    shutil.rmtree(here)
    again = place.registry("run", recipe, "--containers")
    assert again.stderr.count("made already") == 2


def test_a_service_is_what_docker_compose_run_makes_of_it(place: Compose) -> None:
    far = place.project / "mixes" / "far.yaml"
    far.write_text("name: far\ndatasets:\n  - {hub: org/rows, config: all, count: 1}\n")
    for first, step in FIRST.items():
        recipe = _recipe(place, ONE, name=first, step=step)
        with _started(place, recipe):
            ours = {each: _until(partial(_of_service, place, each)) for each in (first, *STARTED_WITH.get(first, ()))}
        assert place.containers() == []
        name = f"{place.name}-by-hand"
        place("run", "--detach", "--no-TTY", "--name", name, first, *ours[first]["Config"]["Cmd"])
        try:
            for service, of_ours in ours.items():
                assert _settings(of_ours) == _settings(_of_service(place, service)), service
        finally:
            subprocess.run(["docker", "rm", "--force", name], check=True, capture_output=True)
            place("rm", "--force", "--stop")
    far.unlink()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_whoever_ends_it_waits_seconds_and_finds_nothing_left(place: Compose, how: signal.Signals) -> None:
    recipe = _recipe(place, ONE, name="ended", step=FIRST["eval"])
    running = place.started("run", recipe)
    _until(lambda: "starting" in _lines(place))
    begun = time.monotonic()
    os.kill(running.pid, how)
    _, said = running.communicate(timeout=60)
    assert time.monotonic() - begun < 25
    assert running.returncode == 130
    assert said.count("interrupted: what was finished is kept") == 2, "the stage's last word and the run's"
    assert "Traceback" not in said
    assert place.containers() == []


def test_what_a_killed_run_leaves_is_removed_by_the_next(place: Compose) -> None:
    """The stage's container, and the service that was started for it."""
    running = place.started("run", _recipe(place, ONE, name="killed", step=FIRST["eval"]))
    _until(lambda: len(place.containers()) > 1)
    running.kill()
    running.communicate()
    done = place.registry("run", _recipe(place, CUT, name="next", compression="0.5"))
    assert "removed 2 containers that an earlier run left behind" in done.stderr
    assert place.left() == []
    place.registry("verify", "next")


def test_a_run_has_a_verifier_of_its_own_and_takes_none_away(place: Compose) -> None:
    """That of a person, or of a run in another registry, stays as long as they need it."""
    place("up", "--detach", "verifier")
    (theirs,) = _inspect(*place.containers())
    with _started(place, _recipe(place, ONE, name="own", step=FIRST["eval"])):
        ours = _until(partial(_of_service, place, "eval"))
    sockets = [mount["Name"] for each in (ours, theirs) for mount in each["Mounts"] if mount["Type"] == "volume"]
    assert len(set(sockets)) == 2
    assert place.containers() == [theirs["Id"][:12]], "and none is left of the run's"
    assert place.left() == []
    assert _inspect(theirs["Id"])[0]["State"]["Running"]
    place("rm", "--force", "--stop")


def test_an_engine_that_is_started_again_costs_no_line_and_one_that_is_gone_not_the_table(place: Compose) -> None:
    path = place.project.parent / "engine.sock"
    engine = Dropping(path)
    through = Compose(place.project, place.environment | {"DOCKER_HOST": f"unix://{path}"})
    recipes = [_recipe(place, ONE, name=name, step=FIRST["prune"]) for name in ("again", "gone")]
    try:
        running = through.started("run", recipes[0])
        _until(lambda: "preflight" in _lines(place))
        engine.drop()
        time.sleep(1)
        engine.answers = True
        _, said = running.communicate(timeout=90)
        assert running.returncode == 0, said
        assert said.count("again: 8 of 16 experts stay") == 1
        running = through.started("run", recipes[1])
        _until(lambda: _of_service(place, "prune"))
        engine.drop()
        out, said = running.communicate(timeout=90)
        assert running.returncode == 2, said
        assert [line.split()[0] for line in out.splitlines()] == ["recipe", "gone"]
        assert "a container may be left, which the next run removes" in said
        engine.answers = True
        assert "removed 1 container" in through.registry("run", recipes[0]).stderr
        assert place.containers() == []
    finally:
        engine.close()
        path.unlink()


def test_a_step_that_fails_ends_its_recipe_alone_and_leaves_no_container(place: Compose) -> None:
    impossible = _recipe(place, CUT, name="impossible", compression="0.95")
    (place.project / "recipes" / "later.yaml").write_text("name: later\nparent: toy\nsteps: [{quantize: {}}]\n")
    done = place.registry("run", impossible, "recipes/later.yaml", expect=2)
    assert "routed to 2" in done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["recipe", "impossible", "later"]
    assert done.stdout.splitlines()[2].split()[-1] == "done"
    assert place.containers() == []


def test_an_image_that_is_removed_meanwhile_is_not_built_again_unasked(place: Compose) -> None:
    image, kept = f"{place.name}-quantize", f"{place.name}-quantize:kept"
    running = place.started("run", _recipe(place, CUT, name="bereft", compression="0.5"))
    _until(place.left)
    subprocess.run(["docker", "tag", image, kept], check=True)
    subprocess.run(["docker", "rmi", image], check=True, capture_output=True)
    try:
        out, said = running.communicate(timeout=90)
    finally:
        subprocess.run(["docker", "tag", kept, image], check=True)
        subprocess.run(["docker", "rmi", kept], check=True, capture_output=True)
    assert running.returncode == 2
    assert out.splitlines()[1].endswith("the image of quantize is not built")
    assert "make images" in said
    assert place.left() == []


def test_the_plan_names_image_user_mounts_and_command_and_starts_nothing(place: Compose) -> None:
    recipe = _recipe(place, CUT, name="planned", compression="0.5")
    before = sorted(place.models.rglob("*"))
    prune, quantize = json.loads(place.registry("run", recipe, "--dry-run", "--json").stdout)
    assert (prune["image"], prune["user"], prune["network"]) == (f"{place.name}-prune", f"{UID}:{UID}", "none")
    assert prune["mounts"] == [f"{place.models}:/models", f"{place.project}:/work:ro"]
    assert quantize["command"][-5:] == ["quantize", "--recipe", recipe, "--step", "2"]
    assert sorted(place.models.rglob("*")) == before
    assert place.containers() == []


def test_it_is_told_what_is_missing_and_what_to_do(place: Compose) -> None:
    outside = place.project.parent / "outside.yaml"
    outside.write_text(CUT.format(name="outside", compression="0.5"))
    assert "put it into recipes/" in place.registry("run", str(outside), "--containers", expect=2).stderr
    recipe = _recipe(place, CUT, name="unbuilt", compression="0.5")
    others = Compose(place.project, place.environment | {"SLUICE_IMAGES": "sluice-unbuilt"})
    assert "make images" in others.registry("run", recipe, "--containers", expect=2).stderr
    elsewhere = Compose(place.project, place.environment | {"SLUICE_MODELS": "./elsewhere"})
    for word in ("--containers", "--dry-run"):
        assert f"--root {place.project / 'elsewhere'}" in elsewhere.registry("run", recipe, word, expect=2).stderr
    place.own(place.models, 4321)
    try:
        told = place.registry("run", recipe, "--containers", expect=2).stderr
    finally:
        place.own(place.models, UID)
    assert "belongs to user 4321" in told


def test_it_asks_the_engine_that_the_command_docker_asks(place: Compose) -> None:
    """Compose is a part of that command. A context works without a config.json, and there may be none of a name."""
    recipe = _recipe(place, ONE, name="asked", step=FIRST["prune"])
    folder = place.project / "docker"
    configured = place.environment | {"DOCKER_CONFIG": str(folder)}
    create = ["docker", "context", "create", "elsewhere", "--docker", "host=unix:///nowhere/docker.sock"]
    subprocess.run(create, env=configured, check=True, capture_output=True)
    place.own(folder, UID)
    words = ("run", recipe, "--dry-run", "--containers")
    Compose(place.project, configured).registry(*words)
    for context, said in (("elsewhere", "no container engine answers"), ("none", "names no engine: context")):
        other = Compose(place.project, configured | {"DOCKER_CONTEXT": context})
        assert said in other.registry(*words, expect=2).stderr
    shutil.rmtree(folder)


def test_in_a_container_it_says_to_start_it_outside(place: Compose) -> None:
    refused = place.run("registry", "run", "recipes/toy/v7b.yaml", expect=2)
    assert "start `registry run` outside of containers" in refused.stderr


@contextmanager
def _started(place: Compose, *recipes: str) -> Iterator[subprocess.Popen[str]]:
    """A run that is ended, if it has not come to its end, when the block is."""
    running = place.started("run", *recipes)
    try:
        yield running
    finally:
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=60)


def _of_service(place: Compose, service: str) -> dict[str, Any] | None:
    """Its container, once it has been started."""
    for name in place.containers():
        try:
            (found,) = _inspect(name)
        except subprocess.CalledProcessError:  # gone
            continue
        if found["Config"]["Labels"]["com.docker.compose.service"] == service and found["State"]["Pid"]:
            return found
    return None


def _lines(place: Compose) -> str:
    said = ""
    for name in place.containers():
        done = subprocess.run(["docker", "logs", name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        said += done.stdout
    return said


def _settings(container: dict[str, Any]) -> dict[str, Any]:
    """Everything that says what a container may do and what it sees; what is said of it to people (SLUICE_MODELS, here
    a whole path) is not of that kind, nor is the name of the run's own project."""
    container = json.loads(re.sub(r"(sluice-test-\d+)-[0-9a-f]{8}(?![0-9a-f])", r"\1", json.dumps(container)))
    config = {key: container["Config"].get(key) for key in ALIKE}
    config["Env"] = sorted(each for each in config["Env"] if not each.startswith("SLUICE_MODELS="))
    mounts = sorted(container["Mounts"], key=lambda mount: mount["Destination"])
    host = container["HostConfig"]
    host |= {"Mounts": sorted(host["Mounts"], key=lambda mount: mount["Target"])}  # Compose gives them in any order
    labels = {
        key: value
        for key, value in container["Config"]["Labels"].items()
        if key.startswith("com.docker.compose.") and not key.endswith(("slug", "config-hash"))
    }
    networks = sorted(container["NetworkSettings"]["Networks"])
    return {**config, "host": host, "mounts": mounts, "networks": networks, "labels": labels}
