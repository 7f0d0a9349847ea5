"""How much of a hand grey images and oriented gradients encode by themselves, to choose targets.

python tools/probe_targets.py data=synthetic probe=synthetic
python tools/probe_targets.py probe=keypoints probe.root=DIR probe.annotations=FILE.json

The first principal components of a target are the features of the probe that pretraining uses:
ridge regression to the joints.
"""

import torch
from omegaconf import DictConfig
from torch import Tensor
from torch.utils.data import Dataset

from handmim.data.augment import HandAugment
from handmim.diagnostics.probe import Poses, joint_probe, mean_pose, poses_of, whole_hands
from handmim.objectives.experimental import low_resolution
from handmim.objectives.hog import oriented_gradients
from handmim.types import HandSample
from handmim.utils.config import build
from handmim.utils.console import print_metrics
from handmim.utils.entry import tool

TARGETS = {
    "grey 24 x 24": lambda image: low_resolution(image[:, None], 24).flatten(1),
    "oriented gradients, 6 x 6 cells": lambda image: oriented_gradients(image, 6).flatten(1),
}
COMPONENTS = (32, 64, 128)
COLUMNS = (("err2d_percent", "2D %"), ("mpjpe_mm", "MPJPE mm"), ("pa_mpjpe_mm", "PA-MPJPE mm"))


def crops_and_poses(dataset: Dataset[HandSample], augment: HandAugment) -> tuple[Tensor, Poses]:
    """Images and joints of all samples that the probe would use."""
    parts = list(whole_hands(dataset, augment, 256))
    return torch.cat([p.image for p in parts]), poses_of(parts)


@tool("pretrain")
def main(cfg: DictConfig) -> None:
    """Print one row per target and number of components."""
    hook = cfg.probe.hook
    if hook is None:
        raise ValueError(
            "labelled crops are required, got probe=none: probe=keypoints, or data=synthetic "
            "probe=synthetic"
        )
    augment = build(hook.augment)
    train_image, train = crops_and_poses(build(hook.train_set), augment)
    test_image, test = crops_and_poses(build(hook.test_set), augment)
    rows = {"mean pose": mean_pose(train, test)}
    for name, target in TARGETS.items():
        x, z = target(train_image), target(test_image)
        mean = x.mean(dim=0)
        basis = torch.linalg.svd(x - mean, full_matrices=False).Vh
        for num in COMPONENTS:
            features = [(part - mean) @ basis[:num].T for part in (x, z)]
            rows[f"{name}, {num} numbers"] = joint_probe(features[0], train, features[1], test)
    print_metrics(rows, COLUMNS)


if __name__ == "__main__":
    main()
