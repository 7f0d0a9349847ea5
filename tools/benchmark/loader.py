"""The whole loader: files to batches of views on the device, by number of processes; wall time."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from lightning_fabric import Fabric

from benchmark.data import INFO, like_ibot
from benchmark.pictures import write_jpegs
from benchmark.race import Bench, Row
from handmim.data.crops import CropFolder
from handmim.data.loader import collate_crops
from handmim.data.views import ViewMaker
from handmim.engine.prefetch import PrefetchingLoader
from handmim.utils.seed import step_generator
from handmim.utils.timer import wait_for

WARM = 2  # steps before the clock starts


def fed(
    loader: PrefetchingLoader,
    make: ViewMaker,
    num_steps: int,
    batch_size: int,
    eaten_per_s: float | None,
) -> tuple[float, float]:
    """Seconds of `num_steps` batches after the first few, and the share of them that was spent
    waiting, for a training that eats so many pictures per second; None is as many as come."""
    batches = iter(loader)
    began = waited = 0.0
    for step in range(WARM + num_steps):
        if step == WARM:
            began, waited = time.perf_counter(), loader.waited_s
        started = time.perf_counter()
        make(next(batches), step_generator(0, "prepare", step, 0), INFO)
        wait_for(loader.device)
        if eaten_per_s is not None:
            time.sleep(max(0.0, batch_size / eaten_per_s - time.perf_counter() + started))
    seconds = time.perf_counter() - began
    return seconds, (loader.waited_s - waited) / seconds


def measure(
    bench: Bench,
    *,
    hand: str,
    num: int,
    view_px: int,
    batch_size: int,
    num_steps: int,
    num_workers: Sequence[int],
    augment_on: Sequence[str],
    eaten_per_s: float | None,
) -> Iterator[list[Row]]:
    """A case per place where pixels are made, a row per number of processes.

    Args:
        bench: where; each row is measured once.
        hand: file of the hand model, for the pictures.
        num: pictures, 224 px JPEGs.
        view_px: side of the views.
        batch_size, num_steps: of the batches that are timed.
        num_workers: processes that load, one row each.
        augment_on: "cpu", "device".
        eaten_per_s: pictures per second that the training would take; None = as many as come.
    """
    fabric = Fabric(accelerator=bench.device.type, devices=1)
    with tempfile.TemporaryDirectory() as place:
        write_jpegs(Path(place), hand, num, (224, 224), 16)
        crops = CropFolder(place, image_px=224, verify=False)
        total = WARM + num_steps
        for where in augment_on:
            make, rows = like_ibot(view_px), []
            make.augment_on = where
            for workers in num_workers:
                loader = PrefetchingLoader(
                    fabric, crops, collate_crops, make,
                    batch_size=batch_size, total_steps=total, num_workers=workers,
                )  # fmt: skip
                seconds, waited = fed(loader, make, num_steps, batch_size, eaten_per_s)
                name = f"{workers} processes, waiting {100 * waited:.0f} %"
                speed = num_steps * batch_size / seconds
                ms = 1e3 * seconds / num_steps
                rows.append(
                    Row("loader", f"views on {where}", name, ms, per_s=speed, unit="pictures")
                )
            yield rows
