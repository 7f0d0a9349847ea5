"""How sure the figures are, and which joints they come from."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from handmim.benchmarks.official import Points, as_pair
from handmim.geometry.align import similarity_align
from handmim.metrics.pose import point_errors_m


def bootstrap_intervals(
    per_sample: Mapping[str, NDArray[np.floating]],
    num: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> dict[str, tuple[float, float]]:
    """Percentile intervals of means under drawing the samples again.

    Every official figure is a mean over samples, so one draw of samples serves all of them: how
    often each sample was drawn, times the table of values. Samples are taken as independent;
    frames of one video are not, and their true intervals are wider.

    Args:
        per_sample: [n] values by name, as `Benchmark.per_sample_scores` gives them.
        num: draws.
        level: share of the draws inside the interval.
        seed: of the draws.
    Returns: lowest and highest value by name, in the values' units.
    Raises: ValueError for no or unequally many samples, values that are not finite, num < 1 or a
        level outside (0, 1).
    """
    if num < 1 or not 0 < level < 1:
        raise ValueError(f"want num >= 1 and 0 < level < 1, got num={num} and level={level}")
    lengths = {name: np.shape(values) for name, values in per_sample.items()}
    if len(set(lengths.values())) != 1 or any(len(s) != 1 or s[0] < 1 for s in lengths.values()):
        raise ValueError(f"want one value per sample and at least one sample, got {lengths}")
    table = np.stack([np.asarray(v, np.float64) for v in per_sample.values()], axis=1)  # [n, k]
    if not np.isfinite(table).all():
        bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
        raise ValueError(f"values are not finite in samples {bad[:5].tolist()} of {len(table)}")
    rng, n = np.random.default_rng(seed), len(table)
    means = np.empty((num, table.shape[1]))
    for i in range(num):
        means[i] = np.bincount(rng.integers(n, size=n), minlength=n) @ table / n
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2], axis=0)
    return {name: (float(low[k]), float(high[k])) for k, name in enumerate(per_sample)}


def per_joint_mm(
    pred_joints_m: Points, gt_joints_m: Points, joint_names: Sequence[str]
) -> dict[str, dict[str, float]]:
    """Mean error of every joint in millimetres.

    Args:
        pred_joints_m, gt_joints_m: [n, J, 3] metres, same order and axes.
        joint_names: J names in that order, as `Benchmark.joint_names`.
    Returns: by joint name, `abs_mm` of absolute coordinates and `pa_mm` after similarity alignment
        of the sample; their means over joints are the official figures x 10.
    Raises: ValueError as `as_pair` does.
    """
    pair = as_pair("joints", pred_joints_m, gt_joints_m, len(joint_names))
    pred, gt = (torch.from_numpy(np.array(points, np.float64)) for points in pair)
    raw = point_errors_m(pred, gt).mean(dim=0) * 1e3
    aligned = point_errors_m(similarity_align(pred, gt), gt).mean(dim=0) * 1e3
    return {
        name: {"abs_mm": float(raw[i]), "pa_mm": float(aligned[i])}
        for i, name in enumerate(joint_names)
    }
