"""The process that executes one program: it gives up what it may not have, and then becomes Python's or node's runner.

`python enter.py SETTINGS`, in JSON: language, parent, job and results (file numbers), values, node, limits.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import signal
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

import landlock  # noqa: E402 - beside this file
import seccomp  # noqa: E402

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS = 1, 38
_CAPSET = {"x86_64": 126, "aarch64": 91}
_CAPABILITIES_VERSION = 0x20080522

_PLACES = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime", "/dev/urandom", "/dev/zero")
_RESERVED = 1 << 40
"""Address space that node may reserve. What it writes to is limited."""


def main(settings: dict) -> None:
    libc = ctypes.CDLL(None)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != settings["parent"]:
        os._exit(1)  # it died before it could be said to end with it
    javascript = settings["language"] == "javascript"
    _first_to_be_killed_for_memory()
    _limit(settings["limits"], javascript)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    _drop_capabilities(libc)
    confined = []
    readable = [*_PLACES, sys.base_prefix, HERE, settings["values"]]
    if javascript:
        readable.append(os.path.realpath(settings["node"]))
    if landlock.confine(readable, [os.getcwd(), "/dev/null"]):
        confined.append("landlock")
    if seccomp.confine():
        confined.append("seccomp")
    os.write(settings["results"], json.dumps({"confined": confined}).encode() + b"\n")
    if javascript:
        _become_node(settings)
    import run_python

    run_python.run(settings["job"], settings["results"], settings["values"], settings["limits"]["recursion"])


def _first_to_be_killed_for_memory() -> None:
    try:
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
    except OSError:
        pass  # a kernel without it chooses by size


def _limit(limits: dict, javascript: bool) -> None:
    memory = limits["memory"]
    for what, most in (
        (resource.RLIMIT_AS, _RESERVED if javascript else memory),
        (resource.RLIMIT_DATA, memory),
        (resource.RLIMIT_FSIZE, limits["file"]),
        (resource.RLIMIT_NOFILE, limits["files"]),
        (resource.RLIMIT_STACK, 8 << 20),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        hard = resource.getrlimit(what)[1]
        most = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (most, most))
    # SIGXCPU tells what happened; to a program that does not listen SIGKILL follows
    resource.setrlimit(resource.RLIMIT_CPU, (limits["cpu"], limits["cpu"] + 1))


def _drop_capabilities(libc: ctypes.CDLL) -> None:
    """In a container there are none; to root on a machine this leaves what any user may do."""
    number = _CAPSET.get(os.uname().machine)
    if number is not None:
        libc.syscall(number, struct.pack("=Ii", _CAPABILITIES_VERSION, 0), bytes(24))


def _become_node(settings: dict) -> None:
    for number in (settings["job"], settings["results"]):
        os.set_inheritable(number, True)
    heap = settings["limits"]["memory"] // 2 >> 20
    script = os.path.join(HERE, "run_javascript.js")
    command = ["node", f"--max-old-space-size={heap}", "--no-warnings", "--experimental-vm-modules"]
    command += ["--openssl-config=/dev/null", script, str(settings["job"]), str(settings["results"])]
    os.execve(settings["node"], command, {})  # noqa: S606 - no shell has a part in it


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
