"""What a container may do: its own work, in the registry's folder, as the user to whom that belongs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.containers.conftest import TOKEN, UID, Compose

pytestmark = pytest.mark.needs("containers")

SERVICES = ("prune", "mix", "quantize", "eval", "registry", "serve", "train", "verifier")

INSIDE = """
import os, pathlib
def writable(folder):
    try:
        pathlib.Path(folder, "probe").write_text("")
        pathlib.Path(folder, "probe").unlink()
    except OSError:
        return False
    return True
status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
print(os.getuid(), os.getgid(), status["CapEff"].strip("\\t0"), status["NoNewPrivs"].strip())
folders = "/", "/opt/sluice", "/usr", "/work", "/models", "/tmp", os.environ["HOME"]
print(*filter(writable, folders))
print(*sorted(os.listdir("/sys/class/net")))
"""


@pytest.fixture(scope="module")
def inspected(compose: Compose) -> Iterator[dict[str, dict[str, Any]]]:
    compose("create", "--no-build", *SERVICES)
    try:
        found = json.loads(
            subprocess.run(
                ["docker", "inspect", *compose.containers()], capture_output=True, text=True, check=True
            ).stdout
        )
        yield {each["Config"]["Labels"]["com.docker.compose.service"]: each for each in found}
    finally:
        compose("rm", "--force", "--stop")


def test_the_compose_files_are_sound(compose: Compose, project: Path) -> None:
    compose("config", "--quiet")
    both = ["-f", "compose.yaml", "-f", "compose.gpu.yaml"]
    subprocess.run(["docker", "compose", *both, "config", "--quiet"], cwd=project, check=True)


def test_every_service_is_looked_at(compose: Compose, inspected: dict[str, dict[str, Any]]) -> None:
    assert set(compose("config", "--services").stdout.split()) == set(SERVICES) == set(inspected)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_has_no_more_rights_than_it_needs(
    compose: Compose, inspected: dict[str, dict[str, Any]], service: str
) -> None:
    container = inspected[service]
    host = container["HostConfig"]
    assert container["Config"]["User"] == f"{UID}:{UID}"
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert host["Privileged"] is False
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert host["Init"] is True
    tmpfs = {"/tmp"} if service == "verifier" else {"/tmp", "/home/sluice"}  # noqa: S108 - folders in the container
    assert set(host["Tmpfs"]) == tmpfs
    mounts = {
        mount["Destination"]: (mount.get("Name") or mount["Source"], mount["RW"]) for mount in container["Mounts"]
    }
    expected = {"/models": (str(compose.models), True), "/work": (str(compose.project), False)}
    if service == "eval":
        expected["/run/verifier"] = (f"{compose.name}_verifier", False)
    elif service == "verifier":
        expected = {"/run/verifier": (f"{compose.name}_verifier", True)}
    assert mounts == expected
    assert "docker.sock" not in json.dumps(container)


def test_the_verifier_has_limits_and_shares_no_memory(inspected: dict[str, dict[str, Any]]) -> None:
    host = inspected["verifier"]["HostConfig"]
    assert host["IpcMode"] == "none"
    assert host["Memory"] == host["MemorySwap"] == 2 << 30
    assert host["PidsLimit"] == 256
    assert not any(setting.startswith(("SLUICE_M", "HF_TOKEN")) for setting in inspected["verifier"]["Config"]["Env"])


def test_the_token_is_given_to_the_container_that_fetches_alone(inspected: dict[str, dict[str, Any]]) -> None:
    assert {name for name, container in inspected.items() if TOKEN in json.dumps(container)} == {"mix"}
    assert f"HF_TOKEN={TOKEN}" in inspected["mix"]["Config"]["Env"]


def test_no_image_tells_the_token_that_was_set_when_it_was_built(compose: Compose) -> None:
    for service in SERVICES:
        image = f"{compose.name}-{service}"
        told = _docker("image", "inspect", image) + _docker("history", "--no-trunc", image)
        assert "/opt/sluice" in told
        assert TOKEN not in told, service


@pytest.mark.parametrize("service", ["prune", "eval", "train"])
def test_no_layer_of_ours_holds_it(compose: Compose, service: str) -> None:
    """One image of each Dockerfile; no later layer of it removes a file. Read is all that came after the first file of
    the environment, and a text that is known to be there is found."""
    search = f"grep -lF -e {TOKEN} -e 'class IntegrityError(SluiceError)' {{}} +"
    inside = ["--user", "0", "--network", "none", "--entrypoint", "/bin/sh", f"{compose.name}-{service}"]
    find = f"find / -xdev -type f -cnewer /opt/sluice/pyvenv.cfg -exec {search}; true"
    found = _docker("run", "--rm", *inside, "-c", find).split()
    assert [path.partition("/site-packages/")[2] for path in found] == ["gates/errors.py"]


@pytest.mark.parametrize("service", SERVICES)
def test_only_mix_reaches_out_and_only_serve_listens_on_this_machine_alone(
    inspected: dict[str, dict[str, Any]], compose: Compose, service: str
) -> None:
    host = inspected[service]["HostConfig"]
    if service == "mix":
        assert host["NetworkMode"] != "none"
        assert not host["PortBindings"]
    elif service == "serve":
        assert host["PortBindings"] == {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(compose.port)}]}
    else:
        assert host["NetworkMode"] == "none"
        assert not host["PortBindings"]


def test_it_is_so_inside(compose: Compose) -> None:
    python = ["run", "--rm", "-T", "--entrypoint", "/opt/sluice/bin/python", "registry"]
    told = compose(*python, "-c", INSIDE).stdout.splitlines()
    assert told == [f"{UID} {UID}  1", "/models /tmp /home/sluice", "lo"]


def test_the_harness_does_not_see_the_packages_of_its_base_nor_change_them(compose: Compose) -> None:
    python = ["run", "--rm", "-T", "--entrypoint", "/opt/sluice/bin/python", "eval"]
    refused = compose(*python, "-c", "import vllm", expect=1)
    assert "No module named 'vllm'" in refused.stderr
    base = re.findall(r"^ARG EVAL_BASE_IMAGE=(.+)$", (compose.project / "Dockerfile.eval").read_text(), re.MULTILINE)[0]
    assert _packages(f"{compose.name}-eval") == _packages(os.environ.get("EVAL_BASE_IMAGE", base))


def test_training_goes_the_whole_way_sealed_in(compose: Compose) -> None:
    """No network, no home, nothing but the registry to write to."""
    compose.run("prune")  # whatever else has run: this takes the toy in
    compose.run("prune", "--recipe", "recipes/toy/repaired.yaml")
    told = compose.run("train", "--recipe", "recipes/toy/repaired.yaml", "--rehearse")
    assert "repaired can be made" in told.stdout


def test_pin_says_that_no_image_registry_answers_and_writes_nothing(project: Path, tmp_path: Path) -> None:
    shutil.copy(project / "Makefile", tmp_path)
    before = {}
    for file in project.glob("Dockerfile.*"):
        text = re.sub(r"^(ARG [A-Z]+_BASE_IMAGE=).+$", r"\g<1>127.0.0.1:1/none:1", file.read_text(), flags=re.MULTILINE)
        before[file.name] = text
        (tmp_path / file.name).write_text(text)
    done = subprocess.run(["make", "pin"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "no image registry answers for 127.0.0.1:1/none:1; nothing is written" in done.stderr
    assert {file.name: file.read_text() for file in tmp_path.glob("Dockerfile.*")} == before


def test_a_stage_that_is_stopped_ends_within_seconds_and_says_so(compose: Compose) -> None:
    compose.run("prune")  # whatever else has run: this takes the toy in
    name = f"{compose.name}-stopped"
    compose("run", "--detach", "--name", name, "eval", "--candidate", "toy", "--prove-only")
    try:
        deadline = time.monotonic() + 60
        while "start vllm" not in _docker("logs", name) and time.monotonic() < deadline:
            time.sleep(0.2)
        begun = time.monotonic()
        _docker("stop", "--time", "60", name)
        assert time.monotonic() - begun < 20
        assert _docker("inspect", "--format", "{{.State.ExitCode}}", name).strip() == "130"
        assert "interrupted" in _docker("logs", name)
    finally:
        _docker("rm", "--force", name)


def _packages(image: str) -> list[str]:
    freeze = ["--entrypoint", "python3", image, "-m", "pip", "freeze"]
    return _docker("run", "--rm", "--network", "none", *freeze).splitlines()


def _docker(*words: str) -> str:
    done = subprocess.run(["docker", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, f"{words}: {done.stdout}"
    return done.stdout
