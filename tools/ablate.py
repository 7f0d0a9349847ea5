"""An earlier name of tools/experiments.py."""

import sys

sys.stderr.write(
    "tools/ablate.py has another name, write python tools/experiments.py table=NAME ...\n"
)
sys.exit(2)
