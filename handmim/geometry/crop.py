"""2D affine maps: composing, inverting, carrying points. `a_from_b` maps b-points to a. No pixels.

An affine map is [..., 2, 3]: y = A[:, :2] x + A[:, 2]. Products are written out instead of using
matmul, which autocast would lower to bf16: 1e-2 ndc instead of 1e-7.
"""

import torch
from torch import Tensor


def similarity(
    scale: Tensor, angle_rad: Tensor, shift: Tensor, aspect: Tensor | None = None
) -> Tensor:
    """A = [ s R(angle) diag(1, aspect) | shift ].

    Args:
        scale, angle_rad: [...].
        shift: [..., 2].
        aspect: [...] stretch of the second axis before rotating; None for a pure similarity.
    Returns: [..., 2, 3].
    """
    cos, sin = scale * angle_rad.cos(), scale * angle_rad.sin()
    linear = torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))
    if aspect is not None:
        linear = torch.stack([linear[..., 0], linear[..., 1] * aspect[..., None]], dim=-1)
    return torch.cat([linear, shift.unsqueeze(-1)], dim=-1)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """[..., 2, 2] times [..., 2, n], in the precision of its inputs."""
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(dim=-2)


def compose(a_from_b: Tensor, b_from_c: Tensor) -> Tensor:
    """a_from_c, [..., 2, 3] each."""
    linear = _product(a_from_b[..., :2], b_from_c[..., :2])
    offset = _product(a_from_b[..., :2], b_from_c[..., 2:]) + a_from_b[..., 2:]
    return torch.cat([linear, offset], dim=-1)


def invert(a_from_b: Tensor) -> Tensor:
    """b_from_a, [..., 2, 3]; closed form, so it also runs where linalg has no kernel."""
    a, b = a_from_b[..., 0, 0], a_from_b[..., 0, 1]
    c, d = a_from_b[..., 1, 0], a_from_b[..., 1, 1]
    adjugate = torch.stack([d, -b, -c, a], dim=-1).unflatten(-1, (2, 2))
    linear = adjugate / (a * d - b * c)[..., None, None]
    return torch.cat([linear, -_product(linear, a_from_b[..., 2:])], dim=-1)


def transform_points(a_from_b: Tensor, points_b: Tensor) -> Tensor:
    """Carry [..., P, 2] points of b to a by [..., 2, 3]."""
    linear, offset = a_from_b[..., :2].unsqueeze(-3), a_from_b[..., 2].unsqueeze(-2)
    return (linear * points_b.unsqueeze(-2)).sum(dim=-1) + offset


def homogeneous(a_from_b: Tensor) -> Tensor:
    """[..., 2, 3] -> [..., 3, 3] with last row (0, 0, 1)."""
    last = a_from_b.new_tensor([0.0, 0.0, 1.0]).expand(*a_from_b.shape[:-2], 1, 3)
    return torch.cat([a_from_b, last], dim=-2)


def px_from_px(a_ndc_from_b_ndc: Tensor, a_size_px: int, b_size_px: int) -> Tensor:
    """The same map between pixel coordinates of two square images: [..., 2, 3] -> [..., 2, 3]."""
    linear = a_ndc_from_b_ndc[..., :2] * (a_size_px / b_size_px)
    # a_px = (A (2 b_px / Sb - 1) + t + 1) Sa / 2
    centre = a_ndc_from_b_ndc[..., 2:] + 1.0 - a_ndc_from_b_ndc[..., :2].sum(dim=-1, keepdim=True)
    return torch.cat([linear, centre * (a_size_px / 2.0)], dim=-1)
