"""Stages in containers: the services of compose.yaml, started by `docker compose run` and followed through the engine.

Compose reads its own files (.env, overrides, anchors, profiles) and makes the container, so its settings are those of
`docker compose run`, today and with the next compose.yaml. What happens to the container then (its lines, its exit
code, its end) is the engine's to say.

Every registry has a Compose project of its own, whose name ends with a digest of the registry's folder. So runs in
other registries, and `docker compose run` by hand, have other verifiers and take none away from each other; and
whatever there is of the project, an earlier run left that was killed, for there is one run at a time in a registry.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gates.errors import UsageError
from registry import output
from registry.layout import IN_CONTAINER, ROOT, ROOT_VARIABLE
from registry.processes import end_with_parent
from registry.running import following
from registry.running.lines import Lines
from registry.running.local import ENDING, undisturbed
from registry.running.plan import NETWORKED, Program, Task

if TYPE_CHECKING:
    from docker import DockerClient

_LONGEST_STEP = 30 * 24 * 3600
"""Seconds."""
_PYTHON = "/opt/sluice/bin/python"
_PROJECT = "com.docker.compose.project"


@dataclass(frozen=True, slots=True)
class Containers:
    """Runs stages in containers of the project's services. `opened` makes one."""

    root: Path
    """Resolved: however it is called, it is one registry."""
    project: Path
    engine: DockerClient
    model: dict[str, Any]
    """The project as Compose resolves it: `docker compose config`."""

    name = "containers"

    def check(self, task: Task) -> None:
        """
        Raises:
            UsageError: compose.yaml has no service for the task, its image is not built, it would run as somebody else,
                or its recipe lies where no container sees it.
        """
        service = _service(task)
        if service not in self.model["services"]:
            raise UsageError(f"compose.yaml has no service {service}", where=str(self.project / "compose.yaml"))
        self._demand_images(service)
        user, owner = str(self.model["services"][service].get("user")).partition(":")[0], self.root.stat()
        if user.isdecimal() and int(user) != owner.st_uid:
            raise UsageError(
                f"containers run as user {user}, and the registry belongs to user {owner.st_uid}",
                where=str(self.project / ".env"),
                remedy=f"put SLUICE_UID={owner.st_uid} and SLUICE_GID={owner.st_gid} there; or --local",
            )
        if task.path.is_absolute():
            raise UsageError(
                "a container sees only the project's folder, and the recipe lies outside",
                where=str(task.path),
                remedy="put it into recipes/; or --local, to run as processes of this machine",
            )

    def check_registry(self) -> None:
        """Holds the registry against the one in which `docker compose run` would work. That .env names another, and
        nobody chose this one, is no wish to have two.

        Raises:
            UsageError: so it is.
        """
        model = json.loads(_compose(self.project, None, "config", "--format", "json"))
        volumes = model["services"].get("registry", {}).get("volumes", [])
        for mount in (each for each in volumes if each["target"] == IN_CONTAINER):
            _agree(self.root, Path(_plain(mount["source"])), self.project)

    def run(self, task: Task, words: Sequence[str], say: Callable[[str], None]) -> int:
        """Runs the stage of `task` to its end, and gives its exit code.

        Whatever leaves this call, the container is gone: on Ctrl-C it is stopped first.

        Raises:
            UsageError: Compose cannot start it, or somebody else has removed it or its image.
        """
        name = f"{self._apart}-{_service(task)}-{secrets.token_hex(4)}"
        lines = Lines(say)
        try:
            with following.in_our_words():
                self._demand_images(_service(task))  # Compose would build what was removed meanwhile, unasked
                _compose(self.project, self.root, *self._start(task, name, words))
                container = self.engine.containers.get(name)
                following.follow(container, lines)
                lines.end()
                return int(container.wait(timeout=_LONGEST_STEP)["StatusCode"])
        except KeyboardInterrupt:
            say(ENDING)
            with undisturbed(), suppress(UsageError), following.in_our_words():
                container = self.engine.containers.get(name)
                container.stop(timeout=following.SECONDS_TO_END)
                following.hand_on(container, lines, follow=False)
                lines.end()
            raise
        finally:
            self.leave(say)

    def described(self, task: Task, words: Sequence[str]) -> dict[str, Any]:
        """What `run` would start."""
        service = self.model["services"][_service(task)]
        mounts = [
            f"{_plain(each.get('source', each['type']))}:{each['target']}{':ro' * bool(each.get('read_only'))}"
            for each in service.get("volumes", [])
        ]
        return {
            "command": ["env", f"SLUICE_MODELS={self.root}", "docker", "compose", *self._start(task, None, words)],
            "image": self._image(_service(task)),
            "user": service.get("user"),
            "network": service.get("network_mode") or ", ".join(service.get("networks") or {}),
            "mounts": mounts,
            "needs": self._needed(_service(task)),
        }

    def remove(self) -> int:
        """Stops and removes what runs of this registry started, with networks and volumes; how many containers."""
        mine = {"label": f"{_PROJECT}={self._apart}"}
        with undisturbed(), following.in_our_words():
            found = self.engine.containers.list(all=True, filters=mine, sparse=True)
            for container in found:
                following.remove(container)
            for each in (*self.engine.networks.list(filters=mine), *self.engine.volumes.list(filters=mine)):
                following.discard(each)
            return len(found)

    def leave(self, say: Callable[[str], None]) -> None:
        """`remove` at an end that has its own reason, which an engine that fails must not take the place of."""
        try:
            self.remove()
        except UsageError as error:
            say(f"a container may be left, which the next run removes: {error.what}")

    @property
    def _apart(self) -> str:
        """The name of this registry's Compose project."""
        return f"{self.model['name']}-{hashlib.sha256(os.fsencode(self.root)).hexdigest()[:8]}"

    def _start(self, task: Task, name: str | None, words: Sequence[str]) -> list[str]:
        """The words after `docker compose`."""
        command = ["--project-name", self._apart] if name else []
        command += ["run", "--detach", "--no-TTY", "--interactive=false", *(("--name", name) if name else ())]
        if task.freezes:
            command += ["--entrypoint", f"{_PYTHON} -P -m stages.{task.kind} --freeze"]
        return [*command, _service(task), *words]

    def _image(self, service: str) -> str:
        return str(self.model["services"][service].get("image") or f"{self._apart}-{service}")

    def _demand_images(self, service: str) -> None:
        from docker.errors import ImageNotFound

        for each in (service, *self._needed(service)):
            image = self._image(each)
            try:
                self.engine.images.get(image)
            except ImageNotFound:
                raise UsageError(
                    f"the image of {each} is not built",
                    where=image,
                    remedy="make images; or --local, to run as processes of this machine",
                ) from None

    def _needed(self, service: str) -> list[str]:
        """The services that must run before `service` does."""
        found: list[str] = []
        for each in self.model["services"].get(service, {}).get("depends_on", {}):
            found += [each, *self._needed(each)]
        return list(dict.fromkeys(found))


def opened(root: Path, project: Path) -> Containers:
    """
    Raises:
        UsageError: there is no compose.yaml or no Docker Compose, no engine answers, or no container could write to the
            registry as the person who runs this.
    """
    root, project = root.resolve(), project.absolute()
    if not (project / "compose.yaml").is_file():
        raise UsageError("there is no compose.yaml", where=str(project), remedy="start this in the project's folder")
    if shutil.which("docker") is None:
        raise UsageError("Docker is not installed", remedy="install Docker with its Compose plugin; or --local")
    engine = following.connected()
    _refuse_owner(root)
    model = json.loads(_compose(project, root, "--profile", "*", "config", "--format", "json"))
    return Containers(root, project, engine, model)


@contextmanager
def cleared(containers: Containers) -> Iterator[Containers]:
    """Without what an earlier run left behind, and afterwards without what this one started."""
    left = containers.remove()
    if left:
        output.hint(f"removed {left} container{'s' * (left > 1)} that an earlier run left behind")
    try:
        yield containers
    finally:
        containers.leave(output.hint)
        containers.engine.close()


def _service(task: Task) -> str:
    program = task.program
    assert isinstance(program, Program)
    return NETWORKED if task.freezes else program.service


def _refuse_owner(root: Path) -> None:
    """Records are written by this process too, and containers run as the owner of the registry's folder."""
    owner = root.stat().st_uid
    if owner == 0:
        raise UsageError(
            "the registry's folder belongs to root, as which no container runs",
            where=str(root),
            remedy="give it to a user, and work as that user; or --local",
        )
    if owner != os.geteuid():
        raise UsageError(
            f"the registry belongs to user {owner}, and this runs as user {os.geteuid()}",
            where=str(root),
            remedy="run this as its owner, who needs the right to use Docker; or --local",
        )


def _agree(root: Path, mounted: Path, project: Path) -> None:
    """
    Args:
        mounted: what Compose mounts where nobody tells it otherwise.

    Raises:
        UsageError: it was told to mount another registry than `root`, and `root` is where nobody chose one.
    """
    if mounted.resolve() in (root, (project / ROOT).resolve()):
        return
    if root != ROOT.resolve():
        output.hint(f"this works in {root}; `docker compose run` works in {mounted} (SLUICE_MODELS)")
        return
    raise UsageError(
        f"containers work in another registry: SLUICE_MODELS is {mounted}, and this would work in {root}",
        where=str(project / ".env"),
        remedy=f"{ROOT_VARIABLE}={mounted} or --root {mounted}; or, for this one, SLUICE_MODELS={root} there",
    )


def _plain(text: str) -> str:
    """`docker compose config` writes a $ as a compose.yaml would have to."""
    return text.replace("$$", "$")


def _compose(project: Path, root: Path | None, *words: str) -> str:
    """What `docker compose` writes to stdout. However this is left, the command has ended.

    Args:
        root: the registry to mount; None: the one that Compose mounts by itself.

    Raises:
        UsageError: it fails; with its last lines.
    """
    command = ["docker", "compose", *words]
    # the registry that is worked in is the one to mount; everything else is as compose.yaml and .env say
    environment = os.environ | ({"SLUICE_MODELS": str(root)} if root else {})
    with subprocess.Popen(
        command,
        cwd=project,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
        preexec_fn=end_with_parent,
    ) as compose:
        try:
            out, said = compose.communicate()
        except BaseException:
            with undisturbed():
                if compose.poll() is None:
                    os.killpg(compose.pid, signal.SIGTERM)
                compose.communicate()
            raise
    if compose.returncode:
        told = [line for line in said.splitlines() if line.strip() and not line.startswith(" ")]  # but for its progress
        last = "; ".join(told[-3:]) or f"it ends with {compose.returncode}"
        remedy = (
            "see `docker info` and `docker compose config`; without the plugin: install Docker Compose "
            "(docs.docker.com/compose/install)"
        )
        what = "refuses" if compose.returncode > 0 else "was killed"
        raise UsageError(f"Docker Compose {what}: {last}", where=str(project / "compose.yaml"), remedy=remedy)
    return out
