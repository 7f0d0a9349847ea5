"""Render a dataset in the very layout of a real one, with full truth, from any hand model.

python tools/synthesize.py root=data/fake_freihand num=2000 num_eval=200
python tools/synthesize.py format=ho3d_v2 root=data/fake_ho3d num=500 num_eval=100
python tools/synthesize.py format=folder root=data/crops num=5000
python tools/synthesize.py root=data/fake hand=mano hand.path=MANO_RIGHT.pkl

Interrupted, it goes on where it stopped when called again.
"""

import logging
import sys

from omegaconf import DictConfig

from handmim.pipelines.preflight import preflight
from handmim.utils.config import build, resolved
from handmim.utils.entry import tool


@tool("synthesize")
def main(cfg: DictConfig) -> int:
    """Write the dataset."""
    resolved(cfg)
    preflight(cfg)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    try:
        root = build(cfg.dataset)
    except KeyboardInterrupt:
        print("stopped; the same command goes on after the finished blocks", file=sys.stderr)
        return 130
    print(root)
    return 0


if __name__ == "__main__":
    main()
