"""Scoring on a labelled set: root-relative metrics, and predictions in the camera's frame."""

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset

from handmim.data.augment import HandAugment
from handmim.data.datasets import size_of
from handmim.data.loader import batches, collate_crops
from handmim.diagnostics.images import draw_predictions
from handmim.evaluation.inference import InferenceModule
from handmim.evaluation.predictor import hand_predictions
from handmim.hand.conventions import mirror_points
from handmim.hand.skeleton import ROOT_JOINT
from handmim.metrics.pose import KEYS, MIRRORED_SHARE, HandMetrics, crop_share_errors
from handmim.tasks.regression import MAX_IMAGES, RegressionTask
from handmim.types import HandBatch, HandSample, StepInfo
from handmim.utils.arguments import one_of
from handmim.utils.files import UnreadableSample
from handmim.utils.findings import spread
from handmim.utils.run import Run
from handmim.utils.timer import Stages

log = logging.getLogger(__name__)

# What `score` gives, without counts of samples.
METRICS = (*(key for key in KEYS if not key.startswith("num_")), "err2d_percent", "pck10")
SHOWN = {"mpjpe_mm": "MPJPE", "pa_mpjpe_mm": "PA-MPJPE", "pa_mpvpe_mm": "PA-MPVPE"}
PCK_SHARE = 0.1  # of the crop's side: a 2D joint nearer than this is a hit
PLACEMENTS = ("predicted", "given_wrist")


class CameraHands(NamedTuple):
    """Predictions of a whole set in the camera's frame (OpenCV), canonical joint order."""

    joints_cam_m: NDArray[np.float64]  # [n, 21, 3]
    verts_cam_m: NDArray[np.float64]  # [n, V, 3]
    sheet: NDArray[np.uint8] | None  # drawings of the first samples


def estimates(
    module: InferenceModule,
    dataset: Dataset[HandSample],
    batch_size: int = 64,
    num_workers: int = 0,
    timer: Stages | None = None,
) -> Iterator[tuple[HandBatch, Any]]:
    """Stored crops of a whole set in order, on the device, and their estimates; `timer` takes the
    times of cutting and estimating, without reading and moving images."""
    for stored in batches(dataset, batch_size, num_workers):
        stored = stored.moved(module.device)
        with torch.no_grad(), timer.lap(len(stored.image)) if timer else nullcontext():
            estimate = module.estimate(stored)
        yield stored, estimate


def _drawn(
    module: InferenceModule, stored: HandBatch, estimate: Any, num_images: int
) -> NDArray[np.uint8] | None:
    if not num_images:
        return None
    first = module.augment.evaluate(HandBatch(*(field[:num_images] for field in stored)))
    faces = getattr(module.task.hand, "faces", None)
    return draw_predictions(first, estimate, faces, num_images)


@torch.no_grad()
def score(
    module: InferenceModule, dataset: Dataset[HandSample], *, num_images: int = 0, **options: Any
) -> tuple[dict[str, float], NDArray[np.uint8] | None]:
    """Root-relative and aligned metrics over a whole set, each over the samples labelled for it.

    Samples with all joints in 3D count for joint metrics, those of them with vertices for mesh
    metrics where the model has a mesh, those with any joint in the image for the 2D error.

    Args:
        module, dataset, options: see `estimates`.
        num_images: samples drawn beside their ground truth.
    Returns: metrics with their units in the names and the counts behind them; the drawings or None.
    Raises: ValueError when nothing is labelled.
    """
    # Every process scores the whole set, so there is nothing to gather.
    metrics = HandMetrics(root_joint=ROOT_JOINT)
    sheet, errors, total = None, [], 0
    for stored, state in estimates(module, dataset, **options):
        labels = module.augment.evaluate(stored, with_image=False)
        if not total:
            sheet = _drawn(module, stored, state, num_images)
        total += len(stored.image)
        # Of samples with any joint in the image, over these: distance to the labels as a share of
        # the crop's side, and share of joints nearer than PCK_SHARE.
        distance = crop_share_errors(state.joints_crop_ndc.float(), labels.kp2d_crop_ndc)
        both = torch.stack([distance, (distance < PCK_SHARE).float()], dim=-1)
        count = labels.kp2d_valid.sum(dim=1)
        sums = (both * labels.kp2d_valid[..., None]).sum(dim=1)
        errors.append((sums / count.clamp(min=1)[:, None])[count > 0].cpu())
        whole = labels.joints_valid.all(dim=1)
        if bool(whole.any()):
            verts = state.verts_root_m
            has_verts = labels.has_verts & (verts is not None)
            metrics.update(
                state.joints_root_m[whole].cpu(),
                (labels.verts_cam_m if verts is None else verts)[whole].cpu(),
                labels.joints_cam_m[whole].cpu(),
                labels.verts_cam_m[whole].cpu(),
                has_verts[whole].cpu(),
            )
    if metrics.num_samples and (share := metrics.mirrored_share()) >= MIRRORED_SHARE:
        text = "%.0f%% of the predicted hands are mirror images of the ground truth, which aligned "
        text += "errors (pa_) hide: are the sides of the hands, or the axes of the labels, right?"
        log.warning(text, 100 * share)
    results = {k: float(v) for k, v in metrics.compute().items()} if metrics.num_samples else {}
    in_2d = torch.cat(errors)
    if len(in_2d):
        error, hits = in_2d.mean(dim=0).tolist()
        results |= {"err2d_percent": error * 100, "pck10": hits, "num_2d": len(in_2d)}
    if not results:
        raise ValueError(f"nothing of this set is labelled: {total} samples (data.val, data.test)")
    return results, sheet


def predict_camera_hands(
    module: InferenceModule,
    dataset: Dataset[HandSample],
    *,
    placement: str = "predicted",
    num_images: int = 0,
    **options: Any,
) -> CameraHands:
    """Joints and vertices of every sample in order, as benchmarks take them, with `options` of
    `estimates`. `placement` "predicted" takes the model's root translation; "given_wrist" takes the
    labelled wrist, as HO-3D's evaluation provides it. Raises: ValueError as `in_camera`."""
    one_of("placement", placement, PLACEMENTS)
    total = len(dataset)  # type: ignore[arg-type]
    hands, sheet, done = [], None, 0
    for number, (stored, state) in enumerate(estimates(module, dataset, **options), start=1):
        if not done:
            sheet = _drawn(module, stored, state, num_images)
        hands.append(in_camera(module, stored, state, placement))
        done += len(stored.image)
        if number % 20 == 0:
            log.info("predicted %d of %d", done, total)
    joints, verts = (np.concatenate(parts) for parts in zip(*hands, strict=True))
    return CameraHands(joints, verts, sheet)


def in_camera(
    module: InferenceModule, stored: HandBatch, state: Any, placement: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Joints [B, 21, 3] and vertices [B, V, 3] of one batch in the camera's frame, metres, from the
    module's estimate; ValueError where K, or the wrist, is not known."""
    given_wrist = placement == "given_wrist"
    if not bool((stored.joints_valid[:, 0] if given_wrist else stored.has_K).all()):
        needed = "the labelled wrist" if given_wrist else "K"
        text = f"placement={placement} requires {needed} of every sample, and this set has some"
        raise ValueError(f"{text} without (data.placement, one of {PLACEMENTS})")
    state = type(state)(*(None if field is None else field.cpu() for field in state))
    is_left = stored.was_left.cpu().numpy()
    camera = stored.K_crop_px.cpu(), stored.has_K.cpu()
    hands = hand_predictions(state, module, *camera, is_left, stored.image.shape[-1])
    transl = hands.transl_cam_m
    if given_wrist:
        wrist = stored.joints_cam_m[:, 0].double().cpu().numpy()
        wrist[is_left] = mirror_points(wrist[is_left])
        transl = wrist - hands.joints_root_m[:, 0]
    assert hands.verts_root_m is not None
    return hands.joints_root_m + transl[:, None], hands.verts_root_m + transl[:, None]


@dataclass(eq=False)
class MomentsHook:
    """Measures the moments of a task's `TokenNorm` before each validation, on at most `MAX_IMAGES`
    samples of each domain, evenly spaced."""

    at_start: ClassVar[bool] = False
    domains: Mapping[str, Dataset[Any]]
    augment: HandAugment
    every: int | None = None
    batch_size: int = 64

    def __call__(self, task: nn.Module, info: StepInfo, run: Run) -> dict[str, float]:
        """Nothing to log."""
        assert isinstance(task, RegressionTask)
        for domain, dataset in self.domains.items():
            order = spread(size_of(dataset), MAX_IMAGES)
            parts = np.array_split(order, -(-len(order) // self.batch_size))
            samples = ([*_readable(dataset, part)] for part in parts)
            images = (collate_crops(part).image.to(run.device) for part in samples if part)
            task.measure_tokens(domain, map(self.augment.evaluate_images, images))
        return {}


def _readable(dataset: Dataset[Any], indices: Iterable[int]) -> Iterator[Any]:
    """Samples without those that cannot be read, which training replaces."""
    for index in indices:
        with suppress(UnreadableSample):
            yield dataset[int(index)]


@dataclass(eq=False)
class EvalHook:
    """Validation metrics while fine-tuning; `every` is in steps, None for the last one only.

    `domain` as `TokenNorm` takes it; `name` is that of a further set, whose metrics are
    `val_<name>/...`."""

    at_start: ClassVar[bool] = False
    dataset: Dataset[HandSample]
    augment: HandAugment
    every: int | None = None
    batch_size: int = 64
    num_workers: int = 0
    domain: str | None = None
    name: str | None = None

    def __call__(self, task: nn.Module, info: StepInfo, run: Run) -> dict[str, float]:
        """Metrics as `val/<metric>`."""
        assert isinstance(task, RegressionTask)
        autocast = run.fabric.autocast
        module = InferenceModule(
            task, self.augment, run.device, autocast=autocast, domain=self.domain
        )
        sizes = {"batch_size": self.batch_size, "num_workers": self.num_workers}
        metrics, _ = score(module, self.dataset, **sizes)
        shown = [f"{text} {metrics[k]:.2f} mm" for k, text in SHOWN.items() if k in metrics]
        if "err2d_percent" in metrics:
            shown.append(f"2D {metrics['err2d_percent']:.2f} %")
        where = "" if self.name is None else f" on {self.name}"
        log.info("step %d: validation%s %s", info.step, where, ", ".join(shown))
        prefix = "val" if self.name is None else f"val_{self.name}"
        return {f"{prefix}/{metric}": value for metric, value in metrics.items()}
