"""Write the published subsets of FreiHAND's labels (no dataset is needed; the same bytes always).

python tools/label_splits.py [--out data/splits]
"""

import argparse
from pathlib import Path

from handmim.data.label_subsets import write_splits
from handmim.utils.entry import plain_tool
from handmim.utils.overrides import given_path


@plain_tool
def main() -> None:
    """Draw, write and print the paths."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=given_path, default=Path("data/splits"))
    for path in write_splits(parser.parse_args().out):
        print(path)


if __name__ == "__main__":
    main()
