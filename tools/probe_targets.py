"""How much of a hand grey images and oriented gradients encode by themselves, to choose targets.

python tools/probe_targets.py data=synthetic probe=synthetic
python tools/probe_targets.py probe=keypoints probe.root=DIR probe.annotations=FILE.json

The first principal components of a target are the features of the probe that pretraining uses:
ridge regression to the joints.
"""

import torch
from omegaconf import DictConfig
from torch import Tensor

from handmim.diagnostics.probe import embedded, joint_probe, mean_pose
from handmim.objectives.experimental import low_resolution
from handmim.objectives.hog import oriented_gradients
from handmim.utils.config import build
from handmim.utils.console import print_metrics
from handmim.utils.entry import tool

TARGETS = {
    "grey 24 x 24": lambda image: low_resolution(image[:, None], 24).flatten(1),
    "oriented gradients, 6 x 6 cells": lambda image: oriented_gradients(image, 6).flatten(1),
}
COMPONENTS = (32, 64, 128)
COLUMNS = (("err2d_percent", "2D %"), ("mpjpe_mm", "MPJPE mm"), ("pa_mpjpe_mm", "PA-MPJPE mm"))


def targets_of(image: Tensor) -> dict[str, Tensor]:
    """[n, D] by name of the target."""
    return {name: target(image) for name, target in TARGETS.items()}


@tool("pretrain")
def main(cfg: DictConfig) -> None:
    """Print one row per target and number of components."""
    hook = cfg.probe.hook
    if hook is None:
        raise ValueError(
            "labelled crops are required, got probe.hook=null: probe=keypoints, or data=synthetic "
            "probe=synthetic"
        )
    how = build(hook.augment), 256, torch.device("cpu"), targets_of
    train, test = (embedded(build(part), *how) for part in (hook.train_set, hook.test_set))
    rows = {"mean pose": mean_pose(train.poses, test.poses)}
    for name in TARGETS:
        x, z = train.features[name], test.features[name]
        mean = x.mean(dim=0)
        basis = torch.linalg.svd(x - mean, full_matrices=False).Vh
        for num in COMPONENTS:
            features = [(part - mean) @ basis[:num].T for part in (x, z)]
            errors = joint_probe(features[0], train.poses, features[1], test.poses)
            rows[f"{name}, {num} numbers"] = errors
    print_metrics(rows, COLUMNS)


if __name__ == "__main__":
    main()
