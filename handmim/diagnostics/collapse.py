"""Collapse detection: a collapse of pretraining is named while it happens, with advice.

Diagnostics are computed on the same views of the same crops every time, so that a change shows the
network and not the data.
"""

import fnmatch
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from handmim.data.loader import collate_crops
from handmim.diagnostics.images import draw_images_with_points, draw_patch_colours
from handmim.diagnostics.statistics import measure
from handmim.types import CropBatch, PretrainBatch, StepInfo
from handmim.utils.files import UnreadableSample
from handmim.utils.run import Run

log = logging.getLogger(__name__)

ViewMaking = Callable[[CropBatch, torch.Generator, StepInfo], PretrainBatch]
NUM_SHOWN = 6  # images
UNIFORM_ADVICE = (
    "lower task.teacher_temp or optim.lr.start, or try the other centering (centering=sinkhorn|ema)"
)
PEAKED_ADVICE = (
    "try centering=sinkhorn, a higher task.teacher_temp, or longer task.freeze_prototypes_steps"
)
ALIGNMENT = "task.objectives.keypoint_align"


class Check(NamedTuple):
    """A metric, or metrics by a pattern, and when it is triggered."""

    metric: str
    side: str  # of its threshold: "above" or "below"
    threshold: float
    advice: str


# Entropies are shares of log P. At laptop size the default run stayed below 0.995, collapsed
# targets read 1.0000, and runs in between were hardly alive (docs/experiments.md).
# Deviation in the source, articulation and retrieval count what two views of a crop agree on. On
# 128 real photos trained points read at least 0.095, 0.16 and 0.35; fresh networks 0.03, 0.08 to
# 0.10 and 0.03 to 0.08. Fewer crops agree more by chance, more are harder to match.
CHECKS = {
    **{
        f"{prefix}targets_{name}": Check(f"{prefix}targets/{metric}", side, threshold, advice)
        for prefix in ("", "class_", "keypoint_")
        for name, metric, side, threshold, advice in (
            ("uniform", "entropy_of_each", "above", 0.998, UNIFORM_ADVICE),
            ("one_prototype", "entropy_of_mean", "below", 0.1, PEAKED_ADVICE),
        )
    },
    "features_constant": Check("features/std_share", "below", 0.01, "lower optim.lr.start, or add "
                               "class_recon or view_affine to objective=[...]"),
    "features_rank_low": Check("features/rank", "below", 2.0, "add koleo or class_recon to "
                               "objective=[...], or lower optim.lr.start"),
    "keypoints_bunched": Check("keypoints/spread_ndc", "below", 0.05,
                               f"raise {ALIGNMENT}.spread_weight or .repulsion_weight"),
    "keypoints_constant_template": Check("keypoints/view_std_ndc", "below", 0.02, "set "
                                         f"{ALIGNMENT}.target=student, or add view_affine to "
                                         "objective=[...]"),
    "keypoints_fixed_in_source": Check("keypoints/source_std_ndc", "below", 0.04, "raise views."
                                       "shared_rotation_deg, views.shared_scale or "
                                       "views.shared_shift_ndc"),
    "keypoints_rigid": Check("keypoints/articulation", "below", 0.08,
                             f"raise {ALIGNMENT}.variance_weight or views.warp_ndc, or add "
                             "point_hog to objective=[...]"),
    "keypoints_unmatched": Check("keypoints/retrieval", "below", 0.08,
                                 f"raise {ALIGNMENT}.disc_weight (.disc=nce|proto), or add "
                                 "point_hog to objective=[...]"),
    # Gradient of each loss where the backbone ends, beside the largest other one.
    "term_dead": Check("gradient/*/ratio", "below", 1e-4,
                       "raise task.objectives.{name}.weight, or leave the loss out"),
    "term_drowns": Check("gradient/*/ratio", "above", 100.0, "lower task.objectives.{name}.weight"),
}  # fmt: skip
STOP_ON = (
    "targets_uniform", "targets_one_prototype", "class_targets_uniform",
    "class_targets_one_prototype", "features_constant", "keypoints_bunched",
)  # fmt: skip


@dataclass(eq=False)
class CollapseDetection:
    """Hook that computes diagnostics every `every` steps and warns of a collapse by name.

    Metrics are logged as `diagnostics/<metric>`, checks as `collapse/<name>` = 0 or 1. A warning is
    given when a check becomes triggered and a note when that ends. Counts of triggered checks are
    not kept over a resume.

    Raises: ValueError for unknown checks, and for fewer than two crops.
    """

    dataset: Dataset[Any]  # unlabeled crops of the training set
    make_views: ViewMaking
    _: KW_ONLY
    every: int | None = 200
    num: int = 128  # crops, evenly spaced over the dataset
    batch_size: int = 32  # crops at a time; gradients are measured on the first batch
    seed: int = 0  # of views and masks
    grace_steps: int = 0  # nothing is triggered before: a fresh network looks collapsed, too
    patience: int | None = None  # checks in a row that one of `stop_on` is triggered to stop
    stop_on: Sequence[str] = STOP_ON  # names of checks, or families such as term_dead
    thresholds: Mapping[str, float | None] | None = None  # others by name; None leaves a check out
    at_start = True

    def __post_init__(self) -> None:
        for key, names in (("thresholds", self.thresholds or {}), ("stop_on", self.stop_on)):
            if unknown := sorted({n for n in names if n.split("/")[0] not in CHECKS}):
                raise ValueError(f"{key} names unknown checks {unknown}, valid: {sorted(CHECKS)}")
        size = len(self.dataset)  # type: ignore[arg-type]
        sizes = f"got {size}, num={self.num} and batch_size={self.batch_size}"
        if min(size, self.num, self.batch_size) < 2:
            raise ValueError(f"collapse detection compares images: {sizes}, each must be >= 2")
        spaced = np.linspace(0, size - 1, min(self.num, size))
        self.indices: list[int] = spaced.round().astype(int).tolist()
        self.num_triggered: dict[str, int] = {}  # checks in a row, by name
        self.stop_reason: str | None = None

    def __call__(self, task: Any, info: StepInfo, run: Run) -> dict[str, float]:
        """Measure, warn, perhaps stop."""
        self.stop_reason = None
        batch = self._views(info, run.device)
        metrics = measure(task, batch, info, batch_size=self.batch_size, seed=self.seed)
        scalars = {f"diagnostics/{name}": value for name, value in metrics.items()}
        fatal = []
        for name, check, value in self._checked(metrics if info.step >= self.grace_steps else {}):
            # One that is not finite is on the wrong side.
            fits = value <= check.threshold if check.side == "above" else value >= check.threshold
            before = self.num_triggered.get(name, 0)
            times = self.num_triggered[name] = 0 if fits else before + 1
            if times == 1:
                log.warning(
                    "step %d: COLLAPSE %s: %s is %.3g, %s the threshold %.3g; %s",
                    info.step, name, check.metric, value, check.side, check.threshold, check.advice,
                )  # fmt: skip
            elif before and not times:
                log.info("step %d: %s is over: %s is %.3g", info.step, name, check.metric, value)
            scalars[f"collapse/{name}"] = float(times > 0)
            is_watched = name in self.stop_on or name.split("/")[0] in self.stop_on
            if is_watched and self.patience and times >= self.patience:
                fatal.append(name)
        if fatal:
            in_a_row = f"{self.patience} checks in a row (patience)"
            self.stop_reason = f"{', '.join(fatal)} triggered in {in_a_row}"
        return scalars

    def _checked(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, Check, float]]:
        """The checks whose metric exists, by name, under this run's thresholds."""
        for name, check in CHECKS.items():
            threshold = (self.thresholds or {}).get(name, check.threshold)
            if threshold is None:
                continue
            for metric in fnmatch.filter(metrics, check.metric):
                part = metric.split("/")[1]
                own_name = name if metric == check.metric else f"{name}/{part}"
                advice = check.advice.format(name=part)
                yield own_name, Check(metric, check.side, threshold, advice), metrics[metric]

    def _views(self, info: StepInfo, device: torch.device) -> PretrainBatch:
        samples = []
        for index in self.indices:
            with suppress(UnreadableSample):  # training counts and names it
                samples.append(self.dataset[index])
        if len(samples) < 2:
            readable = f"{len(samples)} of {len(self.indices)} can be read"
            raise ValueError(f"collapse detection compares images: {readable}")
        crops = CropBatch(*(None if x is None else x.to(device) for x in collate_crops(samples)))  # type: ignore[arg-type]
        return self.make_views(crops, torch.Generator().manual_seed(self.seed), info)

    @torch.no_grad()
    def images(self, task: Any, run: Run) -> dict[str, NDArray[np.uint8]]:
        """`patch_tokens`: the same crops every time beside their patch tokens as colours;
        `crop_keypoints`: with their pseudo-keypoints, where the task has them."""
        views = self._views(StepInfo(0, 1), run.device).views[:NUM_SHOWN, 0]
        tokens = task.features(views)
        sheets = {"patch_tokens": draw_patch_colours(views.cpu(), tokens)}
        points = task.keypoints(tokens)
        if points is not None:
            sheets["crop_keypoints"] = draw_images_with_points(views.cpu(), points.cpu())
        return sheets
