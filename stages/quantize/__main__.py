"""python -m stages.quantize"""

from __future__ import annotations

from stages.common.stage import main
from stages.quantize import quantize

if __name__ == "__main__":
    main(
        "quantize",
        quantize,
        teach="Quantise a candidate's experts and projections to block FP8, which vLLM and transformers load.",
    )
