"""An earlier name of a table of tools/experiments.py."""

import sys

sys.exit(
    "tools/label_efficiency.py has another name, write "
    "python tools/experiments.py table=label_efficiency ..."
)
