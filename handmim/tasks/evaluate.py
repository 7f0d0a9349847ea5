"""Scoring a regression task on a labelled set; the mean hand is scored by the same path."""

import logging
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import Dataset

from handmim.contracts import HandBatch, HandSample, HandState, StepInfo
from handmim.data.augment import HandAugment
from handmim.data.loader import batches
from handmim.engine.checkpoint import check_targets, load_checkpoint
from handmim.geometry.align import root_align
from handmim.geometry.camera import fit_weak, project_weak
from handmim.hand.skeleton import ROOT_JOINT
from handmim.metrics.pose import HandMetrics, crop_share_errors
from handmim.tasks.finetune import HandRegressionTask
from handmim.tasks.finetune_pictures import draw_predictions
from handmim.utils.run import Run

log = logging.getLogger(__name__)

Predictor = Callable[[HandBatch], HandState]


@torch.no_grad()
def predictions(
    predict: Predictor,
    dataset: Dataset[HandSample],
    augment: HandAugment,
    device: torch.device,
    batch_size: int,
    autocast: Callable[[], AbstractContextManager[Any]],
    num_workers: int,
) -> Iterator[tuple[HandBatch, HandState]]:
    """Evaluation crops of a whole set in order, on the device, and what is made of them.

    Args:
        predict: augmented batch -> estimate in the samples' joint rule.
        dataset: crops.
        augment: its evaluation crop is used.
        device: where `predict` runs.
        batch_size: samples at a time.
        autocast: precision of `predict`, for example `fabric.autocast`.
        num_workers: loader processes.
    """
    for stored in batches(dataset, batch_size, num_workers):
        batch = augment.evaluate(stored.moved(device))
        with autocast():
            state = predict(batch)
        yield batch, state


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
    num_workers: int = 0,
) -> tuple[dict[str, float], NDArray[np.uint8] | None]:
    """Root-relative and aligned figures of a predictor over a whole set, each over the samples that
    are labelled for it.

    Args:
        predict: augmented batch -> estimate.
        dataset: crops; samples with all joints in 3D count for joint figures, those of them with
            vertices for mesh figures, those with any joint in the picture for the 2D error.
        augment: its evaluation crop is used.
        device: where `predict` runs.
        batch_size: samples at a time.
        num_pictures: samples drawn beside their truth.
        faces: of the hand model, for the pictures.
        autocast: precision of `predict`, for example `fabric.autocast`.
        num_workers: loader processes.
    Returns: figures with their units in the names and the counts behind them; the sheet of pictures
        or None.
    Raises: ValueError when nothing is labelled.
    """
    # Every process scores the whole set, so there is nothing to gather.
    metrics = HandMetrics(root_joint=ROOT_JOINT, sync_on_compute=False)
    sheet, seen, total = None, [], 0
    how = (augment, device, batch_size, autocast, num_workers)
    for batch, state in predictions(predict, dataset, *how):
        if sheet is None and num_pictures and faces is not None:
            sheet = draw_predictions(batch, state, faces, num_pictures)
        total += len(batch.image)
        seen.append(errors_2d(state, batch).cpu())
        whole = batch.joints_valid.all(dim=1)
        if bool(whole.any()):
            metrics.update(
                state.joints_root_m[whole].cpu(),
                state.verts_root_m[whole].cpu(),
                batch.joints_cam_m[whole].cpu(),
                batch.verts_cam_m[whole].cpu(),
                batch.has_verts[whole].cpu(),
            )
    in_2d = torch.cat(seen)
    figures = {k: float(v) for k, v in metrics.compute().items()} if len(metrics.joints) else {}
    if len(in_2d):
        figures |= {"err2d_percent": float(in_2d.mean()) * 100, "num_2d": len(in_2d)}
    if not figures:
        raise ValueError(f"nothing of this set is labelled: {total} samples (data.val, data.test)")
    return figures, sheet


def errors_2d(state: HandState, batch: HandBatch) -> Tensor:
    """Mean distance of projected to labelled joints, as a share of the crop's side, of the samples
    that have any: [k]."""
    distance = crop_share_errors(state.joints_crop_ndc.float(), batch.kp2d_crop_ndc)
    count = batch.kp2d_valid.sum(dim=1)
    return ((distance * batch.kp2d_valid).sum(dim=1) / count.clamp(min=1))[count > 0]


def load_trained(path: str | Path) -> dict[str, Any]:
    """A checkpoint of fine-tuning whose config builds nothing but our own parts.

    Raises: FileNotFoundError; ValueError for another file, or a checkpoint of pretraining.
    """
    saved = load_checkpoint(path, map_location="cpu")
    check_targets(saved["config"])
    if "head" not in saved["config"]["task"]:
        raise ValueError(f"{path} is a pretraining checkpoint: fine-tune it first")
    return saved


def check_hands(model: str, data: str | None, where: str) -> None:
    """Refuse to mix hand models, whose vertices and betas mean different things.

    Args:
        model: sha256 of the hand of the model.
        data: of the hand that labels or weights were made with; None when they know none.
        where: these are, for the message.
    Raises: ValueError naming the two.
    """
    if data is not None and data != model:
        raise ValueError(
            f"{where} was made with hand model {data[:12]}, the model's hand is {model[:12]}: "
            "their vertices and betas do not correspond (hand.path, data)"
        )


def model_predictor(task: HandRegressionTask) -> Predictor:
    """The last refinement of a task in eval mode."""

    def predict(batch: HandBatch) -> HandState:
        return task.predict(batch.image, batch.joint_rule).steps[-1]

    task.eval()
    return predict


def mean_hand_predictor(task: HandRegressionTask) -> Predictor:
    """The hand that the head starts from, whatever the picture."""

    def predict(batch: HandBatch) -> HandState:
        state = task.head.decode(task.head.mean_state(len(batch.image)))
        return task.joint_rules.state(state, batch.joint_rule, task.head.scale0_per_m)

    task.eval()
    return predict


def truth_predictor(task: HandRegressionTask) -> Predictor:
    """The labels as a prediction: what it misses is lost on the way, not by a model.

    Posed from MANO parameters where they are known, else the labelled mesh.
    """
    scale0 = task.head.scale0_per_m

    def predict(batch: HandBatch) -> HandState:
        if not bool((batch.has_mano | (batch.has_verts & batch.joints_valid.all(dim=1))).all()):
            raise ValueError("predictor=truth needs labels, and this set has none")
        root = batch.joints_cam_m[:, ROOT_JOINT, None]
        labelled = batch.verts_cam_m - root, batch.joints_cam_m - root
        mesh = task.head.hand(batch.rotmats, batch.betas)
        own = root_align(mesh.verts_m, mesh.joints_m, ROOT_JOINT)
        own_joints = root_align(mesh.joints_m, mesh.joints_m, ROOT_JOINT)
        cam = fit_weak(own_joints, batch.kp2d_crop_ndc, scale0)
        state = HandState(
            rotmats=batch.rotmats,
            betas=batch.betas,
            cam=cam,
            verts_root_m=own,
            joints_root_m=own_joints,
            verts_crop_ndc=project_weak(own, cam, scale0),
            joints_crop_ndc=project_weak(own_joints, cam, scale0),
        )
        state = task.joint_rules.state(state, batch.joint_rule, scale0)
        posed = batch.has_mano[:, None, None]
        return state._replace(
            verts_root_m=torch.where(posed, state.verts_root_m, labelled[0]),
            joints_root_m=torch.where(posed, state.joints_root_m, labelled[1]),
            joints_crop_ndc=batch.kp2d_crop_ndc,  # seen by the true camera, not a weak one
        )

    task.eval()
    return predict


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
        assert isinstance(task, HandRegressionTask)
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
