"""Frozen-feature probe during pretraining: are joints linearly readable from the class token, in
millimetres?"""

import logging

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from handmim.contracts import HandSample, StepInfo
from handmim.data.augment import HandAugment
from handmim.data.loader import batches
from handmim.hand.skeleton import ROOT_JOINT
from handmim.metrics.probe import joint_probe
from handmim.tasks.monitors import effective_rank
from handmim.tasks.pretrain import HandMimTask
from handmim.utils.run import Run

log = logging.getLogger(__name__)


class ProbeHook:
    """Ridge regression from teacher class tokens to 2D and 3D joints, in closed form.

    Args:
        train_set, test_set: labelled crops; split so that nothing of the test set is in the train
            set.
        augment: its evaluation crop is used.
        every: steps between probes.
        batch_size: samples at a time.
    """

    at_start = True
    MIN_TRAIN, MIN_TEST = 10, 1

    def __init__(
        self,
        train_set: Dataset[HandSample],
        test_set: Dataset[HandSample],
        augment: HandAugment,
        every: int | None = None,
        batch_size: int = 128,
    ) -> None:
        self.every, self.batch_size = every, batch_size
        self.augment = augment
        self.train_set, self.test_set = train_set, test_set
        self._told: list[Dataset[HandSample]] = []

    def _features(
        self, task: HandMimTask, dataset: Dataset[HandSample], device: torch.device
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Class tokens, 2D joints, and 3D joints where every kept sample has them."""
        cls, kp2d, joints, total, all_3d = [], [], [], 0, True
        for stored in batches(dataset, self.batch_size):
            batch = self.augment.evaluate(stored.moved(device))
            whole = batch.kp2d_valid.all(dim=1)
            total += len(whole)
            all_3d &= bool(batch.joints_valid[whole].all())
            cls.append(task.features(batch.image[whole]).cls.float().cpu())
            kp2d.append(batch.kp2d_crop_ndc[whole].cpu())
            joints_cam_m = batch.joints_cam_m[whole]
            joints.append((joints_cam_m - joints_cam_m[:, ROOT_JOINT, None]).cpu())
        tokens = torch.cat(cls)
        if len(tokens) < total and dataset not in self._told:
            log.info("probe: %d of %d samples have all 21 joints in 2D", len(tokens), total)
            self._told.append(dataset)
        wanted = self.MIN_TRAIN if dataset is self.train_set else self.MIN_TEST
        if len(tokens) < wanted:
            raise ValueError(
                f"only {len(tokens)} of {total} samples have all 21 joints in 2D, the probe needs "
                f"{wanted} (probe.annotations)"
            )
        return tokens, torch.cat(kp2d), torch.cat(joints) if all_3d else None

    def __call__(self, task: nn.Module, info: StepInfo, run: Run) -> dict[str, float]:
        """Figures as `probe/<name>`; 3D ones where both sets have 3D joints."""
        assert isinstance(task, HandMimTask)
        train = self._features(task, self.train_set, run.device)
        test = self._features(task, self.test_set, run.device)
        figures = joint_probe(*train, *test)
        in_3d = ""
        if "mpjpe_mm" in figures:
            in_3d = ", MPJPE {mpjpe_mm:.2f} mm, PA-MPJPE {pa_mpjpe_mm:.2f} mm".format(**figures)
        err2d = figures["err2d_percent"]
        log.info("step %d: probe 2D error %.2f %% of the crop%s", info.step, err2d, in_3d)
        scalars = {f"probe/{name}": value for name, value in figures.items()}
        return scalars | {"features/cls_rank": float(effective_rank(test[0]))}
