"""Closed-form probes of frozen features: what is linearly readable, without training anything."""

import torch
from torch import Tensor

from handmim.geometry.align import similarity_align
from handmim.metrics.pose import crop_share_errors, point_errors_m

LAMBDAS = tuple(10.0 ** (k / 2) for k in range(9))  # 1 .. 1e4


def ridge_probe(
    train_x: Tensor, train_y: Tensor, test_x: Tensor, holdout: float = 0.2
) -> tuple[Tensor, float]:
    """Ridge regression; the penalty is chosen on the last `holdout` of the training samples.

    Features are standardised by the training set. One eigendecomposition serves all penalties;
    float64.

    Args:
        train_x: [n, D] features.
        train_y: [n, C] targets.
        test_x: [m, D].
        holdout: share of the training set that picks the penalty.
    Returns: [m, C] predictions and the chosen penalty.
    Raises: ValueError for fewer than 10 training samples.
    """
    if len(train_x) < 10 or len(train_x) != len(train_y):
        raise ValueError(
            f"need >= 10 matching samples, got {len(train_x)} and {len(train_y)} (probe)"
        )
    x, y, z = train_x.double(), train_y.double(), test_x.double()
    mean, std = x.mean(dim=0), x.std(dim=0) + 1e-8
    x, z = (x - mean) / std, (z - mean) / std

    def solve(a: Tensor, b: Tensor, lambdas: tuple[float, ...]) -> list[tuple[Tensor, Tensor]]:
        a_mean, b_mean = a.mean(dim=0), b.mean(dim=0)
        values, vectors = torch.linalg.eigh((a - a_mean).T @ (a - a_mean))
        rotated = vectors.T @ ((a - a_mean).T @ (b - b_mean))
        out = []
        for penalty in lambdas:
            weight = vectors @ (rotated / (values.clamp(min=0) + penalty)[:, None])
            out.append((weight, b_mean - a_mean @ weight))
        return out

    cut = len(x) - max(1, round(holdout * len(x)))
    errors = [
        float((x[cut:] @ weight + bias - y[cut:]).square().mean())
        for weight, bias in solve(x[:cut], y[:cut], LAMBDAS)
    ]
    best = LAMBDAS[min(range(len(errors)), key=errors.__getitem__)]
    weight, bias = solve(x, y, (best,))[0]
    return z @ weight + bias, best


def joint_probe(
    train_x: Tensor,
    train_kp2d_ndc: Tensor,
    train_joints_m: Tensor | None,
    test_x: Tensor,
    test_kp2d_ndc: Tensor,
    test_joints_m: Tensor | None,
) -> dict[str, float]:
    """Ridge probe from features to 2D and root-relative 3D joints.

    Args:
        train_x, test_x: [n, D] and [m, D] features.
        train_kp2d_ndc, test_kp2d_ndc: [n, 21, 2] and [m, 21, 2] crop ndc.
        train_joints_m, test_joints_m: [n, 21, 3] and [m, 21, 3] relative to the root, metres; None
            for 2D only.
    Returns: err2d_percent (mean 2D error in per cent of the crop's side), pck10 (share of 2D errors
        under 10 % of the side), mpjpe_mm, pa_mpjpe_mm.
    """
    kp2d, _ = ridge_probe(train_x, train_kp2d_ndc.flatten(1), test_x)
    err2d = crop_share_errors(kp2d.unflatten(1, (-1, 2)), test_kp2d_ndc.double())
    figures = {
        "err2d_percent": float(err2d.mean()) * 100,
        "pck10": float((err2d < 0.1).double().mean()),
    }
    if train_joints_m is None or test_joints_m is None:
        return figures
    flat, _ = ridge_probe(train_x, train_joints_m.flatten(1), test_x)
    joints, truth = flat.unflatten(1, (-1, 3)), test_joints_m.double()
    aligned = similarity_align(joints, truth)
    return figures | {
        "mpjpe_mm": float(point_errors_m(joints, truth).mean()) * 1e3,
        "pa_mpjpe_mm": float(point_errors_m(aligned, truth).mean()) * 1e3,
    }
