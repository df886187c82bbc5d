"""Nothing changes below the root but through `registry.syscalls`, where the other tests in this folder stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from tests.faults.scenarios import Scenario, each_scenario

LINE = re.compile(r"^(?:(?P<thread>\d+) +)?(?P<call>\w+)\((?P<arguments>.*)\) += (?P<result>-?\d+|\?)")

CHANGING = re.compile(
    r"mkdir|mkdirat|mknod|mknodat|rename|renameat|renameat2|link|linkat|symlink|symlinkat|unlink|unlinkat|rmdir|"
    r"fsync|fdatasync|sync_file_range|truncate|ftruncate|fallocate|chmod|fchmod|fchmodat|chown|fchown|utimensat|"
    r"write|writev|pwrite64|pwritev|pwritev2|copy_file_range|sendfile|splice|ioctl|mmap|setxattr|fsetxattr"
)


@pytest.mark.needs("strace")
@each_scenario
def test_every_change_below_the_root_is_an_injection_point(memory_path, project, scenario: Scenario):
    root, trace = memory_path / "models", memory_path / "trace"
    scenario.prepare(root)
    command = [sys.executable, "-m", "tests.faults.run_scenario", scenario.name, str(root)]
    watched = ["strace", "-f", "-y", "-s", "512", "-e", "trace=file,desc", "-o", str(trace), *command]
    run = subprocess.run(watched, cwd=project, env=os.environ, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    inside, outside = _changes(trace.read_text(), str(root))
    assert inside, "strace shows nothing"
    assert outside == []


def test_a_change_that_passes_nothing_is_seen():
    """The witness: what the test above would say of a rename between no marks."""
    text = (
        'access("/injection/begin", F_OK) = -1 ENOENT\n'
        'rename("/r/a", "/r/b") = 0\n'
        'access("/injection/end", F_OK) = -1 ENOENT\n'
        'rename("/r/b", "/r/c") = 0\n'
        "fsync(3</r/c>) = 0\n"
        "fsync(4</elsewhere>) = 0\n"
        'openat(AT_FDCWD, "/r/d", O_WRONLY|O_CREAT|O_EXCL, 0444) = 3</r/d>\n'
        'openat(AT_FDCWD, "/r/d", O_RDONLY) = 3</r/d>\n'
    )
    inside, outside = _changes(text, "/r")
    assert (len(inside), len(outside)) == (1, 3)


def _changes(trace: str, root: str) -> tuple[list[str], list[str]]:
    """The calls that changed something below the root, between marks and not."""
    inside: list[str] = []
    outside: list[str] = []
    marked: dict[str, bool] = {}
    for line in _whole(trace):
        match = LINE.match(line)
        if match is None:
            continue
        thread = match["thread"] or ""
        if "/injection/" in match["arguments"]:
            marked[thread] = "/injection/begin" in match["arguments"]
        elif _changes_something(match, root):
            (inside if marked.get(thread) else outside).append(line)
    return inside, outside


def _whole(trace: str) -> list[str]:
    """The trace's lines; a call that another thread's interrupted is put together again."""
    begun: dict[str, str] = {}
    lines = []
    for line in trace.splitlines():
        thread = line.partition(" ")[0]
        if line.endswith("<unfinished ...>"):
            begun[thread] = line.removesuffix("<unfinished ...>").rstrip()
        elif match := re.match(r"^\d+ +<\.\.\. \w+ resumed>(.*)$", line):
            lines.append(begun.pop(thread, "") + match[1])
        else:
            lines.append(line)
    return lines


def _changes_something(match: re.Match[str], root: str) -> bool:
    call, arguments = match["call"], match["arguments"]
    if match["result"].startswith("-") or (f"{root}/" not in arguments and f'{root}"' not in arguments):
        return False
    if call in ("open", "openat", "openat2", "creat"):
        return bool(re.search(r"O_CREAT|O_TRUNC", arguments))
    if call == "mmap":
        return "PROT_WRITE" in arguments and "MAP_SHARED" in arguments
    if call == "ioctl":
        return "FICLONE" in arguments
    return CHANGING.fullmatch(call) is not None
