"""Stages as processes of this machine, each with the Python of its own environment."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gates.errors import UsageError
from registry import serving
from registry.processes import end_with_parent
from registry.running.lines import Lines
from registry.running.plan import Task

ENDING = "ending this step …"
_SECONDS_TO_END = 15
_TOKENS = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_LOOK = 0.5
"""Seconds after which a stage that says nothing is looked at: what it left behind may keep its output open."""


@dataclass(frozen=True, slots=True)
class Processes:
    """Runs stages here."""

    root: Path
    project: Path
    unsafe: bool = False
    """Whether code that a model wrote may run on this machine."""

    name = "local processes"

    def check(self, task: Task) -> None:
        """
        Raises:
            UsageError: the environment that the task needs is not installed, or the vLLM that it asks.
        """
        self._python(task)
        if task.kind == "evaluate" and (task.settings.engine or os.environ.get("SLUICE_ENGINE")) == "vllm":
            try:
                serving.program()
            except UsageError as error:
                error.where = f"{task.where}: {error.where}"
                raise

    def run(self, task: Task, words: Sequence[str], say: Callable[[str], None]) -> int:
        """Runs the stage of `task` to its end and gives its exit code, 128 and the signal's number if one ended it.

        Whatever leaves this call, the stage has ended: on Ctrl-C by one SIGTERM, in the last resort by SIGKILL.

        Args:
            words: what the stage is told (`Task.words`).
            say: is given every line that it writes.
        """
        command = self.command(task, words)
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}  # or lines of stdout and stderr would change places
        if not task.freezes:  # as in containers: what runs a model, or code that one wrote, needs no token
            environment = {key: value for key, value in environment.items() if key not in _TOKENS}
        stage = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            process_group=0,  # Ctrl-C is for this process, which then ends the stage once
            preexec_fn=end_with_parent,
        )
        with _ended(stage, say) as lines:
            try:
                _follow(stage, lines)
            except KeyboardInterrupt:
                say(ENDING)
                raise
        return stage.returncode if stage.returncode >= 0 else 128 - stage.returncode

    def command(self, task: Task, words: Sequence[str]) -> list[str]:
        place = ["--root", str(self.root), "--project", str(self.project)]
        command = [str(self._python(task)), "-P", "-m", f"stages.{task.kind}", *place, *words]
        command += ["--freeze"] * task.freezes
        return command + ["--unsafe-local-execution"] * (self.unsafe and task.kind == "evaluate")

    def described(self, task: Task, words: Sequence[str]) -> dict[str, Any]:
        """What `run` would start."""
        return {"command": self.command(task, words)}

    def _python(self, task: Task) -> Path:
        assert task.program is not None
        python = self.project / task.program.environment / "bin" / "python"
        if not python.exists():
            raise UsageError(
                f"the environment for {task.kind} is not installed",
                where=str(python.parent.parent),
                remedy="run `make envs`; or `make images`, to run it in a container",
            )
        return python.absolute()


@contextmanager
def undisturbed() -> Iterator[None]:
    """While the block runs, no second Ctrl-C interrupts it: cleaning up must come to its end."""
    heard = {each: signal.signal(each, signal.SIG_IGN) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for each, before in heard.items():
            signal.signal(each, before)


@contextmanager
def _ended(stage: subprocess.Popen[bytes], say: Callable[[str], None]) -> Iterator[Lines]:
    lines = Lines(say)
    try:
        yield lines
    finally:
        with undisturbed():
            if stage.poll() is None:
                stage.terminate()
                _follow(stage, lines, until=time.monotonic() + _SECONDS_TO_END)
            if stage.poll() is None:
                stage.kill()
                stage.wait()
            lines.end()
            assert stage.stdout is not None
            stage.stdout.close()


def _follow(stage: subprocess.Popen[bytes], lines: Lines, until: float = float("inf")) -> None:
    """Hands on what the stage writes until it has ended, or the time is up."""
    assert stage.stdout is not None
    with selectors.DefaultSelector() as waiting:
        waiting.register(stage.stdout, selectors.EVENT_READ)
        open_ = True
        while time.monotonic() < until:
            running = stage.poll() is None
            ready = open_ and bool(waiting.select(_LOOK if running else 0))
            data = os.read(stage.stdout.fileno(), 1 << 16) if ready else b""
            if data:
                lines.feed(data)
            elif not running:
                return
            elif ready:  # it has closed its output, and may go on without
                open_ = False
            elif not open_:
                time.sleep(_LOOK / 10)
