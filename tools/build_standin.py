"""Build the stand-in hand from its anthropometric measures (a minute; needs the extra `sculpt`).

python tools/build_standin.py [--out data/standin_right.npz]
"""

import argparse
from pathlib import Path

from handmim.hand.io import load_hand_arrays
from handmim.utils.entry import given_output, tool
from standin.build import build, write_npz


@tool()
def main() -> None:
    """Sculpt, mesh, rig, write, check."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=given_output, default=Path("data/standin_right.npz"))
    out = parser.parse_args().out
    write_npz(out, build())
    arrays = load_hand_arrays(out)
    print(f"wrote {out}: {out.stat().st_size / 1024:.0f} KiB, sha256 {arrays.sha256}")


if __name__ == "__main__":
    main()
