"""Scoring a regression task on a labelled set; the mean hand is scored by the same path."""

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import Dataset

from handmim.contracts import HandBatch, HandSample, HandState, StepInfo
from handmim.data.augment import HandAugment
from handmim.data.loader import batches
from handmim.hand.skeleton import ROOT_JOINT
from handmim.metrics.pose import HandMetrics
from handmim.tasks.finetune import HandRegressionTask
from handmim.tasks.finetune_pictures import draw_predictions
from handmim.utils.run import Run

log = logging.getLogger(__name__)

Predictor = Callable[[HandBatch], HandState]


@torch.no_grad()
def score(
    predict: Predictor,
    dataset: Dataset[HandSample],
    augment: HandAugment,
    device: torch.device,
    batch_size: int = 64,
    num_pictures: int = 0,
    faces: NDArray[np.int32] | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> tuple[dict[str, float], NDArray[np.uint8] | None]:
    """Root-relative and aligned figures of a predictor over a whole set.

    Args:
        predict: augmented batch -> estimate.
        dataset: labelled crops with joints and vertices.
        augment: its evaluation crop is used.
        device: where `predict` runs.
        batch_size: samples at a time.
        num_pictures: samples drawn beside their truth.
        faces: of the hand model, for the pictures.
        autocast: precision of `predict`, for example `fabric.autocast`.
    Returns: metrics with their units in the names, and the sheet of pictures or None.
    Raises: ValueError when a sample lacks joints or vertices.
    """
    # Every process scores the whole set, so there is nothing to gather.
    metrics = HandMetrics(root_joint=ROOT_JOINT, sync_on_compute=False)
    sheet = None
    for stored in batches(dataset, batch_size):
        moved = HandBatch(*(field.to(device) for field in stored))
        batch = augment.evaluate(moved)
        if not bool((batch.has_verts & batch.joints_valid.all(dim=1)).all()):
            raise ValueError(
                "scoring needs all 21 joints and the vertices of every sample: some of this set "
                "have none, and zeros would count as perfect (data.val)"
            )
        with autocast():
            state = predict(batch)
        if sheet is None and num_pictures and faces is not None:
            sheet = draw_predictions(batch, state, faces, num_pictures)
        metrics.update(
            state.joints_root_m.cpu(),
            state.verts_root_m.cpu(),
            batch.joints_cam_m.cpu(),
            batch.verts_cam_m.cpu(),
        )
    return {k: float(v) for k, v in metrics.compute().items()}, sheet


def check_hands(trained: str, built: str, scored: str | None) -> None:
    """Refuse to mix hand models, whose vertices and betas mean different things.

    Args:
        trained: sha256 of the hand that the checkpoint was trained with.
        built: of the one its config points to now.
        scored: of the one that the data was made with; None when the data has no such thing.
    Raises: ValueError naming the two that differ.
    """
    if trained != built:
        raise ValueError(
            f"the checkpoint was trained with hand model {trained[:12]}, its hand_path now holds "
            f"{built[:12]}: restore that file"
        )
    if scored is not None and scored != trained:
        raise ValueError(
            f"the checkpoint was trained with hand model {trained[:12]}, the data is of "
            f"{scored[:12]}: their vertices do not correspond (hand_path, data)"
        )


def model_predictor(task: HandRegressionTask) -> Predictor:
    """The last refinement of a task in eval mode."""

    def predict(batch: HandBatch) -> HandState:
        return task.predict(batch.image).steps[-1]

    task.eval()
    return predict


def mean_hand_predictor(task: HandRegressionTask) -> Predictor:
    """The hand that the head starts from, whatever the picture."""

    def predict(batch: HandBatch) -> HandState:
        return task.head.decode(task.head.mean_state(len(batch.image)))

    task.eval()
    return predict


class EvalHook:
    """Validation figures while fine-tuning.

    Args:
        dataset: labelled crops.
        augment: its evaluation crop is used.
        every: steps between evaluations; None for the last step only.
        batch_size: samples at a time.
    """

    at_start = False

    def __init__(
        self,
        dataset: Dataset[HandSample],
        augment: HandAugment,
        every: int | None = None,
        batch_size: int = 64,
    ) -> None:
        self.dataset, self.augment, self.every = dataset, augment, every
        self.batch_size = batch_size

    def __call__(self, task: nn.Module, info: StepInfo, run: Run) -> dict[str, float]:
        """Figures as `val/<name>`."""
        assert isinstance(task, HandRegressionTask)
        figures, _ = score(
            model_predictor(task),
            self.dataset,
            self.augment,
            run.device,
            self.batch_size,
            autocast=run.fabric.autocast,
        )
        log.info(
            "step %d: validation MPJPE %.2f mm, PA-MPJPE %.2f mm, PA-MPVPE %.2f mm",
            info.step,
            figures["mpjpe_mm"],
            figures["pa_mpjpe_mm"],
            figures["pa_mpvpe_mm"],
        )
        return {f"val/{name}": value for name, value in figures.items()}
