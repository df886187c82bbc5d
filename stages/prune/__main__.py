"""python -m stages.prune"""

from __future__ import annotations

from stages.common.stage import main
from stages.prune import check, freeze, prune

if __name__ == "__main__":
    main(
        "prune",
        prune,
        check=check,
        freeze=freeze,
        teach="Remove the experts that a calibration mix says matter least, one layer at a time. With "
        "--preflight nothing is begun: it says what will be read, and what it will ask of the machine.",
    )
