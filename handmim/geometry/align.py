"""Aligning point sets: similarity Procrustes and root alignment. No metrics."""

import numpy as np
import torch
from torch import Tensor

from handmim.geometry.align_kernel import align_samples


def similarity_align(src: Tensor, dst: Tensor, allow_reflection: bool = True) -> Tensor:
    """Move `src` onto `dst` by the best scale, rotation and translation.

    Same definition as the FreiHAND and HO-3D evaluators: both sets are centred and divided by their
    Frobenius norm + 1e-8 (a collapsed prediction stays finite, at the centroid of the truth), the
    orthogonal Procrustes problem is solved, the scale is the sum of the singular values. The
    evaluators allow reflections; so does the default here.

    Compiled and in float64 inside for tensors on the CPU that want no gradient; others go by
    `tensor_similarity_align`, which says the same in torch.

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
    wants_grad = torch.is_grad_enabled() and (src.requires_grad or dst.requires_grad)
    if src.device.type != "cpu" or wants_grad:
        return tensor_similarity_align(src, dst, allow_reflection)
    a, b = (t.detach().double().contiguous().numpy() for t in (src, dst))
    aligned, norms = np.empty_like(a), np.empty((2, len(a)))
    align_samples(a, b, allow_reflection, aligned, norms)
    check_norms(torch.from_numpy(norms))
    return torch.from_numpy(aligned).to(src.dtype)


def tensor_similarity_align(src: Tensor, dst: Tensor, allow_reflection: bool = True) -> Tensor:
    """`similarity_align` by tensor operations, on any device and with gradients."""
    mean_src, mean_dst = src.mean(dim=1, keepdim=True), dst.mean(dim=1, keepdim=True)
    a, b = src - mean_src, dst - mean_dst
    norms = torch.stack([a.flatten(1).norm(dim=1), b.flatten(1).norm(dim=1)])
    check_norms(norms)
    norm_a, norm_b = norms[..., None, None] + 1e-8
    # Norms and scale are applied to 3x3 matrices: passes over the points cost more than the rest.
    u, s, vt = torch.linalg.svd((b.transpose(1, 2) @ a) / norm_a / norm_b)
    if not allow_reflection:
        sign = torch.det(u @ vt).sign()
        flip = torch.ones_like(s)
        flip[:, 2] = torch.where(sign == 0, torch.ones_like(sign), sign)
        u, s = u * flip.unsqueeze(1), s * flip
    dst_from_src = (u @ vt) * s.sum(dim=1)[:, None, None] * (norm_b / norm_a)
    return torch.baddbmm(mean_dst, a, dst_from_src.transpose(1, 2))


def check_norms(norms: Tensor) -> None:
    """Refuse samples with a number that is not finite; one bad number spoils its sample's norm, so
    the points need no pass of their own.

    Args:
        norms: [2, B] of the centred `src` and `dst`.
    Raises: ValueError naming the samples.
    """
    for name, norm in zip(("src", "dst"), norms, strict=True):
        if not bool(norm.isfinite().all()):
            bad = (~norm.isfinite()).nonzero().flatten().tolist()
            raise ValueError(f"{name} is not finite in samples {bad[:5]} of {len(norm)}")


def root_align(points_m: Tensor, joints_m: Tensor, root_joint: int) -> Tensor:
    """Points relative to one joint: [B, P, 3] and [B, J, 3] -> [B, P, 3]."""
    return points_m - joints_m[:, root_joint, None]
