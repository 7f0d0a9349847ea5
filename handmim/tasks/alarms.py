"""Alarms of pretraining: collapse is named while it happens, with what to do about it.

Measured on a fixed set of unlabeled crops of the run's own data, cut into the same views every
time, so that a figure moves only because the network did.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset

from handmim.data.loader import collate_crops
from handmim.engine.hooks import StopRun
from handmim.tasks.alarm_rules import RULES, TERM_RULES, Alarm, alarms_of
from handmim.tasks.feature_pictures import draw_patch_colours, draw_pictures_with_points
from handmim.tasks.health import measure
from handmim.tasks.pretrain import HandMimTask
from handmim.types import CropBatch, PretrainBatch, StepInfo
from handmim.utils.run import Run
from handmim.utils.unreadable import UnreadableSample

log = logging.getLogger(__name__)

ViewMaking = Callable[[CropBatch, torch.Generator, StepInfo], PretrainBatch]
SHOWN = 6  # pictures


class CollapseAlarms:
    """Measures, every `every` steps, whether pretraining is alive, and warns by name when not.

    Figures are logged as `health/<figure>`, alarms as `alarms/<name>` = 0 or 1. A warning is given
    when an alarm starts to ring and a note when it is over. How long alarms have stood is not kept
    over a resume.

    Args:
        dataset: the unlabeled crops that are trained on.
        make_views: the run's view maker.
        thresholds: by name of `RULES` and `TERM_RULES`; None switches an alarm off.
        every: steps between checks.
        num: crops looked at, evenly spaced over the dataset.
        batch_size: crops at a time; gradients are measured on the first batch.
        seed: of views and masks.
        grace_steps: before them nothing rings: a fresh network is a constant template, too.
        deadly: alarms, or families such as term_dead, that may stop the run.
        stop_after: checks in a row that a deadly alarm has to stand; None never stops.
    Raises: ValueError for unknown alarms.
    """

    at_start = True

    def __init__(
        self,
        dataset: Dataset[Any],
        make_views: ViewMaking,
        thresholds: Mapping[str, float | None],
        *,
        every: int | None = 200,
        num: int = 128,
        batch_size: int = 32,
        seed: int = 0,
        grace_steps: int = 0,
        deadly: Sequence[str] = (),
        stop_after: int | None = None,
    ) -> None:
        known = {*RULES, *TERM_RULES}
        for key, names in (("thresholds", set(thresholds)), ("deadly", set(deadly))):
            unknown = sorted(n for n in names if n.split("/")[0] not in known)
            if unknown:
                raise ValueError(
                    f"unknown alarms {unknown}, valid are {sorted(known)} (alarms.{key})"
                )
        size = len(dataset)  # type: ignore[arg-type]
        if size < 2:
            raise ValueError(f"alarms compare images: got {size} image, want at least 2 (data)")
        if num < 2 or batch_size < 2:
            raise ValueError(
                f"alarms compare images: got num={num} and batch_size={batch_size}, want at least "
                "2 (alarms.num, alarms.batch_size)"
            )
        self.dataset, self.make_views = dataset, make_views
        self.thresholds = {k: v for k, v in thresholds.items() if v is not None}
        self.every, self.batch_size, self.seed = every, batch_size, seed
        self.grace_steps, self.deadly, self.stop_after = grace_steps, tuple(deadly), stop_after
        self.places = np.linspace(0, size - 1, min(num, size)).round().astype(int).tolist()
        self.stands: dict[str, int] = {}  # checks in a row

    def __call__(self, task: nn.Module, info: StepInfo, run: Run) -> dict[str, float]:
        """Measure, warn, perhaps stop."""
        assert isinstance(task, HandMimTask)
        batch = self._views(info, run.device)
        figures = measure(task, batch, info, batch_size=self.batch_size, seed=self.seed)
        scalars = {f"health/{name}": value for name, value in figures.items()}
        if info.step < self.grace_steps:
            return scalars
        alarms = list(alarms_of(figures, self.thresholds))
        for alarm in alarms:
            scalars[f"alarms/{alarm.name}"] = float(alarm.rings)
            self._tell(alarm, info)
        fatal = [a.name for a in alarms if self.stop_after and self._is_fatal(a.name)]
        if fatal:
            raise StopRun(
                f"{', '.join(fatal)} stood for {self.stop_after} checks in a row "
                "(alarms.stop_after)",
                scalars,
            )
        return scalars

    def _is_fatal(self, name: str) -> bool:
        deadly = name in self.deadly or name.split("/")[0] in self.deadly
        return deadly and self.stands.get(name, 0) >= (self.stop_after or 0)

    def _tell(self, alarm: Alarm, info: StepInfo) -> None:
        before = self.stands.pop(alarm.name, 0)
        if alarm.rings:
            self.stands[alarm.name] = before + 1
        if alarm.rings and not before:
            side = "above" if alarm.above else "below"
            log.warning(
                "step %d: ALARM %s: %s is %.3g, %s the threshold %.3g; %s",
                info.step, alarm.name, alarm.figure, alarm.value, side, alarm.threshold,
                alarm.advice,
            )  # fmt: skip
        elif before and not alarm.rings:
            log.info(
                "step %d: alarm %s is over: %s is %.3g",
                info.step, alarm.name, alarm.figure, alarm.value,
            )  # fmt: skip

    def _views(self, info: StepInfo, device: torch.device) -> PretrainBatch:
        samples = []
        for place in self.places:
            with suppress(UnreadableSample):  # training counts and names it (engine.prefetch)
                samples.append(self.dataset[place])
        if len(samples) < 2:
            raise ValueError(
                f"alarms compare images: {len(samples)} of {len(self.places)} can be read (data)"
            )
        crops = collate_crops(samples)
        there = {k: None if x is None else x.to(device) for k, x in crops._asdict().items()}
        generator = torch.Generator().manual_seed(self.seed)
        return self.make_views(CropBatch(**there), generator, info)  # type: ignore[arg-type]

    @torch.no_grad()
    def images(self, task: nn.Module, run: Run) -> dict[str, NDArray[np.uint8]]:
        """`patch_tokens`: the same crops every time beside their patch tokens as colours;
        `crop_keypoints`: with their pseudo-keypoints, where the task has them."""
        assert isinstance(task, HandMimTask)
        views = self._views(StepInfo(0, 1), run.device).views[:SHOWN, 0]
        tokens = task.features(views)
        sheets = {"patch_tokens": draw_patch_colours(views.cpu(), tokens)}
        points = task.keypoints(tokens)
        if points is not None:
            sheets["crop_keypoints"] = draw_pictures_with_points(views.cpu(), points.cpu())
        return sheets
