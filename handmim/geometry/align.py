"""Aligning point sets: similarity Procrustes and root alignment. No metrics."""

import torch
from torch import Tensor


def similarity_align(src: Tensor, dst: Tensor, allow_reflection: bool = True) -> Tensor:
    """Move `src` onto `dst` by the best scale, rotation and translation.

    Same definition as the FreiHAND and HO-3D evaluators: both sets are centred and divided by their
    Frobenius norm + 1e-8 (a collapsed prediction stays finite, at the centroid of the truth), the
    orthogonal Procrustes problem is solved, the scale is the sum of the singular values. The
    evaluators allow reflections; so does the default here.

    Args:
        src, dst: [B, P, 3] matching points, any unit, P >= 3.
        allow_reflection: False restricts to proper rotations (Umeyama 1991).
    Returns: [B, P, 3] `src` in the frame and unit of `dst`.
    Raises: ValueError for other shapes, or values that are not finite.
    """
    if src.shape != dst.shape or src.ndim != 3 or src.shape[-1] != 3 or src.shape[1] < 3:
        raise ValueError(
            f"want two [B, P, 3] with P >= 3, got {tuple(src.shape)} and {tuple(dst.shape)}"
        )
    mean_src, mean_dst = src.mean(dim=1, keepdim=True), dst.mean(dim=1, keepdim=True)
    a, b = src - mean_src, dst - mean_dst
    norm_a, norm_b = a.flatten(1).norm(dim=1), b.flatten(1).norm(dim=1)
    # One bad number spoils its sample's norm, so the points need no pass of their own.
    for name, norm in (("src", norm_a), ("dst", norm_b)):
        if not bool(norm.isfinite().all()):
            bad = (~norm.isfinite()).nonzero().flatten().tolist()
            raise ValueError(f"{name} is not finite in samples {bad[:5]} of {len(norm)}")
    norm_a, norm_b = (norm[:, None, None] + 1e-8 for norm in (norm_a, norm_b))
    # Norms and scale are applied to 3x3 matrices: passes over the points cost more than the rest.
    u, s, vt = torch.linalg.svd((b.transpose(1, 2) @ a) / norm_a / norm_b)
    if not allow_reflection:
        sign = torch.det(u @ vt).sign()
        flip = torch.ones_like(s)
        flip[:, 2] = torch.where(sign == 0, torch.ones_like(sign), sign)
        u, s = u * flip.unsqueeze(1), s * flip
    dst_from_src = (u @ vt) * s.sum(dim=1)[:, None, None] * (norm_b / norm_a)
    return torch.baddbmm(mean_dst, a, dst_from_src.transpose(1, 2))


def root_align(points_m: Tensor, joints_m: Tensor, root_joint: int) -> Tensor:
    """Points relative to one joint: [B, P, 3] and [B, J, 3] -> [B, P, 3]."""
    return points_m - joints_m[:, root_joint, None]
