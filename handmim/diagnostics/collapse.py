"""Collapse detection: a collapse of pretraining is named while it happens, with advice.

Diagnostics are computed on the same views of the same crops every time, so that a change shows the
network and not the data.
"""

import fnmatch
import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from handmim.data.loader import collate_crops
from handmim.diagnostics.images import draw_images_with_points, draw_patch_colours
from handmim.objectives.base import StepContext, Targets, call, entropy_nats
from handmim.objectives.keypoints import keypoint_diagnostics
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
# targets read 1.0000, and runs in between hardly learned.
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
    "swav_targets_uniform": Check("swav_targets/entropy_of_each", "above", 0.998, "lower "
                                  "task.objectives.swav.epsilon or optim.lr.start"),
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
    "class_targets_one_prototype", "swav_targets_uniform", "features_constant",
    "keypoints_bunched",
)  # fmt: skip


def effective_rank(features: Tensor) -> Tensor:
    """exp(entropy of the normalised singular values) of centred features [n, D], from 1 (collapsed)
    to min(n - 1, D); nan where a feature is not finite (Roy & Vetterli 2007, EUSIPCO)."""
    x = features.float() - features.float().mean(dim=0)
    if not x.isfinite().all():  # svd would only report that it does not converge
        return x.new_tensor(math.nan)
    s = torch.linalg.svdvals(x)
    return entropy_nats(s / s.sum().clamp(min=1e-12)).exp()


def kl_nats(teacher_probs: Tensor, student_logits: Tensor, student_temp: float) -> Tensor:
    """KL divergence of the student from its targets: the cross-entropy without the targets' own
    entropy, which no student can lower; [..., P] twice -> [...]."""
    p, log_q = teacher_probs.float(), (student_logits.float() / student_temp).log_softmax(dim=-1)
    return (p * (p.clamp(min=1e-12).log() - log_q)).sum(dim=-1)


TargetSums = tuple[int, Tensor, float, float | None]


def _target_sums(found: Targets) -> TargetSums:
    """Number, sum, entropies and, where row by row, the student's divergences of some targets."""
    probs, kl = found.teacher_probs, None
    if found.student_logits is not None:
        each = kl_nats(probs, found.student_logits.detach(), found.student_temp)
        kl = float(each.double().sum())
    return len(probs), probs.double().sum(dim=0), float(entropy_nats(probs).sum()), kl


def _target_metrics(parts: Sequence[TargetSums]) -> dict[str, float]:
    """Entropies as shares of log P, the share of prototypes in use, and divergences.

    kl_nats, kl_share (of log P): mean divergence of the student from its targets.
    constant_kl_nats: that of the best constant prediction, which is the mean target; near 0 all
    targets are alike and distillation has nothing to teach. kl_of_constant: the ratio. At 0 the
    student predicts every target, at 1 no more than a constant does, above 1 (as a fresh student)
    even less.
    """
    num = sum(part[0] for part in parts)
    if not num:
        return {}
    probs = torch.stack([part[1] for part in parts]).sum(dim=0) / num
    top = math.log(len(probs))
    of_mean, of_each = float(entropy_nats(probs)), sum(part[2] for part in parts) / num
    metrics = {
        "entropy_of_mean": of_mean / top,
        "entropy_of_each": of_each / top,
        "used": math.exp(of_mean) / len(probs),
    }
    if divergences := [part[3] for part in parts if part[3] is not None]:
        kl, constant_kl = sum(divergences) / num, of_mean - of_each
        metrics |= {
            "kl_nats": kl,
            "kl_share": kl / top,
            "constant_kl_nats": constant_kl,
            "kl_of_constant": kl / max(constant_kl, 1e-9),
        }
    return metrics


def _gradient_metrics(
    task: Any, ctx: StepContext, predictions: Mapping[str, Any]
) -> dict[str, float]:
    """Norm of every weighted loss's gradient by the student's tokens, its share of their sum and,
    where there are others, its ratio to the largest of them. A weight of 0 leaves a loss out."""
    ends = [ctx.tokens.cls, ctx.tokens.patches, *ctx.tokens.taps]
    norms = {}
    for name, objective in task.each.items():
        weight = task.weights[name](*ctx.info)
        if not weight:
            continue
        value = weight * call(name, objective.loss, ctx, predictions[name])
        grads: tuple[Tensor | None, ...] = ()
        if value.requires_grad:
            grads = torch.autograd.grad(value, ends, retain_graph=True, allow_unused=True)
        norms[name] = sum(float(g.double().square().sum()) for g in grads if g is not None) ** 0.5
    metrics: dict[str, float] = {}
    total = sum(norms.values())
    for name, norm in norms.items():
        metrics[f"gradient/{name}/norm"] = norm
        metrics[f"gradient/{name}/share"] = norm / max(total, 1e-30)
        if others := [other for key, other in norms.items() if key != name]:
            metrics[f"gradient/{name}/ratio"] = norm / max(*others, 1e-30)
    return metrics


def measure(
    task: Any, batch: PretrainBatch, info: StepInfo, *, batch_size: int, seed: int
) -> dict[str, float]:
    """All diagnostics of the parts that a pretraining task in evaluation mode has; nothing of it
    changes.

    targets/.., class_targets/.., keypoint_targets/..: prototype targets, see `_target_metrics`;
    features/..: the student's class tokens in the first view, their rank, and deviation over crops
    as a share of their length; keypoints/..: see `keypoint_diagnostics`; gradient/<term>/..: each
    loss term where the student's backbone ends (of whole views, not of local crops).

    Args:
        batch_size: crops at a time; gradients are measured on the first of these.
        seed: of random numbers that the task draws.
    """
    tokens: list[Tensor] = []
    points: list[Tensor] = []
    metrics: dict[str, float] = {}
    device = batch.views.device
    sums: dict[str, list[TargetSums]] = defaultdict(list)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        for start in range(0, len(batch.views), batch_size):
            part = batch.part(start, start + batch_size)
            with torch.set_grad_enabled(start == 0):
                ctx, predictions = task.predict(part, info)
                if start == 0:
                    metrics |= _gradient_metrics(task, ctx, predictions)
            tokens.append(ctx.tokens.cls.detach().unflatten(0, ctx.shape)[:, 0])
            if "keypoints" in task.reads:
                points.append(ctx.keypoints.detach())
            for name, objective in task.each.items():
                for prefix, found in objective.targets(predictions[name]).items():
                    sums[prefix].append(_target_sums(found))
    cls = torch.cat(tokens).float()
    length = cls.square().mean().sqrt().clamp(min=1e-12)
    deviation = (cls - cls.mean(dim=0)).square().mean().sqrt()
    metrics["features/rank"] = float(effective_rank(cls))
    metrics["features/std_share"] = float(deviation / length)
    for prefix, parts in sums.items():
        metrics |= {f"{prefix}/{key}": value for key, value in _target_metrics(parts).items()}
    if points:
        of_points = keypoint_diagnostics(torch.cat(points), batch)
        metrics |= {name: float(value) for name, value in of_points.items()}
    return metrics


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
