"""An earlier name of a table of tools/experiments.py."""

import sys

sys.stderr.write(
    "tools/label_efficiency.py has another name, write "
    "python tools/experiments.py table=label_efficiency ...\n"
)
sys.exit(2)
