"""How numbers with a unit are shown. It imports nothing, for a list of candidates needs it too."""

from __future__ import annotations


def size(count: int) -> str:
    """Bytes as people read them, in binary units: 7.1 MiB."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1024
    return f"{amount:.1f} TiB"
