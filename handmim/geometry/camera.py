"""Projection: pinhole, weak perspective, pixels and ndc. No crops, no hands.

Pixel coordinates put the image on [0, size]^2 (the centre of the first pixel is 0.5), ndc on [-1,
1]^2.
"""

import torch
from torch import Tensor


def project(points_cam_m: Tensor, K_px: Tensor) -> Tensor:
    """Pinhole projection.

    Args:
        points_cam_m: [..., P, 3] camera frame (x right, y down, z forward), metres, z > 0.
        K_px: [..., 3, 3] intrinsics.
    Returns: [..., P, 2] pixels.
    """
    homogeneous = points_cam_m @ K_px.transpose(-1, -2)
    return homogeneous[..., :2] / homogeneous[..., 2:]


def ndc_from_px(points_px: Tensor, size_px: int) -> Tensor:
    """Pixels of a square image of `size_px` to [-1, 1]^2; any shape."""
    return points_px * (2.0 / size_px) - 1.0


def cell_centres_ndc(num: int, device: torch.device | None = None) -> Tensor:
    """[num] ndc of the centres of `num` equal cells along a side: pixels, patches."""
    return ndc_from_px(torch.arange(num, device=device) + 0.5, num)


def px_from_ndc(points_ndc: Tensor, size_px: int) -> Tensor:
    """[-1, 1]^2 to pixels of a square image of `size_px`; any shape."""
    return (points_ndc + 1.0) * (size_px / 2.0)


def project_weak(points_root_m: Tensor, cam: Tensor, scale0_per_m: float) -> Tensor:
    """Weak perspective with a positive scale.

    Args:
        points_root_m: [B, P, 3] camera axes, root joint at the origin.
        cam: [B, 3] (log(s / s0), tx_m, ty_m).
        scale0_per_m: s0, ndc units per metre at cam[0] = 0.
    Returns: [B, P, 2] ndc, x = s (X + tx), y = s (Y + ty).
    """
    scale = scale0_per_m * cam[:, None, :1].exp()
    return scale * (points_root_m[..., :2] + cam[:, None, 1:])


def fit_weak(points_root_m: Tensor, points_ndc: Tensor, scale0_per_m: float) -> Tensor:
    """Least-squares weak-perspective camera for known points.

    Args:
        points_root_m: [B, P, 3] camera axes, root joint at the origin.
        points_ndc: [B, P, 2] where they are seen.
        scale0_per_m: s0 of the returned parametrisation.
    Returns: [B, 3] (log(s / s0), tx_m, ty_m); the scale is floored at 1e-3 s0.
    """
    xy = points_root_m[..., :2]
    mean_xy, mean_ndc = xy.mean(dim=-2, keepdim=True), points_ndc.mean(dim=-2, keepdim=True)
    spread = ((xy - mean_xy) ** 2).sum(dim=(-1, -2)).clamp(min=1e-12)
    scale = ((xy - mean_xy) * (points_ndc - mean_ndc)).sum(dim=(-1, -2)) / spread
    scale = scale.clamp(min=1e-3 * scale0_per_m)
    shift_m = (mean_ndc / scale[..., None, None] - mean_xy).squeeze(-2)
    return torch.cat([(scale / scale0_per_m).log().unsqueeze(-1), shift_m], dim=-1)


def solve_translation(points_root_m: Tensor, points_px: Tensor, K_px: Tensor) -> Tensor:
    """Translation of a known shape before a pinhole camera, given its points in the image.

    Linear least squares: every point requires fx (X + Tx) + skew (Y + Ty) = (u - cx)(Z + Tz) and
    likewise for v. Exact for points that are true projections; for a weak-perspective estimate it
    is the pinhole camera nearest to it.

    Args:
        points_root_m: [B, P, 3] camera axes, any origin, P >= 2.
        points_px: [B, P, 2] where they are seen.
        K_px: [B, 3, 3].
    Returns: [B, 3] metres, to be added to the points; float64 inside.
    """
    dtype = points_root_m.dtype
    points, seen, K = points_root_m.double(), points_px.double(), K_px.double()
    rays = seen - K[:, None, :2, 2]  # [B, P, 2]
    b, p = points.shape[:2]
    rows = torch.zeros(b, p, 2, 3, dtype=torch.float64, device=points.device)
    rows[..., :2] = K[:, None, :2, :2]
    rows[..., 2] = -rays
    known = rays * points[..., 2:] - (K[:, None, :2, :2] @ points[..., :2, None]).squeeze(-1)
    solution = torch.linalg.lstsq(rows.flatten(1, 2), known.flatten(1).unsqueeze(-1)).solution
    return solution.squeeze(-1).to(dtype)
