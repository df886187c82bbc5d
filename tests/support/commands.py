"""Commands of `registry` run one after the other by one process, which loads everything once: hundreds in a test.

    with Commands(environment) as run:
        done = run("push", "v7b", "hf://me/v7b", "--root", root)

It does not sleep: that the Hub's client waits before it asks again is the client's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

_PROGRAM = """
import contextlib, io, json, os, sys, time
from typer.main import get_command
from registry.cli import app
command = get_command(app)
time.sleep = lambda seconds: None
for line in sys.stdin:
    asked = json.loads(line)
    os.environ.update(asked["environment"])
    out, err, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            command(asked["words"])
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            import traceback
            code = 99
            traceback.print_exc()
    print(json.dumps({"returncode": code, "stdout": out.getvalue(), "stderr": err.getvalue()}), flush=True)
"""


@dataclass(frozen=True)
class Done:
    returncode: int
    stdout: str
    stderr: str


class Commands:
    def __init__(self, environment: dict[str, str]) -> None:
        self._child = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._child.communicate()

    def __call__(self, *words: str | Path, **environment: str) -> Done:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        asked = {"words": [str(word) for word in words], "environment": environment}
        self._child.stdin.write(json.dumps(asked) + "\n")
        self._child.stdin.flush()
        return Done(**json.loads(self._child.stdout.readline()))
