"""The system calls that a program may not make, as a filter in the kernel (seccomp(2)), which nothing takes off again.

What is denied fails with EPERM, as without a right. A program makes no process (threads it may have), signals none but
its own, opens no socket, and reaches none of the calls that look into other processes, leave something behind outside
the file system, or change who sees what. A filter sees the numbers of a call and not what pointers lead to: which
files may be opened is landlock's part. What can be done to a file without opening it (its mode, owner, times,
attributes) landlock leaves free, in every folder of the same user's; so it is denied here, everywhere.
"""

from __future__ import annotations

import ctypes
import os
import re
import struct

_PR_SET_SECCOMP = 22
_MODE_FILTER = 2

_ALLOW = 0x7FFF0000
_KILL = 0x80000000
_EPERM = 0x00050000 | 1
_ENOSYS = 0x00050000 | 38

# offsets in struct seccomp_data; arguments are read by their lower halves
_NUMBER, _ARCHITECTURE = 0, 4

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06

_ARCHITECTURES = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""The kernel's name for the architecture, and which column of the tables holds its numbers."""

_X32 = 0x40000000
"""From here on x86_64 has a second set of numbers for the same calls."""

_DENIED = """
other processes     fork 57 -  vfork 58 -  ptrace 101 117  kcmp 312 272  tkill 200 130
                    rt_sigqueueinfo 129 138  rt_tgsigqueueinfo 297 240
                    pidfd_open 434 434  pidfd_getfd 438 438  pidfd_send_signal 424 424
                    process_vm_readv 310 270  process_vm_writev 311 271  process_madvise 440 440
                    process_mrelease 448 448  migrate_pages 256 238  move_pages 279 239
                    setpriority 141 140  ioprio_set 251 30  sched_setaffinity 203 122  sched_setattr 314 274
                    sched_setparam 142 118  sched_setscheduler 144 119
its own limits      setrlimit 160 164
sockets             socket 41 198  io_uring_setup 425 425  io_uring_enter 426 426  io_uring_register 427 427
a file's own marks   chmod 90 -  fchmod 91 52  fchmodat 268 53  fchmodat2 452 452
                    chown 92 -  lchown 94 -  fchown 93 55  fchownat 260 54
                    utime 132 -  utimes 235 -  futimesat 261 -  utimensat 280 88
                    setxattr 188 5  lsetxattr 189 6  fsetxattr 190 7  setxattrat 463 463
                    removexattr 197 14  lremovexattr 198 15  fremovexattr 199 16  removexattrat 466 466
                    file_setattr 469 469  truncate 76 45
memory unlimited    memfd_create 319 279  memfd_secret 447 447
what outlives it    shmget 29 194  semget 64 190  msgget 68 186  mq_open 240 180
                    keyctl 250 219  add_key 248 217  request_key 249 218
namespaces, mounts  unshare 272 97  setns 308 268  chroot 161 51  mount 165 40  umount2 166 39  pivot_root 155 41
                    open_tree 428 428  move_mount 429 429  mount_setattr 442 442
                    fsopen 430 430  fsconfig 431 431  fsmount 432 432  fspick 433 433
the kernel          bpf 321 280  perf_event_open 298 241  userfaultfd 323 282  fanotify_init 300 262
                    name_to_handle_at 303 264  open_by_handle_at 304 265  personality 135 92
                    reboot 169 142  kexec_load 246 104  kexec_file_load 320 294
                    init_module 175 105  finit_module 313 273
                    delete_module 176 106  swapon 167 224  swapoff 168 225  acct 163 89  quotactl 179 60
                    settimeofday 164 170  clock_settime 227 112  adjtimex 159 171  clock_adjtime 305 266
                    sethostname 170 161  setdomainname 171 162  syslog 103 116  vhangup 153 58
                    iopl 172 -  ioperm 173 -
"""
"""Calls with their numbers on x86_64 and on aarch64, from the kernel's tables."""

_CLONE, _CLONE3, _KILL_CALL, _TGKILL = (56, 220), (435, 435), (62, 129), (234, 131)
_OPEN, _OPENAT, _OPENAT2 = (2, None), (257, 56), (437, 437)
_PRLIMIT, _FCNTL, _IOCTL, _PRCTL = (302, 261), (72, 25), (16, 29), (157, 167)

_CLONE_THREAD = 0x10000
_O_WRONLY_OR_RDWR, _O_TRUNC = 0b11, 0o1000
_SIGNALLING_FCNTL = (8, 10, 15)
"""F_SETOWN, F_SETSIG, F_SETOWN_EX: with these the kernel sends any signal to any process of the same user."""
_DENIED_IOCTL = (0x8901, 0x8902, 0x5412, 0x40086602, 0x401C5820)
"""FIOSETOWN and SIOCSPGRP do the same; TIOCSTI types into a terminal; FS_IOC_SETFLAGS and FS_IOC_FSSETXATTR mark files,
for which it is enough to have them open to read."""
_ENDING_PRCTL = (1,)
"""PR_SET_PDEATHSIG: a program ends with the supervisor, even with one that is killed."""


def confine() -> bool:
    """Puts the filter on this process and all that it becomes; it must have no other threads yet.

    Returns:
        whether it is in force: not on other architectures or in kernels without seccomp.
    """
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        return False
    program = _program(*_ARCHITECTURES[machine])
    code = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    described = Program(len(program) // 8, ctypes.cast(code, ctypes.c_void_p))
    prctl = ctypes.CDLL(None).prctl
    return prctl(_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(described), 0, 0) == 0


def _program(architecture: int, column: int) -> bytes:
    """The filter in classic BPF. Each rule is a block that returns or leaves the call's number loaded."""
    me = os.getpid()
    code = [
        _step(_LOAD, _ARCHITECTURE),
        _step(_EQUAL, architecture, 1, 0),
        _step(_RETURN, _KILL),
        _step(_LOAD, _NUMBER),
    ]
    if column == 0:
        code += [_step(_AT_LEAST, _X32, 0, 1), _step(_RETURN, _EPERM)]
    for numbers in re.findall(r"\w+ (\d+) (\d+|-)", _DENIED):
        if numbers[column] != "-":
            code += [_step(_EQUAL, int(numbers[column]), 0, 1), _step(_RETURN, _EPERM)]
    for newer in (_CLONE3, _OPENAT2):  # who finds these missing takes the older ones, whose arguments can be seen
        code += [_step(_EQUAL, newer[column], 0, 1), _step(_RETURN, _ENOSYS)]
    code += _rule(_CLONE[column], 0, [_step(_ANY_BIT, _CLONE_THREAD, 1, 0), _step(_RETURN, _EPERM)])
    for call in (_KILL_CALL, _TGKILL):
        code += _rule(call[column], 0, [_step(_EQUAL, me, 1, 0), _step(_RETURN, _EPERM)])
    code += _rule(_PRLIMIT[column], 0, [_step(_EQUAL, me, 2, 0), _step(_EQUAL, 0, 1, 0), _step(_RETURN, _EPERM)])
    for half in (0, 4):  # the new limits: a pointer, both halves of which are 0 if there are none
        code += _rule(_PRLIMIT[column], 2, [_step(_EQUAL, 0, 1, 0), _step(_RETURN, _EPERM)], half)
    for number, argument in ((_OPEN[column], 1), (_OPENAT[column], 2)):
        if number is not None:  # opened to read and emptied all the same: older landlocks do not know of it
            emptied = [_step(_ANY_BIT, _O_TRUNC, 0, 2), _step(_ANY_BIT, _O_WRONLY_OR_RDWR, 1, 0)]
            code += _rule(number, argument, [*emptied, _step(_RETURN, _EPERM)])
    for call, argument, denied in (
        (_FCNTL, 1, _SIGNALLING_FCNTL),
        (_IOCTL, 1, _DENIED_IOCTL),
        (_PRCTL, 0, _ENDING_PRCTL),
    ):
        for value in denied:
            code += _rule(call[column], argument, [_step(_EQUAL, value, 0, 1), _step(_RETURN, _EPERM)])
    return b"".join([*code, _step(_RETURN, _ALLOW)])


def _rule(number: int, argument: int, steps: list[bytes], half: int = 0) -> list[bytes]:
    """`steps` about one argument of the call `number`; other calls jump over them."""
    block = [_step(_LOAD, 16 + 8 * argument + half), *steps, _step(_LOAD, _NUMBER)]
    return [_step(_EQUAL, number, 0, len(block)), *block]


def _step(code: int, value: int, if_so: int = 0, if_not: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_so, if_not, value)
