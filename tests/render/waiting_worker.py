"""A worker of `render.cache` that says who it is and waits."""

import os
import sys
import time
from pathlib import Path

from handmim.render.cache import run_workers
from handmim.utils.processes import end_with_parent

if __name__ == "__main__":
    end_with_parent()
    (Path(sys.argv[1]).parent / f"pid-{sys.argv[2]}").write_text(str(os.getpid()))
    time.sleep(600)


def start(folder: str) -> None:
    run_workers(__name__, {}, Path(folder), 2, lambda: None)
