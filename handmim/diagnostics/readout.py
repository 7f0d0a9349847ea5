"""Closed-form readout of poses from frozen features: ridge regression and nearest neighbours.

Nothing is trained. Ridge regression finds what is linear in the features; neighbours, by which
nothing is fitted, find what is there but not linear.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from handmim.geometry.align import similarity_align
from handmim.metrics.pose import crop_share_errors, point_errors_m

PENALTIES = tuple(10.0 ** (k / 2) for k in range(9))  # 1 .. 1e4
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
        holdout: share of the training set that selects the penalty.
    Raises: ValueError for fewer than 10 training samples.
    """

    def __init__(self, train_x: Tensor, holdout: float = 0.2) -> None:
        if len(train_x) < MIN_TRAIN:
            raise ValueError(f"a probe needs >= {MIN_TRAIN} training samples, got {len(train_x)}")
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
        parts: tuple[Tensor, Tensor, Tensor, Tensor], y: Tensor, penalties: tuple[float, ...]
    ) -> list[tuple[Tensor, Tensor]]:
        """Weights [D, C] and biases [C] of every penalty."""
        x, mean, values, vectors = parts
        y_mean = y.mean(dim=0)
        rotated = vectors.T @ (x.T @ (y - y_mean))
        weights = [vectors @ (rotated / (values + penalty)[:, None]) for penalty in penalties]
        return [(weight, y_mean - mean @ weight) for weight in weights]

    def predict(self, train_y: Tensor, test_x: Tensor) -> tuple[Tensor, float]:
        """Fit one target and predict it.

        Args:
            train_y: [n, C] targets of the training samples.
            test_x: [m, D].
        Returns: [m, C] predictions and the chosen penalty.
        Raises: ValueError for another number of targets than of training samples.
        """
        if len(train_y) != len(self.x):
            raise ValueError(f"got {len(train_y)} targets for {len(self.x)} features")
        y = train_y.double()
        errors = [
            float((self.x[self.cut :] @ weight + bias - y[self.cut :]).square().mean())
            for weight, bias in self._solve(self._part, y[: self.cut], PENALTIES)
        ]
        best = PENALTIES[min(range(len(errors)), key=errors.__getitem__)]
        weight, bias = self._solve(self._whole, y, (best,))[0]
        return (test_x.double() - self.mean) / self.std @ weight + bias, best


def pose_errors(pred: Poses, true: Poses) -> dict[str, float]:
    """Errors of predicted poses.

    Returns: err2d_percent (mean 2D error in per cent of the crop's side), pck10 (share of 2D errors
        under 10 % of the side) and, where both have 3D joints, mpjpe_mm and pa_mpjpe_mm.
    """
    err2d = crop_share_errors(pred.kp2d_ndc.double(), true.kp2d_ndc.double())
    errors = {
        "err2d_percent": float(err2d.mean()) * 100,
        "pck10": float((err2d < 0.1).double().mean()),
    }
    if pred.joints_m is None or true.joints_m is None:
        return errors
    joints, target = pred.joints_m.double(), true.joints_m.double()
    aligned = similarity_align(joints, target)
    return errors | {
        "mpjpe_mm": float(point_errors_m(joints, target).mean()) * 1e3,
        "pa_mpjpe_mm": float(point_errors_m(aligned, target).mean()) * 1e3,
    }


def joint_probe(train_x: Tensor, train: Poses, test_x: Tensor, test: Poses) -> dict[str, float]:
    """`pose_errors` of a ridge probe from features to 2D and root-relative 3D joints.

    Args:
        train_x, test_x: [n, D] and [m, D] features.
        train, test: their joints; 3D errors need both to have 3D joints.
    """
    ridge = Ridge(train_x)
    kp2d, _ = ridge.predict(train.kp2d_ndc.flatten(1), test_x)
    joints = None
    if train.joints_m is not None and test.joints_m is not None:
        joints = ridge.predict(train.joints_m.flatten(1), test_x)[0].unflatten(1, (-1, 3))
    return pose_errors(Poses(kp2d.unflatten(1, (-1, 2)), joints), test)


def mean_pose(train: Poses, test: Poses) -> dict[str, float]:
    """`pose_errors` of the training set's mean pose, a baseline that reads no features."""

    def repeated(points: Tensor) -> Tensor:
        return points.double().mean(dim=0).expand(len(test.kp2d_ndc), -1, -1)

    joints = None if train.joints_m is None else repeated(train.joints_m)
    return pose_errors(Poses(repeated(train.kp2d_ndc), joints), test)


def nearest(query_x: Tensor, base_x: Tensor, k: int) -> Tensor:
    """Indices of the k most similar rows by cosine, most similar first.

    Args:
        query_x: [m, D] features.
        base_x: [n, D] features to search; their mean is subtracted on both sides first, since
            otherwise what all crops share dominates the cosine.
        k: neighbours.
    Returns: [m, k] int64.
    Raises: ValueError for more neighbours than rows.
    """
    if not 1 <= k <= len(base_x):
        raise ValueError(f"cannot take {k} neighbours from {len(base_x)} samples")
    base = base_x.double()
    mean = base.mean(dim=0)
    similarity = F.normalize(query_x.double() - mean, dim=1) @ F.normalize(base - mean, dim=1).T
    return similarity.topk(k, dim=1).indices


def neighbour_poses(neighbours: Tensor, train: Poses) -> Poses:
    """Mean poses of neighbours.

    3D joints are first aligned with those of the nearest neighbour by a similarity, so that the
    mean keeps the fingers where neighbours differ in orientation or size. The 2D mean is plain.

    Args:
        neighbours: [m, k] indices into `train`, nearest first.
        train: poses of the searched set.
    """
    kp2d = train.kp2d_ndc[neighbours].double().mean(dim=1)
    if train.joints_m is None:
        return Poses(kp2d, None)
    joints = train.joints_m[neighbours].double()
    first = joints[:, :1].expand_as(joints)
    aligned = similarity_align(joints.flatten(0, 1), first.flatten(0, 1)).view_as(joints)
    return Poses(kp2d, aligned.mean(dim=1))


def neighbour_errors(neighbours: Tensor, train: Poses, test: Poses) -> dict[str, float]:
    """Errors of the neighbours' mean pose: err2d_percent, pck10 and, in 3D, pa_mpjpe_mm."""
    errors = pose_errors(neighbour_poses(neighbours, train), test)
    errors.pop("mpjpe_mm", None)  # joints were aligned with one neighbour
    return errors


def class_accuracy(neighbours: Tensor, train_classes: Tensor, test_classes: Tensor) -> float:
    """Share of test samples whose class wins the neighbours' vote; ties go to nearer neighbours.

    Args:
        neighbours: [m, k] indices into the train set, nearest first.
        train_classes: [n] int64 >= 0.
        test_classes: [m] int64 >= 0.
    """
    voted = train_classes[neighbours]
    k = voted.shape[1]
    # Ranks add up to less than one vote, so they decide ties only.
    ballots = 1 + (k - torch.arange(k, dtype=torch.float64)) / (2 * k * k)
    num = int(torch.cat([train_classes, test_classes]).max()) + 1
    votes = torch.zeros(len(voted), num, dtype=torch.float64)
    votes.scatter_add_(1, voted, ballots.expand_as(voted))
    return float((votes.argmax(dim=1) == test_classes).double().mean())
