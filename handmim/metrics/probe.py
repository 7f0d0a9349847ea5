"""Closed-form probes of frozen features: what is linearly readable, without training anything."""

from typing import NamedTuple

import torch
from torch import Tensor

from handmim.geometry.align import similarity_align
from handmim.metrics.pose import crop_share_errors, point_errors_m

LAMBDAS = tuple(10.0 ** (k / 2) for k in range(9))  # 1 .. 1e4
MIN_TRAIN = 10


class Poses(NamedTuple):
    """Joints of n labelled crops, true or predicted."""

    kp2d_ndc: Tensor  # [n, 21, 2] crop ndc
    joints_m: Tensor | None  # [n, 21, 3] relative to the root, metres; None for 2D only


class Ridge:
    """Ridge regression from one feature matrix to any number of targets; float64.

    Features are standardised by the training set. The penalty is chosen, per target, on the last
    `holdout` of the training samples. One eigendecomposition serves all penalties and targets.

    Args:
        train_x: [n, D] features.
        holdout: share of the training set that picks the penalty.
    Raises: ValueError for fewer than 10 training samples.
    """

    def __init__(self, train_x: Tensor, holdout: float = 0.2) -> None:
        if len(train_x) < MIN_TRAIN:
            raise ValueError(f"need >= {MIN_TRAIN} training samples, got {len(train_x)} (probe)")
        x = train_x.double()
        self.mean, self.std = x.mean(dim=0), x.std(dim=0) + 1e-8
        self.x = (x - self.mean) / self.std
        self.cut = len(x) - max(1, round(holdout * len(x)))
        self._whole = self._decompose(self.x)
        self._part = self._decompose(self.x[: self.cut])

    @staticmethod
    def _decompose(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        mean = x.mean(dim=0)
        values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean))
        return x - mean, mean, values.clamp(min=0), vectors

    @staticmethod
    def _solve(
        parts: tuple[Tensor, Tensor, Tensor, Tensor], y: Tensor, lambdas: tuple[float, ...]
    ) -> list[tuple[Tensor, Tensor]]:
        """Weights [D, C] and biases [C], one pair per penalty."""
        x, mean, values, vectors = parts
        y_mean = y.mean(dim=0)
        rotated = vectors.T @ (x.T @ (y - y_mean))
        weights = [vectors @ (rotated / (values + penalty)[:, None]) for penalty in lambdas]
        return [(weight, y_mean - mean @ weight) for weight in weights]

    def predict(self, train_y: Tensor, test_x: Tensor) -> tuple[Tensor, float]:
        """Fit one target and apply it.

        Args:
            train_y: [n, C] targets of the training samples.
            test_x: [m, D].
        Returns: [m, C] predictions and the chosen penalty.
        Raises: ValueError for another number of targets than of training samples.
        """
        if len(train_y) != len(self.x):
            raise ValueError(f"{len(self.x)} features but {len(train_y)} targets (probe)")
        y = train_y.double()
        errors = [
            float((self.x[self.cut :] @ weight + bias - y[self.cut :]).square().mean())
            for weight, bias in self._solve(self._part, y[: self.cut], LAMBDAS)
        ]
        best = LAMBDAS[min(range(len(errors)), key=errors.__getitem__)]
        weight, bias = self._solve(self._whole, y, (best,))[0]
        return (test_x.double() - self.mean) / self.std @ weight + bias, best


def pose_figures(pred: Poses, truth: Poses) -> dict[str, float]:
    """Errors of predicted poses.

    Returns: err2d_percent (mean 2D error in per cent of the crop's side), pck10 (share of 2D errors
        under 10 % of the side) and, where both have 3D joints, mpjpe_mm and pa_mpjpe_mm.
    """
    err2d = crop_share_errors(pred.kp2d_ndc.double(), truth.kp2d_ndc.double())
    figures = {
        "err2d_percent": float(err2d.mean()) * 100,
        "pck10": float((err2d < 0.1).double().mean()),
    }
    if pred.joints_m is None or truth.joints_m is None:
        return figures
    joints, true = pred.joints_m.double(), truth.joints_m.double()
    aligned = similarity_align(joints, true)
    return figures | {
        "mpjpe_mm": float(point_errors_m(joints, true).mean()) * 1e3,
        "pa_mpjpe_mm": float(point_errors_m(aligned, true).mean()) * 1e3,
    }


def joint_probe(train_x: Tensor, train: Poses, test_x: Tensor, test: Poses) -> dict[str, float]:
    """Ridge probe from features to 2D and root-relative 3D joints.

    Args:
        train_x, test_x: [n, D] and [m, D] features.
        train, test: their joints; 3D figures need both to have 3D joints.
    Returns: see `pose_figures`.
    """
    ridge = Ridge(train_x)
    kp2d, _ = ridge.predict(train.kp2d_ndc.flatten(1), test_x)
    joints = None
    if train.joints_m is not None and test.joints_m is not None:
        joints = ridge.predict(train.joints_m.flatten(1), test_x)[0].unflatten(1, (-1, 3))
    return pose_figures(Poses(kp2d.unflatten(1, (-1, 2)), joints), test)


def mean_pose(train: Poses, test: Poses) -> dict[str, float]:
    """Errors of the hand that knows nothing: the train set's mean for every test crop."""

    def repeated(points: Tensor) -> Tensor:
        return points.double().mean(dim=0).expand(len(test.kp2d_ndc), -1, -1)

    joints = None if train.joints_m is None else repeated(train.joints_m)
    return pose_figures(Poses(repeated(train.kp2d_ndc), joints), test)
