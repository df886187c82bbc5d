"""From a row of each dataset's own schema to a chat.

An adapter is a function from a row (a dict, as the dataset has it) to {"messages": […]} and, where there are tools,
"tools". It raises `Drift` with the field where a row is not of the schema that it knows: publishers rename fields, and
a row that is read wrong prunes wrong.
"""

from __future__ import annotations

import json
from typing import Any

from gates.errors import UsageError
from stages.common.calibration.adapters import (
    bigcodebench,
    c4,
    chat,
    evol_codealpaca,
    mixture_of_thoughts,
    mmlu,
    sharegpt,
    swe_bench,
    swe_smith,
    xlam,
)
from stages.common.calibration.adapters.fields import Adapter, Drift
from stages.common.calibration.chats import faults

ADAPTERS: dict[str, Adapter] = {
    "bigcodebench": bigcodebench.to_chat,
    "c4": c4.to_chat,
    "chat": chat.to_chat,
    "evol_codealpaca": evol_codealpaca.to_chat,
    "mixture_of_thoughts": mixture_of_thoughts.to_chat,
    "mmlu": mmlu.to_chat,
    "sharegpt": sharegpt.to_chat,
    "swe_bench": swe_bench.to_chat,
    "swe_smith": swe_smith.to_chat,
    "xlam": xlam.to_chat,
}


def written(row: Any, adapter: Adapter, *, where: str) -> bytes:
    """A row as a chat, in the one form in which rows are recorded.

    Its keys keep their order, because a chat template writes tool arguments in that order and the model reads it.

    Raises:
        UsageError: it is not of the schema; `where` and the field are named.
    """
    try:
        made = _checked(row, adapter)
        return json.dumps(made, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except Drift as drift:
        raise UsageError(
            f"{drift.field}: {drift.what}",
            where=where,
            remedy="this is not what the adapter knows: pin the revision that was meant, choose another adapter, or "
            "leave single rows out with skip: [NUMBER, …]",
        ) from None
    except (UnicodeEncodeError, ValueError, TypeError) as error:
        raise UsageError(f"not a JSON value in UTF-8: {error}", where=where) from None


def _checked(row: Any, adapter: Adapter) -> Any:
    if not isinstance(row, dict):
        raise Drift("the row", "not an object")
    made = adapter(row)
    for field, what in faults(made):
        raise Drift(field, what)
    return made
