"""Let memory go back to the system."""

from __future__ import annotations

import ctypes
import ctypes.util
from collections.abc import Callable
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE = 1 << 20


def give_back() -> None:
    """Gives freed memory back to the system, and has the allocator do so by itself with large blocks from now on.

    glibc raises the size from which a block is the system's to up to 32 MiB as a program frees large blocks, and keeps
    what lies below it in pieces: the memory of a layer that is loaded and dropped forty times then grows with the
    number of layers (docs/experiments.md). Other allocators are left as they are.
    """
    set_option, trim = _function("mallopt"), _function("malloc_trim")
    if set_option is not None and trim is not None:
        set_option(_M_MMAP_THRESHOLD, _LARGE)
        set_option(_M_TRIM_THRESHOLD, _LARGE)
        trim(0)


def _function(name: str) -> Callable[..., Any] | None:
    library = ctypes.util.find_library("c")
    return getattr(ctypes.CDLL(library), name, None) if library else None
