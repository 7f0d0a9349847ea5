"""Pictures per second of the renderer on one core, and their cost relative to 128 px.

python tools/benchmark_render.py [--num 150]
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path

import cv2
from rich.console import Console
from rich.table import Table

from handmim.hand.arrays import load_hand_arrays
from handmim.render.scene import SceneRenderer, SceneSettings

STUDIO = SceneSettings(
    view="cone", sides=("dorsal",), background="studio", objects=0.0, occluders=0.0
)
FULL = SceneSettings()
CASES = {
    "64 px studio": replace(STUDIO, image_px=64),
    "128 px": replace(FULL, image_px=128),
    "224 px": FULL,
    "224 px, supersample 2": replace(FULL, supersample=2),
}


def main() -> None:
    """Measure the cases interleaved, so that a noisy machine disturbs all of them alike."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--hand", type=Path, default=Path("data/standin_right.npz"))
    parser.add_argument("--num", type=int, default=150, help="pictures per case")
    args = parser.parse_args()
    cv2.setNumThreads(1)
    arrays = load_hand_arrays(args.hand)
    renderers = {name: SceneRenderer(arrays, settings) for name, settings in CASES.items()}
    for renderer in renderers.values():
        renderer.render(0)  # compile, draw the first block of poses
    seconds: dict[str, list[float]] = {name: [] for name in CASES}
    for i in range(args.num):
        for name, renderer in renderers.items():
            began = time.process_time()
            renderer.render(i)
            seconds[name].append(time.process_time() - began)
    table = Table("scene", "images per CPU-second", "median time, relative to 128 px")
    base = statistics.median(seconds["128 px"])
    for name, times in seconds.items():
        table.add_row(
            name, f"{len(times) / sum(times):.0f}", f"{statistics.median(times) / base:.2f}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
