"""Programs that do everything but what they were asked for: `f(6, 7)` should give 42. None may be taken for right, none
may do harm, and each must be reported for what it did."""

from __future__ import annotations

import re
from dataclasses import dataclass
from textwrap import dedent
from typing import Any

from stages.common.execution import Execution, Raised, Result, Returned, decode, same

RIGHT = 42


@dataclass(frozen=True)
class Hostile:
    """
    Attributes:
        ends: the outcome, and of one that is `done` the call's value; None: anything but right.
        says: a pattern in the detail.
        slow: it takes all of its time.
    """

    name: str
    execution: Execution
    ends: tuple[str, Any] | None
    says: str = ""
    slow: bool = False

    def check(self, result: Result) -> None:
        assert not right(result), f"{self.name} passes: {result}"
        if self.ends is None:
            return
        assert result.outcome == self.ends[0], f"{self.name}: {result}"
        assert re.search(self.says, result.detail), f"{self.name}: {result}"
        assert (result.detail != "") == (result.outcome != "done"), f"{self.name}: {result}"
        if self.ends[0] == "done":
            (value,) = result.values
            assert value == self.ends[1], f"{self.name}: {result}"


def right(result: Result) -> bool:
    """As a grader would judge."""
    return result.outcome == "done" and all(
        isinstance(each, Returned) and same(decode(each.value), RIGHT) for each in result.values
    )


def python(body: str) -> Execution:
    """`body` as the body of f, unless it defines one itself."""
    code = dedent(body)
    if "def f(" not in code and not code.startswith("f ="):
        code = "def f(a, b):\n" + "".join(f"    {line}\n" for line in code.splitlines())
    return Execution("python", code, "f", ((6, 7),))


def javascript(body: str) -> Execution:
    code = dedent(body)
    return Execution(
        "javascript", code if "f(" in code or "f =" in code else f"function f(a, b) {{{code}}}", "f", ((6, 7),)
    )


INNOCENT = {
    "python": python("import os; assert os.listdir('.') == [], os.listdir('.'); return a * b"),
    "javascript": javascript("if (require('fs').readdirSync('.').length) throw new Error('files'); return a * b"),
}
"""What is executed after each: right, unless the one before left something."""

DENIED = Returned("denied")
TRY = """
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
def denied(*calls):
    for call in calls:
        try:
            if (made := call()) is None or not isinstance(made, int) or made >= 0:
                return f"{call}: {made}"
        except OSError as error:
            pass
    return "denied"
"""

PIPES = """
import os
def say(data):
    for number in range(3, 20):
        try:
            os.write(number, data)
        except OSError:
            pass
"""

PYTHON = [
    # processes
    Hostile("fork bomb", python("import os\nwhile True: os.fork()"), ("done", Raised("PermissionError"))),
    Hostile(
        "subprocess bomb",
        python("import subprocess, sys\nwhile True: subprocess.Popen([sys.executable, '-c', 'while 1: pass'])"),
        ("done", Raised("PermissionError")),
    ),
    Hostile(
        "thread bomb",
        python("""
        import threading, time
        while True: threading.Thread(target=time.sleep, args=(1000,)).start()
        """),
        ("done", Raised("RuntimeError")),
    ),
    Hostile(
        "threads without stacks of their own",
        python("""
        import ctypes, mmap, time
        libc = ctypes.CDLL(None)
        room = mmap.mmap(-1, 200 << 20)
        start = ctypes.addressof(ctypes.c_char.from_buffer(room))
        pause = ctypes.cast(libc.pause, ctypes.c_void_p)
        for number in range(1, 40_000):
            if libc.clone(pause, ctypes.c_void_p(start + 4096 * number), 0x50F00, None) < 0: break
        time.sleep(1)
        return a * b + 1
        """),
        None,  # in a container there are no numbers for so many, and what is made is ended with the call
    ),
    Hostile(
        "processes by other calls",
        python(
            TRY + "def f(a, b): return denied(lambda: libc.syscall(57), lambda: libc.syscall(58),"
            " lambda: libc.syscall(435, 0, 0), lambda: libc.syscall(56, 17, 0, 0, 0, 0),"
            " lambda: libc.syscall(0x40000000 | 57), lambda: os.posix_spawn('/bin/true', ['true'], {}))"
        ),
        ("done", DENIED),
    ),
    Hostile(
        "a process left behind",
        python("""
        import os, time
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                while True: time.sleep(1)
            os._exit(0)
        return a * b
        """),
        ("done", Raised("PermissionError")),
    ),
    Hostile(
        "another program in its place",
        python("import os\nos.execv('/bin/sh', ['sh', '-c', 'echo 42; sleep 1000 & exit 0'])"),
        ("failed", None),
        r"ended \(exit status",
    ),
    # time
    Hostile("endless loop", python("while True: pass"), ("timeout", None), "computed|passed", slow=True),
    Hostile(
        "endless loop that ignores signals",
        python("""
        import signal, threading
        for number in signal.valid_signals():
            try: signal.signal(number, signal.SIG_IGN)
            except OSError: pass
        threading.Thread(target=lambda: [None for _ in iter(int, 1)]).start()
        while True: pass
        """),
        ("timeout", None),
        "computed|passed",
        slow=True,
    ),
    Hostile(
        "endless loop as it is loaded", python("while True: pass\ndef f(a, b): return 42"), ("timeout", None), slow=True
    ),
    Hostile("sleep", python("import time\ntime.sleep(100000)"), ("timeout", None), "s passed", slow=True),
    Hostile(
        "stops itself", python("import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)"), ("failed", None), "stopped"
    ),
    # memory
    Hostile("4 GB", python("return len(bytearray(4 << 30))"), ("done", Raised("MemoryError"))),
    Hostile(
        "4 GB in pieces", python("kept = []\nwhile True: kept.append(bytes(1 << 20))"), ("done", Raised("MemoryError"))
    ),
    Hostile("4 GB shared", python("import mmap\nreturn len(mmap.mmap(-1, 4 << 30))"), ("done", Raised("OSError"))),
    Hostile(
        "shared memory that outlives it",
        python(
            TRY
            + "def f(a, b): return denied(lambda: libc.shmget(0, 1 << 20, 0o1600), lambda: libc.semget(0, 1, 0o1600),"
            " lambda: libc.msgget(0, 0o1600), lambda: libc.syscall(240, b'left', 0o102, 0o600, 0))"
        ),
        ("done", DENIED),
    ),
    Hostile(
        "deep recursion",
        python("import sys\nsys.setrecursionlimit(2**31 - 1)\ndef g(x): return [*map(g, [x])]\nreturn g(1)"),
        ("failed", None),
        "SIGSEGV|memory",
    ),
    Hostile("usual recursion", python("def f(a, b): return f(a, b)"), ("done", Raised("RecursionError"))),
    Hostile("endless int", python("n = 2\nwhile True: n = n * n"), ("timeout", None), slow=True),
    # output
    Hostile(
        "a gigabyte of output",
        python("for _ in range(1024): print('x' * (1 << 20))\nreturn a * b"),
        ("failed", None),
        "printed more",
    ),
    Hostile(
        "a gigabyte of errors",
        python("import os\nfor _ in range(1024): os.write(2, b'x' * (1 << 20))\nreturn a * b"),
        ("failed", None),
        "printed more",
    ),
    Hostile("a pass mark", python("print('PASSED 1/1')\nprint('{\"returned\":42}')"), ("done", Returned(None))),
    Hostile(
        "nested results",
        python("x = []\nfor _ in range(100000): x = [x]\nreturn x"),
        ("done", Returned({"strange": "a value nested beyond 48 levels"})),
    ),
    Hostile(
        "endless results",
        python("x = []\nx.append(x)\nreturn x"),
        ("done", Returned({"strange": "a value nested beyond 48 levels"})),
    ),
    Hostile(
        "wide results",
        python("x = []\nfor _ in range(40): x = [x, x]\nreturn x"),
        ("done", Returned({"strange": "a value larger than 64 MiB"})),
    ),
    Hostile(
        "large results", python("return 'x' * (1 << 28)"), ("done", Returned({"strange": "a value larger than 64 MiB"}))
    ),
    Hostile(
        "a file too large",
        python("with open('x', 'wb') as file:\n    while True: file.write(bytes(1 << 20))"),
        ("done", Raised("OSError")),
    ),
    # the way out
    Hostile("exit", python("import os\nos._exit(0)"), ("failed", None), r"exit status 0\) after 0 of 1 calls"),
    Hostile(
        "exit as it is loaded",
        python("import os\nos._exit(0)\ndef f(a, b): return 42"),
        ("failed", None),
        "exit status 0",
    ),
    Hostile("sys.exit", python("import sys\nsys.exit(0)"), ("done", Raised("SystemExit"))),
    Hostile(
        "sys.exit as it is loaded",
        python("import sys\nsys.exit(0)\ndef f(a, b): return 42"),
        ("failed", None),
        "SystemExit",
    ),
    Hostile(
        "at the end",
        python("import atexit\natexit.register(print, 'PASSED')\nraise KeyboardInterrupt"),
        ("done", Raised("KeyboardInterrupt")),
    ),
    Hostile("a crash", python("import ctypes\nctypes.string_at(0)"), ("failed", None), "SIGSEGV"),
    # lies
    Hostile(
        "a value that equals everything",
        python("""
        class Yes:
            __eq__ = lambda *_: True
            __hash__ = lambda *_: 42
            __class__ = int
            def __int__(self): return 42
            __index__ = __int__
            def __reduce__(self): return (int, (42,))
        def f(a, b): return Yes()
        """),
        ("done", Returned({"strange": "answer.Yes"})),
    ),
    Hostile(
        "a number that is none",
        python("class int(int): pass\ndef f(a, b): return int(42)"),
        ("done", Returned({"strange": "answer.int"})),
    ),
    Hostile(
        "a type that lies about its name",
        python("""
        class Meta(type):
            __name__ = __module__ = property(lambda *_: 1 / 0)
            def __getattribute__(self, name): raise SystemExit
            def __instancecheck__(self, it): raise SystemExit
        class Yes(metaclass=Meta):
            def __getattribute__(self, name): raise SystemExit
        def f(a, b): return [Yes()]
        """),
        ("done", Returned([{"strange": "answer.Yes"}])),
    ),
    Hostile(
        "an exception that lies",
        python("""
        class Fine(Exception):
            def __str__(self): raise SystemExit
            __repr__ = __str__
        Fine.__name__ = 'Fine\\n{"returned":42}'
        def f(a, b): raise Fine
        """),
        ("done", Raised('Fine?{"returned":42}')),
    ),
    Hostile(
        "patched builtins",
        python("""
        import builtins, json, os
        builtins.type = lambda *_: int
        builtins.len = lambda *_: 1
        builtins.isinstance = builtins.callable = lambda *_: True
        builtins.sorted = builtins.repr = builtins.hex = builtins.str = lambda *_, **__: "42"
        json.dumps = json.JSONEncoder.encode = lambda *_: '{"returned":true}'
        def f(a, b): return None
        """),
        ("done", Returned(True)),
    ),
    Hostile("generator", python("yield 42"), ("done", Returned({"strange": "generator"}))),
    Hostile(
        "garbage in the pipe of the results",
        python(PIPES + "def f(a, b):\n    say(b'garbage\\n')\n    return a * b"),
        ("failed", None),
        "wrote to the pipe",
    ),
    Hostile(
        "more results than calls",
        python(PIPES + "def f(a, b):\n    say(b'{\"returned\":41}\\n')\n    return a * b"),
        ("failed", None),
        "wrote to the pipe",
    ),
    Hostile(
        "endless forged nesting",
        python(PIPES + "def f(a, b):\n    say(b'{\"returned\":' + b'[' * 100000 + b'\\n')\n    os._exit(0)"),
        ("failed", None),
        "wrote to the pipe",
    ),
    Hostile(
        "endless forged results",
        python(PIPES + "def f(a, b):\n    while True: say(b'{\"returned\":0}' * 10000)"),
        ("failed", None),
        "more than 4 MiB",
    ),
    Hostile(
        "closes the pipe of its results",
        python("import os\nos.closerange(3, 128)\nreturn a * b"),
        ("failed", None),
        "after 0 of 1 calls",
    ),
    Hostile(
        "closes the pipe of its results and stays",
        python("import os, time\nos.closerange(3, 128)\ntime.sleep(1000)"),
        ("failed", None),
        "after 0 of 1 calls",
    ),
    Hostile("no program", python("def f(a, b) return 42"), ("failed", None), "SyntaxError"),
    Hostile("no text", python("def f(a, b): return 42\0"), ("failed", None), "null byte"),
    Hostile("half a letter", python("def f(a, b): return '\ud800'"), ("failed", None), "UnicodeEncodeError"),
    Hostile(
        "no function",
        python("def g(a, b): return 42\nclass A:\n    def f(a, b): return 42"),
        ("failed", None),
        "defines no function f",
    ),
    Hostile("no function but a number", python("f = 42"), ("failed", None), "defines no function f"),
    Hostile("reads its input", python("return input()"), ("done", Raised("EOFError"))),
    # what is not its own
    Hostile(
        "the network",
        python("import socket\nsocket.create_connection(('127.0.0.1', 80), timeout=5)"),
        ("done", Raised("PermissionError")),
    ),
    Hostile(
        "sockets of other kinds",
        python(
            TRY
            + """
def f(a, b):
    import glob, socket
    kinds = [(2, 1), (2, 2), (2, 3), (10, 1), (1, 1), (16, 3), (17, 3), (40, 1)]
    return denied(*[lambda kind=kind: socket.socket(*kind) for kind in kinds], lambda: libc.syscall(425, 8, b'x' * 120))
"""
        ),
        ("done", DENIED),
    ),
    Hostile(
        "writes elsewhere",
        python(
            TRY
            + """
def f(a, b):
    places = ['/tmp', '/var/tmp', '/dev/shm', '/models', '/work', '/run/verifier', '/run', '/', '/home/sluice', '/root']
    places += ['..']
    places += [p.rstrip('/') + '/verifier.sock' for p in places] + ['/proc/self/comm', '/etc/passwd']
    files = places + [p + '/left' for p in places]
    return denied(*[lambda p=p: os.open(p, os.O_CREAT | os.O_WRONLY, 0o600) for p in files],
        *[lambda p=p: os.unlink(p) or 0 for p in places], *[lambda p=p: os.mkfifo(p + '/left') or 0 for p in places],
        *[lambda p=p: os.symlink('/etc', p + '/left') or 0 for p in places])
"""
        ),
        ("done", DENIED),
    ),
    Hostile("reads the environment", python("import os\nreturn dict(os.environ)"), ("done", Returned({"dict": []}))),
    Hostile(
        "reads what others hold",
        python(
            TRY
            + """
def f(a, b):
    places = [f'/proc/{p}/{n}' for p in ('self', 1, os.getppid()) for n in ('environ', 'mem', 'cmdline', 'maps', 'fd')]
    places += ['/etc/passwd', '/etc/hostname', '/models', '/work', '/tmp', '/run', '/run/verifier', '/home', '..']
    def read(p): return os.listdir(p) if os.path.isdir(p) else open(p, 'rb').read()
    return denied(*[lambda p=p: read(p) for p in places])
"""
        ),
        ("done", DENIED),
    ),
    Hostile(
        "kills its parent",
        python(
            TRY
            + """
def f(a, b):
    import fcntl, resource, signal
    parent = os.getppid()
    reading, writing = os.pipe()
    def by_the_kernel():
        fcntl.fcntl(reading, fcntl.F_SETOWN, parent)
        return 0
    return denied(*[lambda p=p: os.kill(p, 9) or 0 for p in (parent, 1, -1, -parent)],
        lambda: libc.syscall(234, parent, parent, 9), lambda: libc.syscall(200, parent, 9),
        lambda: libc.syscall(129, parent, 9, bytes(128)), lambda: libc.syscall(424, 0, 9, 0, 0),
        lambda: os.pidfd_open(parent),
        lambda: resource.prlimit(parent, resource.RLIMIT_CPU, (0, 0)) and 0, lambda: os.setpriority(0, parent, 19) or 0,
        lambda: os.sched_setaffinity(parent, {0}) or 0, lambda: libc.ptrace(16, parent, 0, 0),
        lambda: libc.process_vm_readv(parent, 0, 0, 0, 0, 0), by_the_kernel,
        lambda: fcntl.fcntl(reading, fcntl.F_SETSIG, 9),
        lambda: fcntl.ioctl(reading, 0x8901, parent.to_bytes(4, 'little')) and 0)
"""
        ),
        ("done", DENIED),
    ),
    Hostile(
        "raises its own limits",
        python(
            TRY
            + """
def f(a, b):
    import resource
    def more(what): resource.setrlimit(what, (-1, -1)); return 0
    def try_(what):
        try: return more(what)
        except ValueError: return -1
    return denied(*[lambda w=w: try_(w) for w in range(16)], lambda: os.nice(-5),
        lambda: os.setuid(0) or 0 if os.getuid() else -1)
"""
        ),
        ("done", DENIED),
    ),
    Hostile(
        "the kernel's own",
        python(
            TRY
            + """
def f(a, b):
    numbers = [165, 166, 155, 161, 272, 308, 321, 298, 323, 250, 248, 169, 175, 167, 170, 164, 430, 428, 304, 103, 163]
    return denied(*[lambda n=n: libc.syscall(n, 0, 0, 0, 0, 0) for n in numbers], lambda: os.chroot('.') or 0,
        lambda: libc.syscall(272, 0x10000000), lambda: libc.unshare(0x20000000))
"""
        ),
        ("done", DENIED),
    ),
    Hostile(
        "marks files that it cannot open",
        python(
            TRY
            + """
def f(a, b):
    import fcntl
    places = [os.path.realpath(each) for each in (os.sys.executable, '/tmp', '/usr', '.')]
    numbers = [90, 91, 268, 452, 92, 94, 93, 260, 132, 235, 261, 280, 188, 189, 190, 463, 197, 198, 199, 466, 469, 76]
    opened = os.open(os.__file__, os.O_RDONLY)
    return denied(*[lambda p=p: os.chmod(p, 0o700) or 0 for p in places],
        *[lambda p=p: os.utime(p) or 0 for p in places],
        *[lambda p=p: os.chown(p, os.getuid(), os.getgid()) or 0 for p in places],
        *[lambda p=p: os.setxattr(p, 'user.x', b'1') or 0 for p in places],
        lambda: os.fchmod(opened, 0o644) or 0, lambda: fcntl.ioctl(opened, 0x40086602, bytes(8)) and 0,
        lambda: os.truncate(os.__file__, 0) or 0, lambda: os.open(os.__file__, os.O_RDONLY | os.O_TRUNC),
        lambda: libc.syscall(437, -100, os.__file__.encode(), bytes(24), 24),
        *[lambda n=n: libc.syscall(n, b'.', 0, 0, 0, 0) for n in numbers])
"""
        ),
        ("done", DENIED),
    ),
    Hostile(
        "memory that no limit counts",
        python(TRY + "def f(a, b): return denied(lambda: os.memfd_create('x'), lambda: libc.syscall(447, 0))"),
        ("done", DENIED),
    ),
    Hostile(
        "wants to outlive the supervisor",
        python(TRY + "def f(a, b): return denied(lambda: libc.prctl(1, 0), lambda: libc.prctl(1, 17))"),
        ("done", DENIED),
    ),
    Hostile(
        "numbers made to have one hash",
        python(
            PIPES
            + """
def f(a, b):
    alike = (f'{{"int":"{hex((2**61 - 1) * (2**10 + i) + 5)}"}}' for i in range(60_000))
    say(b'{"returned":{"set":[' + ','.join(alike).encode() + b']}}\\n')
    os._exit(0)
"""
        ),
        ("failed", None),
        "pipe of its results itself",
    ),
    Hostile(
        "files left behind",
        python("""
        import os
        for number in range(200): open(f"left{number}", "w").close()
        os.mkdir("closed", 0); open(b"\\xff\\n left", "w").close()
        os.symlink("/", "root"); os.symlink("nowhere", "closed.0~"); os.mkfifo("pipe")
        for _ in range(1000):
            os.mkdir("d"); os.chdir("d")
        """),
        ("done", Returned(None)),
    ),
]

JAVASCRIPT = [
    Hostile("js endless loop", javascript("for (;;);"), ("timeout", None), "computed|passed", slow=True),
    Hostile(
        "js promise of nothing", javascript("return new Promise(() => {})"), ("failed", None), "after 0 of 1 calls"
    ),
    Hostile("js exit", javascript("process.exit(0)"), ("failed", None), "exit status 0"),
    Hostile(
        "js exit as it is loaded",
        javascript("process.exit(0); function f() { return 42 }"),
        ("failed", None),
        "exit status 0",
    ),
    Hostile("js abort", javascript("process.abort()"), ("failed", None), "SIGABRT"),
    Hostile("js stops itself", javascript("process.kill(process.pid, 'SIGSTOP')"), ("failed", None), "stopped itself"),
    Hostile(
        "js kills its parent",
        javascript("process.kill(process.ppid, 'SIGKILL'); return 42 + 1"),
        ("done", Raised("Error")),
    ),
    Hostile(
        "js processes",
        javascript("return require('child_process').spawnSync('sh').error.code"),
        ("done", Returned("EPERM")),
    ),
    Hostile(
        "js network",
        javascript(
            "return new Promise((give) => require('net').connect(80, '127.0.0.1').on('error', (e) => give(e.code)))"
        ),
        ("done", Returned("EPERM")),
    ),
    Hostile(
        "js server",
        javascript(
            "return new Promise((give) => require('net').createServer().on('error', (e) => give(e.code)).listen('x'))"
        ),
        ("done", Returned("EPERM")),
    ),
    Hostile(
        "js memory",
        javascript("const kept = []; for (;;) kept.push(new Array(4e6).fill(a));"),
        ("failed", None),
        "memory runs out",
    ),
    Hostile("js large buffer", javascript("return Buffer.alloc(4 * 2 ** 30).length"), ("done", Raised("RangeError"))),
    Hostile(
        "js output",
        javascript("for (;;) require('fs').writeSync(1, 'x'.repeat(1e6))"),
        ("failed", None),
        "printed more",
    ),
    Hostile("js pass mark", javascript("console.log('PASSED')"), ("done", Returned({"strange": "undefined"}))),
    Hostile("js environment", javascript("return Object.keys(process.env)"), ("done", Returned([]))),
    Hostile(
        "js writes elsewhere",
        javascript("try { require('fs').writeFileSync('/tmp/left', '') } catch (e) { return e.code }"),
        ("done", Returned("EACCES")),
    ),
    Hostile(
        "js polluted prototypes",
        javascript("""
        JSON.stringify = () => '42';
        Object.prototype.toJSON = Array.prototype.toJSON = String.prototype.toString = () => 42;
        Object.prototype.value = Object.prototype.returned = 42;
        Array.prototype.map = Array.prototype[Symbol.iterator] = Array.prototype.push = () => 42;
        Function.prototype.call = Function.prototype.apply = () => 42;
        process.reallyExit = process.exit = () => 42;
        const f = (a, b) => ({ sum: [a + b, 'x'], nan: NaN });
        """),
        ("done", Returned({"dict": [["sum", [13, "x"]], ["nan", {"float": "nan"}]]})),
    ),
    Hostile("js recursion", javascript("function f(a, b) { return f(a, b) }"), ("done", Raised("RangeError"))),
    Hostile(
        "js nested results",
        javascript("let x = []; for (let i = 0; i < 1e5; i++) x = [x]; return x"),
        ("done", Returned({"strange": "a value nested beyond 48 levels"})),
    ),
    Hostile(
        "js value that equals everything",
        javascript("return { valueOf: () => 42, toString: () => '42' }"),
        ("done", Returned({"dict": [["valueOf", {"strange": "function"}], ["toString", {"strange": "function"}]]})),
    ),
    Hostile(
        "js object in disguise",
        javascript("class Yes { toJSON() { return 42 } }; return new Yes()"),
        ("done", Returned({"strange": "Yes"})),
    ),
    Hostile(
        "js value that fights", javascript("return { get x() { process.exit(0) } }"), ("failed", None), "exit status 0"
    ),
    Hostile(
        "js forged results",
        javascript("""
        for (let n = 3; n < 40; n++) try { require('fs').writeSync(n, '{"returned":41}\\n') } catch {}
        return a * b
        """),
        None,  # it writes into node's own pipes too, and may not live to say more
    ),
    Hostile("js no program", javascript("function f( { return 42 }"), ("failed", None), "SyntaxError"),
    Hostile("js no function", javascript("const f = 42"), ("failed", None), "defines no function f"),
    Hostile("js thrown text", javascript("throw 'x'"), ("done", Raised("string"))),
]

ALL = [*PYTHON, *JAVASCRIPT]
