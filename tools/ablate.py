"""An earlier name of tools/experiments.py."""

import sys

sys.exit("tools/ablate.py has another name, write python tools/experiments.py table=NAME ...")
