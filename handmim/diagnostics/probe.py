"""Probes of frozen features during pretraining: errors of the hand's pose, in millimetres.

Nothing is trained. Ridge regression in closed form finds what is linear in the features; nearest
neighbours, by which nothing is fitted, find what is there but not linear.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Subset

from handmim.data.augment import HandAugment
from handmim.data.loader import batches
from handmim.diagnostics.collapse import effective_rank
from handmim.diagnostics.images import draw_images_with_points, draw_neighbours
from handmim.geometry.align import similarity_align
from handmim.hand.skeleton import ROOT_JOINT
from handmim.metrics.pose import crop_share_errors, point_errors_m
from handmim.types import HandSample, StepInfo
from handmim.utils.run import Run

log = logging.getLogger(__name__)

FEATURES = ("cls", "cls_patch", "points")
MIN_TRAIN = 10
PENALTIES = tuple(10.0 ** (k / 2) for k in range(9))  # 1 .. 1e4
HOLDOUT = 0.2  # share of the training set that selects the penalty
NUM_QUERIES, NUM_SEARCHED, NUM_NEIGHBOURS = 6, 500, 5  # of the images shown

SHOWN = {"err2d_percent": "%", "pa_mpjpe_mm": "mm"}  # in the log

Errors = dict[str, float]


class Poses(NamedTuple):
    """Joints of n labelled crops, true or predicted."""

    kp2d_ndc: Tensor  # [n, 21, 2] crop ndc
    joints_m: Tensor | None  # [n, 21, 3] relative to the root, metres; None for 2D only


class LabelledFeatures(NamedTuple):
    """Features and labels of those samples of a set whose 21 joints are all known in 2D."""

    features: dict[str, Tensor]  # [n, D] by name
    poses: Poses  # in 3D where all have 3D joints
    classes: Tensor | None  # [n] int64, where the classes of all are known
    total: int  # samples of the set


def embedded(
    dataset: Dataset[HandSample],
    augment: HandAugment,
    batch_size: int,
    device: torch.device,
    embed: Callable[[Tensor], dict[str, Tensor]],
    required: int = 1,
) -> LabelledFeatures:
    """Features that `embed` finds in evaluation crops [n, 3, H, W] in [0, 1], on the CPU.

    Raises: ValueError when fewer samples than required have all joints.
    """
    features: dict[str, list[Tensor]] = defaultdict(list)
    whole, kp2d, joints, all_3d = [], [], [], True
    for stored in batches(dataset, batch_size):
        batch = augment.evaluate(stored.moved(device))
        is_whole = batch.kp2d_valid.all(dim=1)
        for name, x in embed(batch.image[is_whole]).items():
            features[name].append(x.float().cpu())
        joints_cam_m = batch.joints_cam_m[is_whole]
        joints.append((joints_cam_m - joints_cam_m[:, ROOT_JOINT, None]).cpu())
        kp2d.append(batch.kp2d_crop_ndc[is_whole].cpu())
        whole.append(is_whole.cpu())
        all_3d &= bool(batch.joints_valid[is_whole].all())
    indices = torch.cat(whole).nonzero().squeeze(1).tolist()
    if len(indices) < required:
        text = f"only {len(indices)} of {sum(map(len, whole))} samples have all 21 joints in 2D"
        raise ValueError(f"{text}, the probe needs {required}")
    class_of = getattr(dataset, "class_of", lambda index: None)
    classes = [class_of(i) for i in indices]
    return LabelledFeatures(
        {name: torch.cat(parts) for name, parts in features.items()},
        Poses(torch.cat(kp2d), torch.cat(joints) if all_3d else None),
        None if None in classes else torch.tensor(classes),
        sum(map(len, whole)),
    )


def ridge(train_x: Tensor, train_y: Sequence[Tensor], test_x: Tensor) -> list[tuple[Tensor, float]]:
    """Ridge regression from standardised features [n, D] to any number of targets [n, C], float64.

    Returns: each target for test_x [m, D], [m, C], and its penalty, which is chosen on the last
    `HOLDOUT` of the training set.
    Raises: ValueError for fewer than 10 training samples.
    """
    if len(train_x) < MIN_TRAIN:
        raise ValueError(f"a probe needs >= {MIN_TRAIN} training samples, got {len(train_x)}")
    x = train_x.double()
    mean, std = x.mean(dim=0), x.std(dim=0) + 1e-8
    x, z = (x - mean) / std, (test_x.double() - mean) / std
    cut = len(x) - max(1, round(HOLDOUT * len(x)))
    solve, solve_part = _solver(x), _solver(x[:cut])
    predicted = []
    for y in (y.double() for y in train_y):
        errors = [
            float((x[cut:] @ weight + bias - y[cut:]).square().mean())
            for weight, bias in solve_part(y[:cut], PENALTIES)
        ]
        best = min(zip(errors, PENALTIES, strict=True))[1]
        ((weight, bias),) = solve(y, (best,))
        predicted.append((z @ weight + bias, best))
    return predicted


def _solver(x: Tensor) -> Callable[[Tensor, Sequence[float]], list[tuple[Tensor, Tensor]]]:
    mean = x.mean(dim=0)
    centred = x - mean
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    values = values.clamp(min=0)

    def solve(y: Tensor, penalties: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
        """Weights [D, C] and biases [C] of every penalty."""
        y_mean = y.mean(dim=0)
        rotated = vectors.T @ (centred.T @ (y - y_mean))
        weights = [vectors @ (rotated / (values + penalty)[:, None]) for penalty in penalties]
        return [(weight, y_mean - mean @ weight) for weight in weights]

    return solve


def pose_errors(pred: Poses, true: Poses) -> Errors:
    """err2d_percent (mean 2D error in per cent of the crop's side), pck10 (share of 2D errors under
    10 % of the side) and, where both have 3D joints, mpjpe_mm and pa_mpjpe_mm."""
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


def joint_probe(train_x: Tensor, train: Poses, test_x: Tensor, test: Poses) -> Errors:
    """`pose_errors` of a ridge probe from features [n, D] to 2D and root-relative 3D joints."""
    targets = [train.kp2d_ndc.flatten(1)]
    if train.joints_m is not None and test.joints_m is not None:
        targets.append(train.joints_m.flatten(1))
    (kp2d, _), *rest = ridge(train_x, targets, test_x)
    joints = rest[0][0].unflatten(1, (-1, 3)) if rest else None
    return pose_errors(Poses(kp2d.unflatten(1, (-1, 2)), joints), test)


def mean_pose(train: Poses, test: Poses) -> Errors:
    """`pose_errors` of the training set's mean pose, a baseline that reads no features."""
    shape = len(test.kp2d_ndc), -1, -1
    kp2d = train.kp2d_ndc.double().mean(dim=0).expand(shape)
    joints = train.joints_m
    if joints is not None:
        joints = joints.double().mean(dim=0).expand(shape)
    return pose_errors(Poses(kp2d, joints), test)


def nearest(query_x: Tensor, base_x: Tensor, k: int) -> Tensor:
    """[m, k] indices of the rows of base_x [n, D] most similar to query_x [m, D], most similar
    first, by cosine about the mean of base_x: what all crops share would dominate it."""
    if not 1 <= k <= len(base_x):
        raise ValueError(f"cannot take {k} neighbours from {len(base_x)} samples")
    base = base_x.double()
    mean = base.mean(dim=0)
    similarity = F.normalize(query_x.double() - mean, dim=1) @ F.normalize(base - mean, dim=1).T
    return similarity.topk(k, dim=1).indices


def neighbour_poses(neighbours: Tensor, train: Poses) -> Poses:
    """Mean poses of neighbours [m, k], nearest first. 3D joints are aligned with those of the
    nearest by a similarity, so that the mean keeps the fingers; the 2D mean is plain."""
    kp2d = train.kp2d_ndc[neighbours].double().mean(dim=1)
    if train.joints_m is None:
        return Poses(kp2d, None)
    joints = train.joints_m[neighbours].double()
    first = joints[:, :1].expand_as(joints)
    aligned = similarity_align(joints.flatten(0, 1), first.flatten(0, 1)).view_as(joints)
    return Poses(kp2d, aligned.mean(dim=1))


def class_accuracy(neighbours: Tensor, train_classes: Tensor, test_classes: Tensor) -> float:
    """Share of test samples whose class [m] int64 >= 0 wins the vote of neighbours [m, k], nearest
    first; ties go to nearer ones."""
    voted = train_classes[neighbours]
    k = voted.shape[1]
    # Ranks add up to less than one vote, so they decide ties only.
    ballots = 1 + (k - torch.arange(k, dtype=torch.float64)) / (2 * k * k)
    num = int(torch.cat([train_classes, test_classes]).max()) + 1
    votes = torch.zeros(len(voted), num, dtype=torch.float64)
    votes.scatter_add_(1, voted, ballots.expand_as(voted))
    return float((votes.argmax(dim=1) == test_classes).double().mean())


@dataclass(eq=False)
class ProbeHook:
    """Hook that reads poses out of frozen features in closed form, on a small labelled split.

    Ridge regression predicts 2D and 3D joints from each kind of features: `cls` the class token,
    `cls_patch` class token and mean patch token, `points` the pseudo-keypoints' coordinates alone.
    Nearest neighbours by class token give a mean pose, and classes where a dataset knows them
    (`class_of(index)`). The mean pose of the train set is scored for comparison.

    Raises: ValueError for unknown features and numbers of neighbours below 1.
    """

    train_set: Dataset[HandSample]  # labelled crops, nothing of the test set
    test_set: Dataset[HandSample]
    augment: HandAugment  # its evaluation crop is used
    every: int | None = None
    batch_size: int = 128
    features: Sequence[str] = FEATURES  # points only where the task has them
    neighbours: Sequence[int] = (1, 10)  # numbers of them; none leaves retrieval out
    at_start = True

    def __post_init__(self) -> None:
        unknown = sorted(set(self.features) - set(FEATURES))
        if unknown or not self.features:
            raise ValueError(f"features must be some of {FEATURES}, got {unknown}")
        if any(number < 1 for number in self.neighbours):
            raise ValueError(f"neighbours must be whole numbers >= 1, got {list(self.neighbours)}")
        self._reported: list[Dataset[HandSample]] = []

    def _embedded(self, task: Any, dataset: Dataset[HandSample], run: Run) -> LabelledFeatures:
        def embed(image: Tensor) -> dict[str, Tensor]:
            tokens = task.features(image)
            both = torch.cat([tokens.cls, tokens.patches.mean(dim=1)], dim=1)
            found = {"cls": tokens.cls, "cls_patch": both}
            if "points" in self.features and (points := task.keypoints(tokens)) is not None:
                found["points"] = points.flatten(1)
            return found

        required = MIN_TRAIN if dataset is self.train_set else 1
        how = self.augment, self.batch_size, run.device
        found = embedded(dataset, *how, embed, required)
        num = len(found.poses.kp2d_ndc)
        if num < found.total and dataset not in self._reported:
            log.info("probe: %d of %d samples have all 21 joints in 2D", num, found.total)
            self._reported.append(dataset)
        return found

    def __call__(self, task: Any, info: StepInfo, run: Run) -> Errors:
        """Errors as `probe/<name>` (class token), `probe/<features>/<name>`, `probe/mean_pose/..`
        and `probe/knn<k>/..`; 3D ones where both sets have 3D joints."""
        train = self._embedded(task, self.train_set, run)
        test = self._embedded(task, self.test_set, run)
        results = {"mean_pose": mean_pose(train.poses, test.poses)}
        for name in self.features:
            if name in train.features:
                x, z = train.features[name], test.features[name]
                results[name] = joint_probe(x, train.poses, z, test.poses)
        if self.neighbours:
            most = max(self.neighbours)
            order = nearest(test.features["cls"], train.features["cls"], most)
        for k in self.neighbours:
            errors = pose_errors(neighbour_poses(order[:, :k], train.poses), test.poses)
            errors.pop("mpjpe_mm", None)  # joints were aligned with one neighbour
            if train.classes is not None and test.classes is not None:
                accuracy = class_accuracy(order[:, :k], train.classes, test.classes)
                errors["class_accuracy"] = accuracy
            results[f"knn{k}"] = errors
        scalars = {"features/cls_rank": float(effective_rank(test.features["cls"]))}
        texts = []
        for name, errors in results.items():
            prefix = "probe" if name == "cls" else f"probe/{name}"
            scalars |= {f"{prefix}/{key}": value for key, value in errors.items()}
            shown = (f"{errors[key]:.2f} {unit}" for key, unit in SHOWN.items() if key in errors)
            texts.append(f"{name} {', '.join(shown)}")
        log.info("step %d: probe: %s", info.step, "; ".join(texts))
        return scalars

    @torch.no_grad()
    def images(self, task: Any, run: Run) -> dict[str, NDArray[np.uint8]]:
        """`probe_neighbours`: test crops and the train crops nearest by class token;
        `probe_keypoints`: their pseudo-keypoints, where the task has them."""
        query = self._crops(self.test_set, NUM_QUERIES, run.device)
        base = self._crops(self.train_set, NUM_SEARCHED, run.device)
        tokens = task.features(query)
        searched = torch.cat([task.features(part).cls for part in base.split(self.batch_size)])
        order = nearest(tokens.cls, searched, min(NUM_NEIGHBOURS, len(base))).cpu()
        sheets = {"probe_neighbours": draw_neighbours(query.cpu(), base.cpu(), order)}
        points = task.keypoints(tokens)
        if points is not None:
            sheets["probe_keypoints"] = draw_images_with_points(query.cpu(), points.cpu())
        return sheets

    def _crops(self, dataset: Any, num: int, device: torch.device) -> Tensor:
        """[num, 3, H, W] model inputs of evenly spaced samples."""
        indices = np.linspace(0, len(dataset) - 1, min(num, len(dataset))).round().astype(int)
        shown = batches(Subset(dataset, indices.tolist()), self.batch_size)
        return torch.cat([self.augment.evaluate(b.moved(device)).image for b in shown])
