"""How well the model answers as it is trained: over its 4-bit experts, with its adapters beside its weights.

`shipped` measures the same answers on the model as it would ship.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from stages.train.answers import Answers, Measured, judge

if TYPE_CHECKING:
    from peft import PeftModel


@torch.no_grad()
def loss(model: PeftModel, batches: Sequence[Answers], *, device: torch.device) -> Measured:
    """How well `model` says the answers of `batches`. It is left as it was, in training or not."""
    language = model.get_base_model()
    training = model.training
    model.eval()
    try:
        return Measured.of(
            judge(
                language.get_decoder()(
                    input_ids=batch.input_ids.to(device),
                    attention_mask=batch.attention_mask.to(device),
                    use_cache=False,
                ).last_hidden_state,
                batch.labels,
                language.get_output_embeddings(),
            )
            for batch in batches
        )
    finally:
        model.train(training)
