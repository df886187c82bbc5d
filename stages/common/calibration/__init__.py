"""Calibration: from a mix to rows, from rows to batches of tokens.

A mix (`registry.recipes.Mix`) names datasets and how many rows to take from each. An adapter turns a row of each
dataset's own schema into a chat, as the model's template reads it:

    {"messages": [{"role": "user", "content": "…"}, …], "tools": [{"type": "function", …}]}

What was taken is one JSONL text, whose digest the manifest names: from there on nobody needs the datasets or a network.

`take` needs neither torch nor transformers; `tokenized` needs transformers, and `batches` torch.
"""

from stages.common.calibration.batches import (
    BATCH_TOKENS,
    Batch,
    Tokens,
    batches,
    excerpt,
    refuse_without_template,
    rendered,
    tokenized,
)
from stages.common.calibration.mixes import take

__all__ = [
    "BATCH_TOKENS",
    "Batch",
    "Tokens",
    "batches",
    "excerpt",
    "refuse_without_template",
    "rendered",
    "take",
    "tokenized",
]
