"""What tests may need from outside: named by `@pytest.mark.needs(...)`.

For a user, a test whose component is missing is skipped with the reason. Where SLUICE_REQUIRE names the component
(comma-separated), as CI does, the same test fails.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import pytest
from hypothesis import settings

# A law holds or it does not; how long one example takes says nothing on a busy machine. Where components are required,
# as in CI, examples are the same each time: what fails there is the change, and not luck. By hand luck is welcome, and
# `pytest -m hypothesis --hypothesis-profile thorough` seeks it.
settings.register_profile("sluice", deadline=None, derandomize="SLUICE_REQUIRE" in os.environ)
settings.register_profile("thorough", deadline=None, max_examples=2000)
settings.load_profile("sluice")


def _missing(component: str) -> str | None:
    """Why `component` cannot be used here, or None if it can."""
    if component == "make" and shutil.which("make") is None:
        return "make is not installed"
    if component == "vllm" and not (Path(os.environ.get("VLLM", "/nowhere")) / "bin" / "vllm").is_file():
        return "VLLM names no environment with bin/vllm"
    if component == "chromium" and chromium() is None:
        return "there is no chromium on the path (Debian's package is called so)"
    if component == "oci" and (missing := [each for each in ("docker-registry", "oras") if shutil.which(each) is None]):
        return f"{' and '.join(missing)} are not on the path (Debian's packages are called so)"
    if component == "data" and not (public_data() / "gsm8k").is_dir():
        return "SLUICE_SHARED (../shared if it is not set) has no folder data with public sets"
    if component == "strace" and shutil.which("strace") is None:
        return "strace is not installed"
    if component == "mounts":
        return _no_mounts()
    if component == "containers":
        return _no_containers()
    return None


def public_data() -> Path:
    """Public sets as they are published, where somebody has laid them out."""
    return Path(os.environ.get("SLUICE_SHARED", Path(__file__).resolve().parents[2] / "shared")) / "data"


def chromium() -> str | None:
    """The browser that pages are looked at with."""
    return shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@cache
def _no_mounts() -> str | None:
    """Why no file system can be mounted in a namespace of its own here."""
    command = ["unshare", "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", tempfile.gettempdir()]
    if shutil.which("unshare") is None or subprocess.run(command, capture_output=True).returncode:
        return "`unshare --user --map-root-user --mount` cannot mount a tmpfs"
    return None


@cache
def _no_containers() -> str | None:
    """Why no image of ours can be built here. Base images are gigabytes, so none is pulled for a test."""
    if shutil.which("docker") is None or subprocess.run(["docker", "info"], capture_output=True).returncode:
        return "`docker info` does not work"
    for file in sorted(Path(__file__).resolve().parents[1].glob("Dockerfile.*")):
        setting, usual = re.findall(r"^ARG ([A-Z]+_BASE_IMAGE)=(.+)$", file.read_text(), re.MULTILINE)[0]
        image = os.environ.get(setting, usual)
        if subprocess.run(["docker", "image", "inspect", image], capture_output=True).returncode:
            return f"the base image {image} is not there ({setting} names another)"
    return None


def pytest_configure(config: pytest.Config) -> None:
    # A shell starts what it puts in the background deaf to these, and that is inherited; tests send them.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    config.addinivalue_line("markers", "needs(component): the test uses something that may be missing")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for marker in item.iter_markers("needs"):
        (component,) = marker.args
        reason = _missing(component)
        if reason is None:
            continue
        if component in os.environ.get("SLUICE_REQUIRE", "").split(","):
            pytest.fail(f"SLUICE_REQUIRE names {component!r}: {reason}", pytrace=False)
        pytest.skip(f"needs {component}: {reason}")


@pytest.fixture(scope="session")
def project() -> Path:
    """The checkout."""
    return Path(__file__).resolve().parents[1]
