"""How fast this machine is, for estimates of time.

On a CPU the rate is measured, by the product of an expert with as many tokens as it will be given at a time. On CUDA a
probe would take device memory, so the rate is assumed, and said to be.
"""

from __future__ import annotations

import threading
import time

import torch

from stages.common.checkpoint import Checkpoint

DISK_RATE = 0.5e9
"""Bytes a second that are read or written: assumed, since to measure it would be to write."""
CUDA_RATE = 50e12
"""Products and sums a second in BF16: assumed."""
CUDA_CONTEXT = 600 << 20
"""Bytes that CUDA, its libraries and the allocator take of a device before the first tensor: assumed."""
_PROBE = 0.2
"""Seconds that the probe takes."""


def compute_rate(checkpoint: Checkpoint, *, tokens: int, threads: int, device: torch.device) -> tuple[float, str]:
    """Products and sums a second, and where the number is from.

    Args:
        tokens: that an expert of `checkpoint` is given at a time.
        threads: that compute.
    """
    if device.type != "cpu":
        return CUDA_RATE, f"{said(CUDA_RATE, 'FLOP')} are assumed"
    rate = _probed(min(4096, max(1, tokens)), *_widths(checkpoint), threads)
    return rate, f"{said(rate, 'FLOP')} were measured with {threads} thread" + ("s" if threads > 1 else "")


def said(rate: float, unit: str) -> str:
    """A rate in words: 0.5 GB/s."""
    for factor, letter in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if rate >= factor:
            return f"{rate / factor:.1f} {letter}{unit}/s"
    return f"{rate:.0f} {unit}/s"


def _widths(checkpoint: Checkpoint) -> tuple[int, int]:
    """Of an expert: the width of hidden states, and its own."""
    hidden = int(checkpoint.architecture.text["hidden_size"])
    for name, tensor in checkpoint.tensors.items():
        part = checkpoint.architecture.part(name)
        if part is not None and part.projection == "down_proj":
            return hidden, tensor.shape[-1]
    return hidden, hidden


def _probed(tokens: int, hidden: int, inner: int, threads: int) -> float:
    states, weights = torch.rand(tokens, hidden), torch.rand(inner, hidden)
    done = [0] * threads
    ends = time.perf_counter() + _PROBE

    def work(slot: int) -> None:
        torch.set_num_threads(1)  # as a stage's own threads have it
        while time.perf_counter() < ends:
            torch.nn.functional.linear(states, weights)
            done[slot] += 1

    begun = time.perf_counter()
    working = [threading.Thread(target=work, args=[slot]) for slot in range(threads)]
    for thread in working:
        thread.start()
    for thread in working:
        thread.join()
    return 2.0 * tokens * hidden * inner * sum(done) / (time.perf_counter() - begun)
