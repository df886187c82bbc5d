"""python -m stages.train"""

from __future__ import annotations

from stages.common.stage import main
from stages.train import check, freeze, train
from stages.train.rehearsal import rehearse

if __name__ == "__main__":
    main(
        "train",
        train,
        check=check,
        freeze=freeze,
        rehearse=rehearse,
        teach="Fine-tune adapters over frozen 4-bit experts and merge them into the original weights. While it trains, "
        "the model is measured as it is trained and as it would ship, and training ends when the two part. "
        "With --rehearse it goes the whole way in minutes, with two layers; with --preflight it begins nothing.",
    )
