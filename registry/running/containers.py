"""Stages in containers: the services of compose.yaml, started by `docker compose run` and followed through the engine.

Compose reads its own files (.env, overrides, anchors, profiles) and makes the container, so its settings are those of
`docker compose run`, today and with the next compose.yaml. What happens to the container then (its lines, its exit
code, its end) is the engine's to say.

Each container carries a label with the registry's folder. So the next run finds and removes what an earlier one, that
was killed, left; there is one run at a time in a registry. Services that a stage depends on, Compose starts; they are
removed when no container that depends on them is left.
"""

from __future__ import annotations

import json
import os
import re
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
from registry.layout import ROOT, ROOT_VARIABLE
from registry.ownership import IN_CONTAINER
from registry.processes import end_with_parent
from registry.running import following
from registry.running.lines import Lines
from registry.running.local import ENDING, undisturbed
from registry.running.plan import NETWORKED, Program, Task

if TYPE_CHECKING:
    from docker import DockerClient
    from docker.models.containers import Container

LABEL = "sluice.run"
"""On every container that this starts; its value is the registry's folder."""

_ENGINE_ANSWERS = 60
_LONGEST_STEP = 30 * 24 * 3600
"""Seconds."""
_PYTHON = "/opt/sluice/bin/python"
_FOLDER = re.compile(r"(?<![\w./:~-])/\w+(?![\w-]|\.\w)")
"""At the beginning of a path."""
_PROJECT, _SERVICE = "com.docker.compose.project", "com.docker.compose.service"


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
        from docker.errors import ImageNotFound

        service = _service(task)
        if service not in self.model["services"]:
            raise UsageError(f"compose.yaml has no service {service}", where=str(self.project / "compose.yaml"))
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
        for mount in (each for each in volumes if each["target"] == str(IN_CONTAINER)):
            _agree(self.root, Path(_plain(mount["source"])), self.project)

    def run(self, task: Task, words: Sequence[str], say: Callable[[str], None]) -> int:
        """Runs the stage of `task` to its end, and gives its exit code.

        Whatever leaves this call, the container is gone: on Ctrl-C it is stopped first.

        Raises:
            UsageError: Compose cannot start it, or somebody else has removed it.
        """
        service = _service(task)
        name = f"{self.model['name']}-{service}-{secrets.token_hex(4)}"
        lines = Lines(lambda line: say(self._named_outside(line, service)))
        try:
            with following.in_our_words():
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
        """Stops and removes what runs of this registry started, and services that were started for them; how many."""
        with undisturbed(), following.in_our_words():
            found = self.engine.containers.list(all=True, filters={"label": f"{LABEL}={self.root}"})
            for container in found:
                following.remove(container)
            for service in {each for name in self.model["services"] for each in self._needed(name)}:
                if not any(self._containers(user) for user in self._users(service)):
                    for container in self._containers(service, ended=True):
                        following.remove(container)
            return len(found)

    def leave(self, say: Callable[[str], None]) -> None:
        """`remove` at an end that has its own reason, which an engine that fails must not take the place of."""
        try:
            self.remove()
        except UsageError as error:
            say(f"a container may be left, which the next run removes: {error.what}")

    def _named_outside(self, line: str, service: str) -> str:
        """A line from a container of the service, with folders as this machine calls them."""
        mounts = self.model["services"][service].get("volumes", [])
        names = {each["target"]: _plain(each["source"]) for each in mounts if each["type"] == "bind"}
        return _FOLDER.sub(lambda found: names.get(found[0], found[0]), line)

    def _start(self, task: Task, name: str | None, words: Sequence[str]) -> list[str]:
        """The words after `docker compose`."""
        command = ["run", "--detach", "--no-TTY", "--interactive=false"]
        command += ["--name", name, "--label", f"{LABEL}={self.root}"] if name else []
        if task.freezes:
            command += ["--entrypoint", f"{_PYTHON} -P -m stages.{task.kind} --freeze"]
        return [*command, _service(task), *words]

    def _image(self, service: str) -> str:
        return str(self.model["services"][service].get("image") or f"{self.model['name']}-{service}")

    def _needed(self, service: str) -> list[str]:
        """The services that must run before `service` does."""
        found: list[str] = []
        for each in self.model["services"].get(service, {}).get("depends_on", {}):
            found += [each, *self._needed(each)]
        return list(dict.fromkeys(found))

    def _users(self, service: str) -> list[str]:
        return [name for name in self.model["services"] if service in self._needed(name)]

    def _containers(self, service: str, *, ended: bool = False) -> list[Container]:
        labels = [f"{_PROJECT}={self.model['name']}", f"{_SERVICE}={service}"]
        return list(self.engine.containers.list(all=ended, filters={"label": labels}))


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
    try:
        import docker
        from requests import RequestException
    except ImportError:
        raise UsageError("the Python package docker is not installed", remedy="make envs; or --local") from None
    try:
        engine = docker.from_env(timeout=_ENGINE_ANSWERS)
        engine.ping()
    # the last three are of an address, or a configuration, that is none
    except (docker.errors.DockerException, RequestException, ValueError, TypeError, AttributeError) as error:
        raise UsageError(
            f"no container engine answers: {following.reason(error)}",
            remedy="start Docker, or join the group that may use it (`docker info` says more; DOCKER_HOST and "
            "DOCKER_CONTEXT name an engine); or --local",
        ) from None
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
        last = "; ".join(said.strip().splitlines()[-3:]) or f"it ends with {compose.returncode}"
        remedy = (
            "see `docker info` and `docker compose config`; without the plugin: install Docker Compose "
            "(docs.docker.com/compose/install)"
        )
        raise UsageError(f"Docker Compose refuses: {last}", where=str(project / "compose.yaml"), remedy=remedy)
    return out
