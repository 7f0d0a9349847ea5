"""A pool of one cell that trains until it is stopped: `python -m tests.ablation.tied_pool SCRIPT
FOLDER`."""

import sys
from pathlib import Path

from handmim.ablation.launch import local_pool
from tests.ablation.conftest import planned

if __name__ == "__main__":
    cells = planned(Path(sys.argv[2])).chosen()[:1]
    local_pool([sys.argv[1]], ["wait"], cells, finished=lambda cell: None, jobs=1)
