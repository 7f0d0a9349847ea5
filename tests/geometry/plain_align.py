"""The alignment of the official evaluators, in plain tensor operations."""

import torch
from torch import Tensor


def plain_align(src: Tensor, dst: Tensor, allow_reflection: bool = True) -> Tensor:
    """`similarity_align` by tensor operations."""
    mean_src, mean_dst = src.mean(dim=1, keepdim=True), dst.mean(dim=1, keepdim=True)
    a, b = src - mean_src, dst - mean_dst
    norms = torch.stack([a.flatten(1).norm(dim=1), b.flatten(1).norm(dim=1)])
    norm_a, norm_b = norms[..., None, None] + 1e-8
    u, s, vt = torch.linalg.svd((b.transpose(1, 2) @ a) / norm_a / norm_b)
    if not allow_reflection:
        sign = torch.det(u @ vt).sign()
        flip = torch.ones_like(s)
        flip[:, 2] = torch.where(sign == 0, torch.ones_like(sign), sign)
        u, s = u * flip.unsqueeze(1), s * flip
    dst_from_src = (u @ vt) * s.sum(dim=1)[:, None, None] * (norm_b / norm_a)
    return torch.baddbmm(mean_dst, a, dst_from_src.transpose(1, 2))
