"""Scoring a regression task on a labelled set; the mean hand is scored by the same path."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from handmim.data.augment import HandAugment
from handmim.data.loader import batches
from handmim.evaluation.tta import AnyEstimate, TurnedViews
from handmim.hand.skeleton import ROOT_JOINT
from handmim.losses.joints import JointEstimate
from handmim.metrics.pose import KEYS, MIRRORED_SHARE, HandMetrics, crop_share_errors
from handmim.tasks.prediction_images import draw_predictions
from handmim.tasks.regression import Estimate, RegressionTask
from handmim.types import HandBatch, HandSample, HandState, StepInfo
from handmim.utils.run import Run
from handmim.utils.timer import Timer

log = logging.getLogger(__name__)

Predictor = Callable[[HandBatch], HandState]  # with a mesh, as benchmarks want it

# What `score` gives, without counts of samples.
FIGURES = (*(key for key in KEYS if not key.startswith("num_")), "err2d_percent", "pck10")
PCK_SHARE = 0.1  # of the crop's side: a 2D joint nearer than this is a hit


@torch.no_grad()
def predictions(
    predict: Callable[[HandBatch], AnyEstimate],
    dataset: Dataset[HandSample],
    augment: HandAugment,
    device: torch.device,
    batch_size: int,
    autocast: Callable[[], AbstractContextManager[Any]],
    num_workers: int,
    tta: TurnedViews | None = None,
    stopwatch: Timer | None = None,
) -> Iterator[tuple[HandBatch, AnyEstimate]]:
    """Evaluation crops of a whole set in order, on the device, and what is made of them.

    Args:
        predict: augmented batch -> estimate in the samples' joint rule.
        dataset: crops.
        augment: its evaluation crop is used.
        device: where `predict` runs.
        batch_size: samples at a time.
        autocast: precision of `predict`, for example `fabric.autocast`.
        num_workers: loader processes.
        tta: several looks at every picture; None looks once.
        stopwatch: times crops and predictions, without reading and moving pictures.
    """

    def answer(batch: HandBatch) -> AnyEstimate:
        with autocast():
            return predict(batch)

    for stored_on_cpu in batches(dataset, batch_size, num_workers):
        stored = stored_on_cpu.moved(device)
        batch: HandBatch | None = None
        with nullcontext() if stopwatch is None else stopwatch.lap(len(stored.image)):
            if tta is None:
                batch = augment.evaluate(stored)
                state = answer(batch)
            else:
                state = tta(answer, stored, augment)
        yield augment.evaluate(stored) if batch is None else batch, state


@torch.no_grad()
def score(
    predict: Callable[[HandBatch], Estimate],
    dataset: Dataset[HandSample],
    augment: HandAugment,
    device: torch.device,
    batch_size: int = 64,
    num_pictures: int = 0,
    faces: NDArray[np.int32] | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    num_workers: int = 0,
    tta: TurnedViews | None = None,
    stopwatch: Timer | None = None,
) -> tuple[dict[str, float], NDArray[np.uint8] | None]:
    """Root-relative and aligned figures of a predictor over a whole set, each over the samples that
    are labelled for it.

    Args:
        predict: augmented batch -> estimate.
        dataset: crops; samples with all joints in 3D count for joint figures, those of them with
            vertices for mesh figures where `predict` gives a mesh, those with any joint in the
            picture for the 2D error.
        augment: its evaluation crop is used.
        device: where `predict` runs.
        batch_size: samples at a time.
        num_pictures: samples drawn beside their truth.
        faces: of the hand model, for pictures with meshes; None draws joints alone.
        autocast: precision of `predict`, for example `fabric.autocast`.
        num_workers: loader processes.
        tta: several looks at every picture; None looks once.
        stopwatch: times the predictions.
    Returns: figures with their units in the names and the counts behind them; the sheet of pictures
        or None.
    Raises: ValueError when nothing is labelled.
    """
    # Every process scores the whole set, so there is nothing to gather.
    metrics = HandMetrics(root_joint=ROOT_JOINT)
    sheet, seen, total = None, [], 0
    how = (augment, device, batch_size, autocast, num_workers, tta, stopwatch)
    for batch, state in predictions(predict, dataset, *how):
        if sheet is None and num_pictures:
            sheet = draw_predictions(batch, state, faces, num_pictures)
        total += len(batch.image)
        seen.append(errors_2d(state, batch).cpu())
        whole = batch.joints_valid.all(dim=1)
        if bool(whole.any()):
            verts = state.verts_root_m
            has_verts = batch.has_verts & (verts is not None)
            metrics.update(
                state.joints_root_m[whole].cpu(),
                (batch.verts_cam_m if verts is None else verts)[whole].cpu(),
                batch.joints_cam_m[whole].cpu(),
                batch.verts_cam_m[whole].cpu(),
                has_verts[whole].cpu(),
            )
    if metrics.num_samples and (share := metrics.mirrored_share()) >= MIRRORED_SHARE:
        log.warning(
            "%.0f%% of the predicted hands are mirror images of the truth, which aligned errors "
            "(pa_) hide: are the sides of the hands, or the axes of the labels, right?",
            100 * share,
        )
    in_2d = torch.cat(seen)
    figures = {k: float(v) for k, v in metrics.compute().items()} if metrics.num_samples else {}
    if len(in_2d):
        error, hits = in_2d.mean(dim=0).tolist()
        figures |= {"err2d_percent": error * 100, "pck10": hits, "num_2d": len(in_2d)}
    if not figures:
        raise ValueError(f"nothing of this set is labelled: {total} samples (data.val, data.test)")
    return figures, sheet


def errors_2d(state: JointEstimate, batch: HandBatch) -> Tensor:
    """Of the k samples that have any joint in the picture: mean distance of estimated to labelled
    joints as a share of the crop's side, and share of joints nearer than `PCK_SHARE`: [k, 2]."""
    distance = crop_share_errors(state.joints_crop_ndc.float(), batch.kp2d_crop_ndc)
    both = torch.stack([distance, (distance < PCK_SHARE).float()], dim=-1)
    count = batch.kp2d_valid.sum(dim=1)
    total = (both * batch.kp2d_valid[..., None]).sum(dim=1)
    return (total / count.clamp(min=1)[:, None])[count > 0]


def model_predictor(task: RegressionTask) -> Callable[[HandBatch], Any]:
    """The answer of a task in eval mode."""
    task.eval()
    return task.estimate


def mean_hand_predictor(task: RegressionTask) -> Callable[[HandBatch], Any]:
    """What the head starts from, whatever the picture."""
    task.eval()
    return task.mean_estimate


def truth_predictor(task: RegressionTask) -> Callable[[HandBatch], Any]:
    """The labels as a prediction: what it misses is lost on the way, not by a model."""
    task.eval()
    return task.true_estimate


PREDICTORS = {
    "model": model_predictor,
    "mean_hand": mean_hand_predictor,
    "truth": truth_predictor,
}


class EvalHook:
    """Validation figures while fine-tuning.

    Args:
        dataset: labelled crops.
        augment: its evaluation crop is used.
        every: steps between evaluations; None for the last step only.
        batch_size: samples at a time.
        num_workers: loader processes.
    """

    at_start = False

    def __init__(
        self,
        dataset: Dataset[HandSample],
        augment: HandAugment,
        every: int | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        self.dataset, self.augment, self.every = dataset, augment, every
        self.batch_size, self.num_workers = batch_size, num_workers

    def __call__(self, task: nn.Module, info: StepInfo, run: Run) -> dict[str, float]:
        """Figures as `val/<name>`."""
        assert isinstance(task, RegressionTask)
        figures, _ = score(
            model_predictor(task),
            self.dataset,
            self.augment,
            run.device,
            self.batch_size,
            autocast=run.fabric.autocast,
            num_workers=self.num_workers,
        )
        shown = {"mpjpe_mm": "MPJPE", "pa_mpjpe_mm": "PA-MPJPE", "pa_mpvpe_mm": "PA-MPVPE"}
        words = [f"{text} {figures[k]:.2f} mm" for k, text in shown.items() if k in figures]
        if "err2d_percent" in figures:
            words.append(f"2D {figures['err2d_percent']:.2f} %")
        log.info("step %d: validation %s", info.step, ", ".join(words))
        return {f"val/{name}": value for name, value in figures.items()}
