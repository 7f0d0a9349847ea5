"""Nearest neighbours of frozen features: do crops that look alike to the network show alike hands?

Unlike the ridge probe nothing is fitted, so nothing can be overlooked that is there but not linear,
and nothing found that is there but small.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from handmim.geometry.align import similarity_align
from handmim.metrics.probe import Poses, pose_figures


def nearest(query_x: Tensor, base_x: Tensor, k: int) -> Tensor:
    """Places of the k most similar rows by cosine, most similar first.

    Args:
        query_x: [m, D] features.
        base_x: [n, D] features to search; their mean is taken from both sides first, else what all
            crops share would fill the cosine.
        k: neighbours.
    Returns: [m, k] int64.
    Raises: ValueError for more neighbours than rows.
    """
    if not 1 <= k <= len(base_x):
        raise ValueError(
            f"cannot take {k} neighbours from {len(base_x)} samples (probe.neighbours)"
        )
    base = base_x.double()
    mean = base.mean(dim=0)
    similarity = F.normalize(query_x.double() - mean, dim=1) @ F.normalize(base - mean, dim=1).T
    return similarity.topk(k, dim=1).indices


def neighbour_poses(neighbours: Tensor, train: Poses) -> Poses:
    """Poses of neighbours, averaged.

    3D joints are laid onto those of the nearest neighbour by a similarity first, so that the mean
    keeps the fingers where neighbours differ in orientation or size. The 2D mean is plain.

    Args:
        neighbours: [m, k] places in `train`, nearest first.
        train: poses of the searched set.
    """
    kp2d = train.kp2d_ndc[neighbours].double().mean(dim=1)
    if train.joints_m is None:
        return Poses(kp2d, None)
    joints = train.joints_m[neighbours].double()
    first = joints[:, :1].expand_as(joints)
    laid = similarity_align(joints.flatten(0, 1), first.flatten(0, 1)).view_as(joints)
    return Poses(kp2d, laid.mean(dim=1))


def class_accuracy(neighbours: Tensor, train_classes: Tensor, test_classes: Tensor) -> float:
    """Share of test samples whose neighbours' vote names their class.

    The most frequent class wins, of equally frequent ones that with the nearer neighbours.

    Args:
        neighbours: [m, k] places in the train set, nearest first.
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


def retrieval_figures(neighbours: Tensor, train: Poses, test: Poses) -> dict[str, float]:
    """Errors of the neighbours' mean pose: err2d_percent, pck10 and, in 3D, pa_mpjpe_mm."""
    figures = pose_figures(neighbour_poses(neighbours, train), test)
    figures.pop("mpjpe_mm", None)  # joints were laid onto one neighbour
    return figures
