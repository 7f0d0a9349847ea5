"""Probes of frozen features during pretraining: errors of the hand's pose, in millimetres."""

import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Subset

from handmim.data.augment import HandAugment
from handmim.data.loader import batches
from handmim.diagnostics.images import draw_images_with_points, draw_neighbours
from handmim.diagnostics.readout import (
    MIN_TRAIN,
    Poses,
    class_accuracy,
    joint_probe,
    mean_pose,
    nearest,
    neighbour_errors,
)
from handmim.diagnostics.statistics import effective_rank
from handmim.hand.skeleton import ROOT_JOINT
from handmim.types import HandSample, StepInfo
from handmim.utils.run import Run

log = logging.getLogger(__name__)

FEATURES = ("cls", "cls_patch", "points")
MIN_TEST = 1
NUM_QUERIES, NUM_SEARCHED, NUM_NEIGHBOURS = 6, 500, 5  # of the images shown


class LabelledFeatures(NamedTuple):
    """Frozen features of a labelled set, and its labels."""

    features: dict[str, Tensor]  # [n, D] by name of FEATURES
    poses: Poses
    classes: Tensor | None  # [n] int64, where the classes of all are known


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


class ProbeHook:
    """Hook that reads poses out of frozen features in closed form, on a small labelled split.

    Ridge regression predicts 2D and 3D joints from each kind of features: `cls` the class token,
    `cls_patch` class token and mean patch token, `points` the pseudo-keypoints' coordinates alone.
    Nearest neighbours by class token give a mean pose, and classes where a dataset knows them
    (`class_of(index)`). The mean pose of the train set is scored for comparison.

    Args:
        train_set, test_set: labelled crops; split so that the train set holds nothing of the test
            set.
        augment: its evaluation crop is used.
        every: steps between probes.
        batch_size: samples at a time.
        features: of `FEATURES`; points only where the task has them.
        neighbours: numbers of nearest neighbours; none leaves retrieval out.
    Raises: ValueError for unknown features and numbers of neighbours below 1.
    """

    at_start = True

    def __init__(
        self,
        train_set: Dataset[HandSample],
        test_set: Dataset[HandSample],
        augment: HandAugment,
        every: int | None = None,
        batch_size: int = 128,
        features: Sequence[str] = FEATURES,
        neighbours: Sequence[int] = (1, 10),
    ) -> None:
        unknown = sorted(set(features) - set(FEATURES))
        if unknown or not features:
            raise ValueError(f"features must be some of {FEATURES}, got {unknown}")
        if any(number < 1 for number in neighbours):
            raise ValueError(f"neighbours must be whole numbers >= 1, got {list(neighbours)}")
        self.every, self.batch_size = every, batch_size
        self.augment = augment
        self.train_set, self.test_set = train_set, test_set
        self.features, self.neighbours = tuple(features), tuple(neighbours)
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
        """Features and labels of all samples with 21 joints in 2D; 3D joints where all of those
        have them."""
        embedded: dict[str, list[Tensor]] = {}
        kp2d, joints, kept, total, all_3d = [], [], [], 0, True
        for hands in whole_hands(dataset, self.augment, self.batch_size, device):
            kept.append(hands.is_whole.nonzero().squeeze(1).cpu() + total)
            total += len(hands.is_whole)
            all_3d &= hands.all_3d
            for name, x in self._embed(task, hands.image).items():
                embedded.setdefault(name, []).append(x)
            kp2d.append(hands.kp2d_crop_ndc.cpu())
            joints.append(hands.joints_root_m.cpu())
        indices = torch.cat(kept)
        if len(indices) < total and dataset not in self._reported:
            log.info("probe: %d of %d samples have all 21 joints in 2D", len(indices), total)
            self._reported.append(dataset)
        required = MIN_TRAIN if dataset is self.train_set else MIN_TEST
        if len(indices) < required:
            raise ValueError(
                f"only {len(indices)} of {total} samples have all 21 joints in 2D, the probe needs "
                f"{required}"
            )
        poses = Poses(torch.cat(kp2d), torch.cat(joints) if all_3d else None)
        features = {name: torch.cat(parts) for name, parts in embedded.items()}
        return LabelledFeatures(features, poses, self._classes(dataset, indices))

    @staticmethod
    def _classes(dataset: Any, indices: Tensor) -> Tensor | None:
        class_of = getattr(dataset, "class_of", None)
        if class_of is None:
            return None
        found = [class_of(i) for i in indices.tolist()]
        return None if None in found else torch.tensor(found)

    def __call__(self, task: Any, info: StepInfo, run: Run) -> dict[str, float]:
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
        log.info("step %d: probe, 2D error %s", info.step, self._summary(results))
        scalars = {
            f"probe/{key}" if name == "cls" else f"probe/{name}/{key}": value
            for name, errors in results.items()
            for key, value in errors.items()
        }
        return scalars | {"features/cls_rank": float(effective_rank(test.features["cls"]))}

    @staticmethod
    def _summary(results: dict[str, dict[str, float]]) -> str:
        """2D error in per cent of the crop and, in 3D, PA-MPJPE."""
        parts = []
        for name, errors in results.items():
            aligned = errors.get("pa_mpjpe_mm")
            in_3d = "" if aligned is None else f" ({aligned:.1f} mm)"
            parts.append(f"{name} {errors['err2d_percent']:.2f} %{in_3d}")
        return ", ".join(parts)

    def _retrieval(
        self, train: LabelledFeatures, test: LabelledFeatures
    ) -> dict[str, dict[str, float]]:
        order = nearest(test.features["cls"], train.features["cls"], max(self.neighbours))
        results = {}
        for k in self.neighbours:
            errors = neighbour_errors(order[:, :k], train.poses, test.poses)
            if train.classes is not None and test.classes is not None:
                accuracy = class_accuracy(order[:, :k], train.classes, test.classes)
                errors["class_accuracy"] = accuracy
            results[f"knn{k}"] = errors
        return results

    @torch.no_grad()
    def images(self, task: Any, run: Run) -> dict[str, NDArray[np.uint8]]:
        """`probe_neighbours`: test crops and the train crops nearest by class token;
        `probe_keypoints`: their pseudo-keypoints, where the task has them."""
        query = self._crops(self.test_set, NUM_QUERIES, run.device)
        base = self._crops(self.train_set, NUM_SEARCHED, run.device)
        tokens = task.features(query)
        parts = [task.features(chunk).cls for chunk in base.split(self.batch_size)]
        k = min(NUM_NEIGHBOURS, len(base))
        order = nearest(tokens.cls, torch.cat(parts), k).cpu()
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
