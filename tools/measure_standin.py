"""Measure the stand-in hand and compare every measure with its range.

python tools/measure_standin.py [--hand data/standin_right.npz] [--poses 300] [--markdown]

Exit status 1 when a measure is out of its range.
"""

import argparse
from pathlib import Path

from rich.console import Console
from rich.table import Table

from handmim.hand.io import load_hand_arrays
from handmim.utils.entry import given_path, tool
from standin.measures import FACTS, measure


@tool()
def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hand", type=given_path, default=Path("data/standin_right.npz"))
    parser.add_argument("--poses", type=int, default=300, help="random poses to measure")
    parser.add_argument("--seed", type=int, default=5)
    parser.add_argument("--markdown", action="store_true", help="print a table for the docs")
    args = parser.parse_args()
    arrays = load_hand_arrays(args.hand)
    found = measure(arrays, args.poses, args.seed)
    rows = [
        (
            f.text,
            f"{found[f.key]:.{f.digits}f} {f.unit}".strip(),
            f.required(),
            f.holds(found[f.key]),
        )
        for f in FACTS
    ]
    if args.markdown:
        print("| measure | measured | must be |\n|---|---|---|")
        print("\n".join(f"| {text} | {value} | {required} |" for text, value, required, _ in rows))
    else:
        table = Table(
            "measure", "measured", "must be", "", title=f"{arrays.name} {arrays.sha256[:12]}"
        )
        for text, value, required, ok in rows:
            table.add_row(text, value, required, "" if ok else "[red]out of range")
        Console().print(table)
    return 0 if all(ok for *_, ok in rows) else 1


if __name__ == "__main__":
    main()
