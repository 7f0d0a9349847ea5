"""Rotation maps over roma, in radians, with one documented 6D layout."""

from typing import Any

import roma
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def axis_angle_to_matrix(axis_angle_rad: Tensor) -> Tensor:
    """Rotation vectors to matrices, [..., 3] -> [..., 3, 3]: differentiable once, at zero too, and
    several times faster than roma's."""
    return _Rodrigues.apply(axis_angle_rad)


class _Rodrigues(torch.autograd.Function):
    """R = I + a [r] + b [r]^2 with a = sin(t) / t, b = (1 - cos t) / t^2 and t = |r|."""

    @staticmethod
    def forward(ctx: Any, r: Tensor) -> Tensor:
        angle = torch.linalg.vector_norm(r, dim=-1, keepdim=True).clamp_min_(1e-6)
        half = angle * 0.5
        sinc = half.sin().div_(half)
        a, b = half.cos().mul_(sinc), sinc.square().mul_(0.5)  # exact where 1 - cos t is not
        eye = torch.eye(3, dtype=r.dtype, device=r.device)
        first = torch.linalg.cross(r.unsqueeze(-1), eye.expand(*r.shape, 3), dim=-2)
        second = torch.linalg.cross(r.unsqueeze(-1), first, dim=-2)
        R = torch.addcmul(eye, a.unsqueeze(-1), first).addcmul_(b.unsqueeze(-1), second)
        ctx.save_for_backward(r, R, b, (1 - a).div_(angle.square_()))
        return R

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        r, R, b, c = ctx.saved_tensors
        # Gradient of a small further rotation dw, then dw = (I + b [r] + c [r]^2) dr.
        by_rotation = torch.linalg.cross(R, grad, dim=-2).sum(dim=-1)
        once = torch.linalg.cross(r, by_rotation, dim=-1)
        twice = torch.linalg.cross(r, once, dim=-1)
        return torch.addcmul(by_rotation, b, once, value=-1).addcmul_(c, twice)


def matrix_to_rot6d(rotmat: Tensor) -> Tensor:
    """First two columns, one after the other (Zhou et al. 2019, arXiv 1812.07035): [..., 3, 3] ->
    [..., 6] = (R00 R10 R20 R01 R11 R21). Some codes lay them out row by row."""
    return rotmat[..., :, :2].transpose(-1, -2).flatten(-2)


def rot6d_to_matrix(rot6d: Tensor) -> Tensor:
    """Gram-Schmidt on the two columns of `matrix_to_rot6d`, in fp32: [..., 6] -> [..., 3, 3]."""
    columns = rot6d.float() if rot6d.dtype in (torch.float16, torch.bfloat16) else rot6d
    return roma.special_gramschmidt(columns.unflatten(-1, (2, 3)).transpose(-1, -2))


def chordal_mean(rotmats: Tensor) -> Tensor:
    """The rotation nearest to the arithmetic mean: [n, ..., 3, 3] -> [..., 3, 3]."""
    return roma.special_procrustes(rotmats.mean(dim=0))


def nearest_rotation(src: Tensor, dst: Tensor) -> Tensor:
    """Proper rotations that bring centred points nearest to others: two [B, P, 3] -> [B, 3, 3]."""
    return roma.rigid_points_registration(src, dst)[0]


def rotation_from_view(src: Tensor, seen: Tensor) -> Tensor:
    """Rotations [B, 3, 3], z away from the camera, of points [B, P, 3], not all in one plane, that
    are seen at [B, P, 2]: the least-squares 2 x 3 map, brought to the nearest orthonormal rows."""
    a, b = src - src.mean(dim=1, keepdim=True), seen - seen.mean(dim=1, keepdim=True)
    rows = torch.linalg.lstsq(a, b).solution.transpose(1, 2)  # [B, 2, 3]
    u, _, vt = torch.linalg.svd(rows, full_matrices=False)
    pair = u @ vt
    return torch.cat([pair, torch.linalg.cross(pair[:, 0], pair[:, 1])[:, None]], dim=1)


def rotation_about_z(angle_rad: Tensor) -> Tensor:
    """Rotation about the optical axis, x towards y: [...] radians -> [..., 3, 3]."""
    cos, sin = angle_rad.cos(), angle_rad.sin()
    zero, one = torch.zeros_like(cos), torch.ones_like(cos)
    rows = torch.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], dim=-1)
    return rows.unflatten(-1, (3, 3))
