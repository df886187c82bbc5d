"""python -m stages.prune"""

from __future__ import annotations

from stages.common.stage import main
from stages.prune import prune

if __name__ == "__main__":
    main("prune", prune, teach="Remove the experts that a calibration mix says matter least, one layer at a time.")
