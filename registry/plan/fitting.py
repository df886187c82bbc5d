"""Whether a candidate fits a card, in one sentence for its report: its own bytes, and the cache of a sequence."""

from __future__ import annotations

from decimal import Decimal

from gates.errors import SluiceError
from registry import output
from registry.plan import Card, Load, Terms, demand, of_tensors
from registry.store import Candidate

OVERHEAD = 2**30
UTILISATION = Decimal("0.92")
"""As `registry plan` assumes unless told, and vLLM by default."""
LOAD = Load(context=32768, sequences=1)


def sentence(candidate: Candidate, memory: int) -> str | None:
    """What it takes of a card with `memory` bytes, and what is left; None where its files do not tell."""
    from registry.checkpoint import headers, read_config
    from registry.families import architecture_of

    path = candidate.resolved()
    try:
        tensors = headers(path)
        model = of_tensors(architecture_of(read_config(path)), tensors)
    except SluiceError:
        return None  # a page without this line is better than none; `registry verify` says what is wrong
    needed = demand(model, LOAD, Terms(format="bf16", mtp=True))
    weights = sum(tensor.size for tensor in tensors.values())
    cache = needed.kv_cache + needed.mtp_cache + needed.linear_state
    room = Card(memory=memory, utilisation=UTILISATION, overhead=OVERHEAD).room
    left = room - weights - cache
    outcome = f"fits, with {output.size(left)} left" if left >= 0 else f"does not fit: {output.size(-left)} too many"
    return (
        f"{outcome}: weights {output.size(weights)}, the cache of {LOAD.context} tokens {output.size(cache)}; "
        f"of the card's {output.size(memory)} a server has {output.size(max(room, 0))} "
        f"({UTILISATION} of it, without {output.size(OVERHEAD)} for itself)"
    )
