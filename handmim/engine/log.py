"""What a run shows beside its steps: scalars, images, progress."""

import errno
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray
from torch.utils.tensorboard import SummaryWriter

from handmim.types import StepInfo, Task
from handmim.utils.console import Progress
from handmim.utils.files import write_atomic
from handmim.utils.json_files import read_rows, row_line
from handmim.utils.run import Run

log = logging.getLogger(__name__)

LINES = 40  # of a run's progress where there is no terminal: a file is read later
Images = dict[str, NDArray[np.uint8]]  # [H, W, 3] RGB by name


class Hook(Protocol):
    """Called every so many steps. It may have a method `images(task, run) -> Images`, drawn with
    the task's, and an attribute `stop_reason`: a text after a call ends the run, which is saved."""

    every: int | None  # steps; None = only at the end
    at_start: bool  # also before the first step

    def __call__(self, task: Task, info: StepInfo, run: Run) -> dict[str, float]:
        """Scalars to log."""


def draw(task: Task, batch: Any, hooks: Sequence[Hook], run: Run) -> Images:
    """Images of the task, and of every hook that has some."""
    task.eval()
    images = task.images(batch)
    for hook in hooks:
        if hasattr(hook, "images"):
            images |= hook.images(task, run)
    task.train()
    return images


class RunLog:
    """Writer of one process into a run folder; None, as on other ranks, writes nothing. Rows after
    `first_step`, left by an interrupted run, are dropped."""

    def __init__(self, folder: Path | None, first_step: int = 0) -> None:
        self.folder = folder
        self._tensorboard: SummaryWriter | None = None
        self._owed = ""  # rows that are not written yet
        self._has_failed = False  # TensorBoard's writer, which does not recover by itself
        if folder is None:
            return
        self.path = folder / "scalars.jsonl"
        if self.path.is_file():
            kept = [row for row in read_rows(self.path) if row["step"] <= first_step and first_step]
            write_atomic(self.path, "".join(map(row_line, kept)))
        purge = first_step + 1 if first_step else None
        self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

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

    def images(self, step: int, images: Images) -> None:
        """Log images and keep them as PNG files."""
        if self._tensorboard is None:
            return
        target = self.path.with_name("images")
        with self._tolerant():
            target.mkdir(exist_ok=True)
            for name, image in images.items():
                self._tensorboard.add_image(name, image, step, dataformats="HWC")
                cv2.imwrite(str(target / f"step_{step:07d}_{name}.png"), image[:, :, ::-1])

    def close(self) -> None:
        """Flush everything to disk."""
        if self._tensorboard is not None:
            with self._tolerant():
                if self._owed:
                    self._write_owed()
                self._tensorboard.close()


class StepProgress(Progress):
    """Loss, images/s and time left: a bar on a terminal, a log line now and then elsewhere."""

    def __init__(
        self, shown: bool, step: int, total_steps: int, batch_size: int, log_every: int
    ) -> None:
        super().__init__(total_steps, "steps", done=step, shown=shown)
        self.shown, self.total_steps, self.batch_size = shown, total_steps, batch_size
        self.line_every = max(log_every, -(-total_steps // LINES))

    def show(self, step: int, loss: float | None) -> None:
        """Show `step` finished steps; `loss` is None between log points."""
        rate = self.rate(step) * self.batch_size
        if self.is_bar:
            self.update(step, None if loss is None else f"loss {loss:.4f} {rate:.0f} images/s")
        elif loss is None or not self.shown:
            return
        elif step % self.line_every == 0 or step == self.total_steps:
            left_s = (self.total_steps - step) * self.batch_size / max(rate, 1e-9)
            text = f"step {step}/{self.total_steps}  loss {loss:.4f}  {rate:.0f} images/s"
            log.info("%s  %.0f s left", text, left_s)
