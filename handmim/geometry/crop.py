"""Maps of the plane: affine ones, and smooth warps on top of affine views.

`a_from_b` maps b-points to a: [..., 2, 3], y = A[:, :2] x + A[:, 2]. Products are written out:
autocast would lower matmul to bf16, 1e-2 ndc instead of 1e-7. A warp moves a point p to p + d(p);
d is a uniform cubic B-spline over c x c control values on [-1, 1]^2, repeated beyond the border.
"""

import torch
from torch import Tensor

# Steepest field that `bounded` lets through: p -> p + d(p) then is one-to-one, and q - d(p) a
# contraction in p that halves its error about every seventh step at worst.
STEEPEST = 0.9
ITERATIONS = 6  # of the contraction; the Newton steps that follow square what is left
NEWTON_STEPS = 3


def similarity(
    scale: Tensor, angle_rad: Tensor, shift: Tensor, aspect: Tensor | None = None
) -> Tensor:
    """A = [ s R(angle) diag(1, aspect) | shift ], [..., 2, 3], of [...], [...], [..., 2], [...]."""
    cos, sin = scale * angle_rad.cos(), scale * angle_rad.sin()
    linear = torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))
    if aspect is not None:
        linear = torch.stack([linear[..., 0], linear[..., 1] * aspect[..., None]], dim=-1)
    return torch.cat([linear, shift.unsqueeze(-1)], dim=-1)


def _product(a: Tensor, b: Tensor) -> Tensor:
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


def _precise(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _spline(t: Tensor, c: int, slopes: bool = False) -> Tensor:
    """Weights [..., c] of control values along an axis at t [...], or their slopes."""
    nodes = torch.arange(-2, c + 2, device=t.device, dtype=t.dtype)
    s = ((t + 1) * ((c - 1) / 2)).clamp(-1, c).unsqueeze(-1) - nodes
    far, near = (2 - s.abs()).clamp(min=0), (1 - s.abs()).clamp(min=0)
    if slopes:
        at_nodes = s.sign() * (2 * near**2 - far**2 / 2) * ((c - 1) / 2)
    else:
        at_nodes = (far**3 - 4 * near**3) / 6
    first = at_nodes[..., :3].sum(dim=-1, keepdim=True)
    last = at_nodes[..., -3:].sum(dim=-1, keepdim=True)
    return torch.cat([first, at_nodes[..., 3:-3], last], dim=-1)


def _blend(control: Tensor, along_x: Tensor, along_y: Tensor) -> Tensor:
    rows = (control.unsqueeze(-4) * along_x[..., None, None, :]).sum(dim=-1)
    return (rows * along_y.unsqueeze(-2)).sum(dim=-1)


def displacement(points: Tensor, control: Tensor) -> Tensor:
    """The field at points [..., P, 2] of control values [..., 2, c, c], x then y, rows downwards:
    [..., P, 2], all in ndc, at least fp32; differentiable in both."""
    points, control = _precise(points), _precise(control)
    c = control.shape[-1]
    return _blend(control, _spline(points[..., 0], c), _spline(points[..., 1], c))


def bounded(control: Tensor) -> Tensor:
    """Scale fields [..., 2, c, c] down to `STEEPEST`, by the sum over both axes of the largest
    difference of neighbours per node spacing, which bounds |d(p) - d(q)| / |p - q|."""
    per_ndc = (control.shape[-1] - 1) / 2
    across = control.diff(dim=-1).abs().flatten(-2).amax(dim=-1)
    down = control.diff(dim=-2).abs().flatten(-2).amax(dim=-1)
    bound = ((across + down) * per_ndc).amax(dim=-1)
    return control * (STEEPEST / bound.clamp(min=STEEPEST))[..., None, None, None]


def pixels_in_source(
    source_from_view: Tensor, side_px: int, control: Tensor | None = None
) -> Tensor:
    """`to_source` of all pixel centres of square views: [..., S, S, 2] ndc for `grid_sample`."""
    A = _precise(source_from_view)
    t = (torch.arange(side_px, device=A.device, dtype=A.dtype) + 0.5) * (2 / side_px) - 1
    x, y, offset = (A[..., column, None] for column in range(3))
    grid = (t * y + offset)[..., :, None] + (t * x)[..., None, :]  # [..., 2, S, S]
    if control is not None:
        # The field is linear in its control values: rotated into the source's frame first, it only
        # has to be added. Node by node, for a sum over an axis of its own would hold c fields.
        control = _precise(control).unsqueeze(-4)
        control = (A[..., :2, None, None] * control).sum(dim=-3)
        weights = _spline(t, control.shape[-1])  # [S, c], of rows and of columns alike
        rows = (control.unsqueeze(-2) * weights).sum(dim=-1)  # [..., 2, c, S]
        for node in range(control.shape[-1]):
            grid.addcmul_(weights[:, node, None], rows[..., node, None, :])
    return grid.movedim(-3, -1)


def unwarp(points: Tensor, control: Tensor) -> Tensor:
    """The p [..., P, 2] with p + d(p) = q, for `bounded` fields. The last step alone carries
    gradients: by the implicit function theorem those of the exact inverse."""
    q, control = _precise(points), _precise(control)
    with torch.no_grad():
        p = q.detach()
        for _ in range(ITERATIONS):
            p = q - displacement(p, control)
        for _ in range(NEWTON_STEPS - 1):
            p = _newton_step(p, q, control)
    return _newton_step(p, q, control)


def _newton_step(p: Tensor, q: Tensor, control: Tensor) -> Tensor:
    c, fixed = control.shape[-1], control.detach()
    along_x, along_y = _spline(p[..., 0], c), _spline(p[..., 1], c)
    by_x = _blend(fixed, _spline(p[..., 0], c, slopes=True), along_y)
    by_y = _blend(fixed, along_x, _spline(p[..., 1], c, slopes=True))
    residual = p + _blend(control, along_x, along_y) - q
    jacobian = torch.stack([by_x, by_y, torch.zeros_like(p)], dim=-1)
    jacobian = jacobian + torch.eye(2, 3, device=p.device, dtype=p.dtype)
    return p - transform_points(invert(jacobian), residual.unsqueeze(-2)).squeeze(-2)


def scale_of(maps: Tensor) -> Tensor:
    """Root of |det| of the linear part of maps: [..., 2, 2 or 3] -> [...]."""
    return (maps[..., 0, 0] * maps[..., 1, 1] - maps[..., 0, 1] * maps[..., 1, 0]).abs().sqrt()


def _map_and_scale(source_from_view: Tensor, with_scale: bool) -> tuple[Tensor, Tensor]:
    A = _precise(source_from_view)
    scale = scale_of(A)
    if with_scale:
        return A, scale
    return torch.cat([A[..., :2] / scale[..., None, None], A[..., 2:]], dim=-1), scale / scale


def to_source(
    points: Tensor, source_from_view: Tensor, control: Tensor | None = None, with_scale: bool = True
) -> Tensor:
    """Carry points [..., K, d] of views to the source crop that the views of a sample share, at
    least in fp32: d = 2, or 3 with a relative depth, which scales with the view. `with_scale=False`
    leaves that scale out of the map."""
    points = _precise(points)
    A, scale = _map_and_scale(source_from_view, with_scale)
    xy = points[..., :2]
    if control is not None:
        xy = xy + displacement(xy, control)
    xy = transform_points(A, xy)
    return torch.cat([xy, points[..., 2:] * scale[..., None, None]], dim=-1)


def from_source(
    points: Tensor, source_from_view: Tensor, control: Tensor | None = None, with_scale: bool = True
) -> Tensor:
    """The inverse of `to_source`, same arguments; of warps that `unwarp` can undo."""
    points = _precise(points)
    A, scale = _map_and_scale(source_from_view, with_scale)
    xy = transform_points(invert(A), points[..., :2])
    if control is not None:
        xy = unwarp(xy, control)
    return torch.cat([xy, points[..., 2:] / scale[..., None, None]], dim=-1)
