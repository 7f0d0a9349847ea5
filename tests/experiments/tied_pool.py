"""A pool of one run that goes on until it is stopped: `python -m tests.experiments.tied_pool SCRIPT
FOLDER`."""

import sys
from pathlib import Path

from handmim.experiments.runner import launch
from tests.experiments.conftest import planned

if __name__ == "__main__":
    runs = planned(Path(sys.argv[2])).chosen()[:1]
    command = [sys.executable, sys.argv[1]]
    launch(runs, lambda run: None, ["wait"], at_once=2, command=command)
