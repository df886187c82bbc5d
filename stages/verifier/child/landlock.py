"""The files that a program may open: Python's (or node's) own to read, one empty folder to write (landlock(7)).

Nothing else of the file system opens, not even for reading; nor does a TCP port, and no signal leaves (newer kernels).
"""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterable

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_VERSION_ASKED = 1
_PATH_BENEATH = 1

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_READ = _EXECUTE | _READ_FILE | _READ_DIR
_FILE = _EXECUTE | _WRITE_FILE | _READ_FILE | 1 << 14
"""The rights that can be given on a single file; the last is to truncate it."""
_DEVICES_AND_SOCKETS = 1 << 6 | 1 << 9 | 1 << 11
"""To make character devices, sockets and block devices: nobody needs them."""
_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many rights on files each version of the interface knows; later ones know as many as the fifth."""


def confine(readable: Iterable[str], writable: Iterable[str]) -> bool:
    """Leaves this process, and all that it becomes, with these files and folders.

    Returns:
        whether it is in force: not in kernels without landlock.
    """
    libc = ctypes.CDLL(None)
    version = libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _VERSION_ASKED)
    if version < 1:
        return False
    everything = (1 << _RIGHTS.get(version, 16)) - 1
    # struct landlock_ruleset_attr: files; binding and connecting by TCP; abstract sockets and signals of others
    ruleset = struct.pack("=QQQ", everything, 0b11, 0b11)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = libc.syscall(_CREATE_RULESET, ruleset, ctypes.c_size_t(size), 0)
    if rules < 0:
        return False
    for paths, rights in ((readable, _READ), (writable, everything & ~_DEVICES_AND_SOCKETS)):
        for path in paths:
            _allow(libc, rules, path, rights & everything)
    done = libc.syscall(_RESTRICT_SELF, rules, 0) == 0
    os.close(rules)
    return done


def _allow(libc: ctypes.CDLL, rules: int, path: str, rights: int) -> None:
    try:
        opened = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not os.path.isdir(path):
        rights &= _FILE
    rule = struct.pack("=Qi", rights, opened)
    libc.syscall(_ADD_RULE, rules, _PATH_BENEATH, rule, 0)
    os.close(opened)
