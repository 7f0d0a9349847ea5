"""Probes of frozen features during pretraining: errors of the hand's pose, in millimetres.

Nothing is trained. Ridge regression in closed form finds what is linear in the features; nearest
neighbours, by which nothing is fitted, find what is there but not linear.
"""

import logging
from collections.abc import Iterator, Sequence
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
from handmim.diagnostics.images import draw_images_with_points, draw_neighbours
from handmim.diagnostics.statistics import effective_rank
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

Errors = dict[str, float]
Decomposition = tuple[Tensor, Tensor, Tensor, Tensor]


class Poses(NamedTuple):
    """Joints of n labelled crops, true or predicted."""

    kp2d_ndc: Tensor  # [n, 21, 2] crop ndc
    joints_m: Tensor | None  # [n, 21, 3] relative to the root, metres; None for 2D only


class WholeHands(NamedTuple):
    """The samples of a batch whose 21 joints are all known in 2D."""

    is_whole: Tensor  # [B] bool, of the batch
    image: Tensor  # [n, 3, H, W] in [0, 1], as are the rest: of these n alone
    kp2d_crop_ndc: Tensor  # [n, 21, 2]
    joints_root_m: Tensor  # [n, 21, 3] camera axes, origin at the root joint
    all_3d: bool  # whether all of them have 3D joints


def whole_hands(
    dataset: Dataset[HandSample],
    augment: HandAugment,
    batch_size: int,
    device: torch.device | None = None,
) -> Iterator[WholeHands]:
    """Fully labelled samples of a set in their evaluation crops, batch by batch."""
    for stored in batches(dataset, batch_size):
        batch = augment.evaluate(stored if device is None else stored.moved(device))
        is_whole = batch.kp2d_valid.all(dim=1)
        joints_cam_m = batch.joints_cam_m[is_whole]
        yield WholeHands(
            is_whole,
            batch.image[is_whole],
            batch.kp2d_crop_ndc[is_whole],
            joints_cam_m - joints_cam_m[:, ROOT_JOINT, None],
            bool(batch.joints_valid[is_whole].all()),
        )


def poses_of(parts: Sequence[WholeHands]) -> Poses:
    """Their poses, in 3D where all have 3D joints; on the CPU."""
    joints = torch.cat([part.joints_root_m for part in parts]).cpu()
    all_3d = all(part.all_3d for part in parts)
    return Poses(torch.cat([p.kp2d_crop_ndc for p in parts]).cpu(), joints if all_3d else None)


class Ridge:
    """Ridge regression from features [n, D], standardised, to any number of targets; float64. The
    penalty is chosen, per target, on the last `HOLDOUT` of the training set.

    Raises: ValueError for fewer than 10 training samples.
    """

    def __init__(self, train_x: Tensor) -> None:
        if len(train_x) < MIN_TRAIN:
            raise ValueError(f"a probe needs >= {MIN_TRAIN} training samples, got {len(train_x)}")
        x = train_x.double()
        self.mean, self.std = x.mean(dim=0), x.std(dim=0) + 1e-8
        self.x = (x - self.mean) / self.std
        self.cut = len(x) - max(1, round(HOLDOUT * len(x)))
        self._whole = _decompose(self.x)
        self._part = _decompose(self.x[: self.cut])

    def predict(self, train_y: Tensor, test_x: Tensor) -> tuple[Tensor, float]:
        """Fit one target [n, C] and predict it for test_x [m, D]: [m, C] and the chosen penalty.
        Raises: ValueError for another number of targets than of training samples."""
        if len(train_y) != len(self.x):
            raise ValueError(f"got {len(train_y)} targets for {len(self.x)} features")
        y = train_y.double()
        errors = [
            float((self.x[self.cut :] @ weight + bias - y[self.cut :]).square().mean())
            for weight, bias in _solve(self._part, y[: self.cut], PENALTIES)
        ]
        best = PENALTIES[min(range(len(errors)), key=errors.__getitem__)]
        weight, bias = _solve(self._whole, y, (best,))[0]
        return (test_x.double() - self.mean) / self.std @ weight + bias, best


def _decompose(x: Tensor) -> Decomposition:
    mean = x.mean(dim=0)
    values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean))
    return x - mean, mean, values.clamp(min=0), vectors


def _solve(
    parts: Decomposition, y: Tensor, penalties: tuple[float, ...]
) -> list[tuple[Tensor, Tensor]]:
    """Weights [D, C] and biases [C] of every penalty."""
    x, mean, values, vectors = parts
    y_mean = y.mean(dim=0)
    rotated = vectors.T @ (x.T @ (y - y_mean))
    weights = [vectors @ (rotated / (values + penalty)[:, None]) for penalty in penalties]
    return [(weight, y_mean - mean @ weight) for weight in weights]


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
    ridge = Ridge(train_x)
    kp2d, _ = ridge.predict(train.kp2d_ndc.flatten(1), test_x)
    joints = None
    if train.joints_m is not None and test.joints_m is not None:
        joints = ridge.predict(train.joints_m.flatten(1), test_x)[0].unflatten(1, (-1, 3))
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


def neighbour_errors(neighbours: Tensor, train: Poses, test: Poses) -> Errors:
    """Errors of the neighbours' mean pose: err2d_percent, pck10 and, in 3D, pa_mpjpe_mm."""
    errors = pose_errors(neighbour_poses(neighbours, train), test)
    errors.pop("mpjpe_mm", None)  # joints were aligned with one neighbour
    return errors


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


class LabelledFeatures(NamedTuple):
    """Frozen features and labels of a set."""

    features: dict[str, Tensor]  # [n, D] by name of FEATURES
    poses: Poses
    classes: Tensor | None  # [n] int64, where the classes of all are known


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

    def _embed(self, task: Any, image: Tensor) -> dict[str, Tensor]:
        tokens = task.features(image)
        both = torch.cat([tokens.cls, tokens.patches.mean(dim=1)], dim=1)
        found = {"cls": tokens.cls, "cls_patch": both}
        if "points" in self.features and (points := task.keypoints(tokens)) is not None:
            found["points"] = points.flatten(1)
        return {name: x.float().cpu() for name, x in found.items()}

    def _embed_set(
        self, task: Any, dataset: Dataset[HandSample], device: torch.device
    ) -> LabelledFeatures:
        """Features and labels of all samples with 21 joints in 2D."""
        parts: list[WholeHands] = []
        embedded: list[dict[str, Tensor]] = []
        for hands in whole_hands(dataset, self.augment, self.batch_size, device):
            embedded.append(self._embed(task, hands.image))
            parts.append(hands._replace(image=hands.image[:0]))
        is_whole = torch.cat([part.is_whole for part in parts]).cpu()
        num, total = int(is_whole.sum()), len(is_whole)
        if num < total and dataset not in self._reported:
            log.info("probe: %d of %d samples have all 21 joints in 2D", num, total)
            self._reported.append(dataset)
        required = MIN_TRAIN if dataset is self.train_set else 1
        if num < required:
            text = f"only {num} of {total} samples have all 21 joints in 2D"
            raise ValueError(f"{text}, the probe needs {required}")
        features = {name: torch.cat([x[name] for x in embedded]) for name in embedded[0]}
        class_of = getattr(dataset, "class_of", lambda index: None)
        classes = [class_of(i) for i in is_whole.nonzero().squeeze(1).tolist()]
        known = None if None in classes else torch.tensor(classes)
        return LabelledFeatures(features, poses_of(parts), known)

    def __call__(self, task: Any, info: StepInfo, run: Run) -> Errors:
        """Errors as `probe/<name>` (class token), `probe/<features>/<name>`, `probe/mean_pose/..`
        and `probe/knn<k>/..`; 3D ones where both sets have 3D joints."""
        train = self._embed_set(task, self.train_set, run.device)
        test = self._embed_set(task, self.test_set, run.device)
        results = {"mean_pose": mean_pose(train.poses, test.poses)}
        for name in self.features:
            if name in train.features:
                x, z = train.features[name], test.features[name]
                results[name] = joint_probe(x, train.poses, z, test.poses)
        if self.neighbours:
            results |= self._retrieval(train, test)
        log.info("step %d: probe, 2D error %s", info.step, _summary(results))
        scalars = {"features/cls_rank": float(effective_rank(test.features["cls"]))}
        for name, errors in results.items():
            prefix = "probe" if name == "cls" else f"probe/{name}"
            scalars |= {f"{prefix}/{key}": value for key, value in errors.items()}
        return scalars

    def _retrieval(self, train: LabelledFeatures, test: LabelledFeatures) -> dict[str, Errors]:
        order = nearest(test.features["cls"], train.features["cls"], max(self.neighbours))
        results = {}
        for k in self.neighbours:
            errors = neighbour_errors(order[:, :k], train.poses, test.poses)
            if train.classes is not None and test.classes is not None:
                classes = train.classes, test.classes
                errors["class_accuracy"] = class_accuracy(order[:, :k], *classes)
            results[f"knn{k}"] = errors
        return results

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


def _summary(results: dict[str, Errors]) -> str:
    """2D error in per cent of the crop and, in 3D, PA-MPJPE."""
    texts = {name: f"{name} {errors['err2d_percent']:.2f} %" for name, errors in results.items()}
    for name, errors in results.items():
        if "pa_mpjpe_mm" in errors:
            texts[name] += f" ({errors['pa_mpjpe_mm']:.1f} mm)"
    return ", ".join(texts.values())
