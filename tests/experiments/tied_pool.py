"""A pool of one run that goes on until it is stopped: `python -m tests.experiments.tied_pool SCRIPT
FOLDER`."""

import sys
from pathlib import Path

from handmim.experiments.runner import launch, local_jobs
from tests.experiments.conftest import planned

if __name__ == "__main__":
    runs = planned(Path(sys.argv[2])).chosen()[:1]
    launch(local_jobs([sys.executable, sys.argv[1]], ["wait"], runs), lambda run: None)
