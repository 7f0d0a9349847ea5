"""Scalars and images of a run: TensorBoard, one JSON line per logged step, PNG files, progress."""

import errno
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from handmim.utils.console import Progress
from handmim.utils.files import write_atomic
from handmim.utils.ranks import objects_of_ranks
from handmim.utils.rows import read_rows, row_line

log = logging.getLogger(__name__)

LINES = 40  # of a run's progress where there is no terminal: a file is read later


class RunLog:
    """Writer of one process; on other ranks every call does nothing.

    Args:
        folder: run folder, or None on ranks that do not write.
        first_step: rows from this step on, left by an interrupted run, are dropped.
    """

    def __init__(self, folder: Path | None, first_step: int = 0) -> None:
        self.folder = folder
        self._tensorboard: SummaryWriter | None = None
        self._owed = ""  # rows that are not written yet
        if folder is None:
            return
        self.path = folder / "scalars.jsonl"
        if self.path.is_file():
            kept = [row for row in read_rows(self.path) if row["step"] <= first_step and first_step]
            write_atomic(self.path, "".join(row_line(row) for row in kept))
        purge = first_step + 1 if first_step else None
        self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)
        self._has_failed = False  # TensorBoard's writer, which does not recover by itself

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        """Log values at `step`, the number of finished optimizer steps."""
        if self._tensorboard is None or not values:
            return
        self._owed += row_line({"step": step, **values})
        with self._tolerant():
            self._write_owed()
            if self._has_failed:
                self._tensorboard = SummaryWriter(str(self.path.with_name("tensorboard")))
                self._has_failed = False
            for name, value in values.items():
                self._tensorboard.add_scalar(name, value, step)

    def _write_owed(self) -> None:
        """Append rows, also those that a full disk did not take before; none is cut."""
        with self.path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                if file.write(self._owed.encode()) < len(self._owed):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            except OSError:
                file.truncate(end)
                raise
        self._owed = ""

    @contextmanager
    def _tolerant(self) -> Iterator[None]:
        """Training goes on where a log cannot be written; rows are written later."""
        try:
            yield
        except OSError as error:
            self._has_failed = True
            log.error("the log of scalars and images is late: %s", error)

    def images(self, step: int, images: Mapping[str, NDArray[np.uint8]]) -> None:
        """Log [H, W, 3] RGB images and keep them as PNG files."""
        if self._tensorboard is None:
            return
        assert self.folder is not None
        target = self.folder / "images"
        with self._tolerant():
            target.mkdir(exist_ok=True)
            for name, image in images.items():
                self._tensorboard.add_image(name, image, step, dataformats="HWC")
                cv2.imwrite(str(target / f"step_{step:07d}_{name}.png"), image[:, :, ::-1])

    def again(self, first_step: int) -> "RunLog":
        """A log that goes on after `first_step`; what came later is dropped."""
        self.close()
        return RunLog(self.folder, first_step)

    def close(self) -> None:
        """Flush everything to disk."""
        if self._tensorboard is not None:
            with self._tolerant():
                if self._owed:
                    self._write_owed()
                self._tensorboard.close()


class RunningMeans:
    """Means of scalars since they were last taken, over all processes and the steps that gave them.

    They stay on the device until then: adding does not wait for it.
    """

    def __init__(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._counts: dict[str, int] = {}

    def add(self, scalars: Mapping[str, Tensor]) -> None:
        """Scalars [] of one step."""
        for name, value in scalars.items():
            self._sums[name] = self._sums.get(name, 0.0) + value.detach()
            self._counts[name] = self._counts.get(name, 0) + 1

    def take(self) -> dict[str, float]:
        """The means, which begin anew; called by every process. Names may differ between them."""
        own = {name: (float(total), self._counts[name]) for name, total in self._sums.items()}
        self._sums, self._counts = {}, {}
        every = objects_of_ranks(own)
        means: dict[str, float] = {}
        for name in dict.fromkeys(name for sums in every for name in sums):
            parts = [sums[name] for sums in every if name in sums]
            means[name] = sum(total for total, _ in parts) / sum(count for _, count in parts)
        return means


class StepProgress(Progress):
    """Loss, images/s and time left: a bar on a terminal, a log line now and then elsewhere.

    Args:
        shown: False on ranks that do not write.
        step, total_steps: where the run starts and ends.
        batch_size: samples per step.
        log_every: steps between lines at least.
    """

    def __init__(
        self, shown: bool, step: int, total_steps: int, batch_size: int, log_every: int
    ) -> None:
        super().__init__(total_steps, "steps", done=step, shown=shown)
        self.shown, self.total_steps, self.batch_size = shown, total_steps, batch_size
        self.line_every = max(log_every, -(-total_steps // LINES))

    def images_per_s(self, step: int) -> float:
        """Mean rate since this process started training."""
        return self.rate(step) * self.batch_size

    def show(self, step: int, loss: float | None) -> None:
        """Show `step` finished steps; `loss` is None between log points."""
        if loss is None:
            if self.is_bar:
                self.update(step)
            return
        rate = self.images_per_s(step)
        if self.is_bar:
            self.update(step, f"loss {loss:.4f} {rate:.0f} images/s")
        elif self.shown and (step % self.line_every == 0 or step == self.total_steps):
            left = (self.total_steps - step) * self.batch_size / max(rate, 1e-9)
            log.info(
                    "step %d/%d  loss %.4f  %.0f images/s  %.0f s left",
                    step, self.total_steps, loss, rate, left,
                )  # fmt: skip
