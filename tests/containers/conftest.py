"""Containers as users run them: `docker compose` in a copy of the project that belongs to an ordinary user."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

UID = os.getuid() or 1234
"""The person whose project it is: whoever runs the tests, or, since nobody works as root, somebody."""

TOKEN = "hf_thisIsNobodysTokenInAContainer"  # noqa: S105 - nobody's
"""Set wherever Compose and the command line run, from the first build on."""

PARTS = (
    *("Dockerfile.prune", "Dockerfile.eval", "Dockerfile.train", "compose.yaml", ".dockerignore"),
    *("pyproject.toml", "README.md", "gates", "registry", "stages", "locks", "recipes", "mixes", "packs", "policies"),
)


@dataclass(frozen=True)
class Compose:
    """A project folder, and `docker compose` in it."""

    project: Path
    environment: dict[str, str]

    @property
    def name(self) -> str:
        return self.environment["COMPOSE_PROJECT_NAME"]

    @property
    def models(self) -> Path:
        return self.project / "models"

    @property
    def port(self) -> int:
        return int(self.environment["SLUICE_PORT"])

    def __call__(self, *words: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            ["docker", "compose", "--profile", "serve", *words],
            cwd=self.project,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == expect, f"{words} ended with {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done

    def run(self, service: str, *words: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        return self("run", "--rm", "-T", service, *words, expect=expect)

    def started(self, *words: str) -> subprocess.Popen[str]:
        """The command `registry` of this machine, as the person whose project it is."""
        command = [str(Path(__file__).resolve().parents[2] / ".venv" / "bin" / "registry"), *words]
        if os.getuid() == 0:  # that person may use the engine, and may read the interpreter wherever it lies
            group = str(Path("/var/run/docker.sock").stat().st_gid)
            person = ["setpriv", f"--reuid={UID}", f"--regid={UID}", f"--groups={group}"]
            command = [*person, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", *command]
        return subprocess.Popen(
            command,
            cwd=self.project,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def registry(self, *words: str, expect: int = 0) -> subprocess.CompletedProcess[str]:
        """The same, to its end."""
        running = self.started(*words)
        out, said = running.communicate()
        assert running.returncode == expect, f"{words} ended with {running.returncode}:\n{out}\n{said}"
        return subprocess.CompletedProcess(running.args, running.returncode, out, said)

    def json(self, *words: str) -> Any:
        return json.loads(self.run("registry", *words, "--json").stdout)

    def containers(self) -> list[str]:
        """Every container of this project and of what `registry run` makes of it, running or not."""
        return self._ours("ps", "--all", of=self.name)

    def left(self) -> list[str]:
        """The containers, volumes and networks that `registry run` has not taken away."""
        return [each for kind in (("ps", "--all"), ("volume", "ls"), ("network", "ls")) for each in self._ours(*kind)]

    def _ours(self, *words: str, of: str | None = None) -> list[str]:
        line = f'{{{{.Label "com.docker.compose.project"}}}} {{{{.{"ID" if words[0] == "ps" else "Name"}}}}}'
        told = subprocess.run(["docker", *words, "--format", line], capture_output=True, text=True, check=True).stdout
        return [each.split()[1] for each in told.splitlines() if each.startswith(of or f"{self.name}-")]

    def empty_registry(self, owner: int = UID) -> None:
        """As in a fresh clone: a folder with its .gitignore and nothing else."""
        shutil.rmtree(self.models, ignore_errors=True)
        self.models.mkdir()
        (self.models / ".gitignore").write_text("*\n!.gitignore\n")
        self.own(self.models, owner)

    def own(self, folder: Path, owner: int) -> None:
        """Gives a folder to a user, by the engine, which may do so whoever runs the tests."""
        command = ["docker", "run", "--rm", "--user", "0", "--network", "none", "--volume", f"{folder}:/folder"]
        command += ["--entrypoint", "chown", f"{self.name}-registry", "-R", f"{owner}:{owner}", "/folder"]
        subprocess.run(command, check=True, capture_output=True)


@pytest.fixture(scope="session")
def compose(project: Path) -> Iterator[Compose]:
    """The project with its images built, as a fresh clone of an ordinary user's."""
    place = Path(tempfile.mkdtemp(prefix="sluice-containers-"))  # pytest's own folders are closed to that user
    place.chmod(0o755)
    folder = place / "project"
    folder.mkdir()
    for part in PARTS:
        copy = shutil.copytree if (project / part).is_dir() else shutil.copy
        copy(project / part, folder / part)
    (folder / ".env").write_text(f"SLUICE_UID={UID}\nSLUICE_GID={UID}\n")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    name = f"sluice-test-{os.getpid()}"
    settings = {"COMPOSE_PROJECT_NAME": name, "SLUICE_IMAGES": name, "SLUICE_PORT": str(port), "HF_TOKEN": TOKEN}
    # a registry of the user's own must stay out of this
    others = {key: value for key, value in os.environ.items() if not key.startswith(("SLUICE_", "COMPOSE_"))}
    made = Compose(folder, others | settings)
    made("build", "--quiet")
    try:
        made.own(folder, UID)
        made.empty_registry()
        yield made
    finally:
        made("down", "--timeout", "20", "--volumes")
        made.own(folder, os.getuid())
        made("down", "--rmi", "all")
        shutil.rmtree(place)
