"""Projection: pinhole, weak perspective, pixels and ndc, and the cells that a mesh covers.

Pixels put the image on [0, size]^2, the first pixel's centre at 0.5; ndc puts it on [-1, 1]^2.
"""

import torch
from torch import Tensor


def project(points_cam_m: Tensor, K_px: Tensor) -> Tensor:
    """Pinhole projection of [..., P, 3] (x right, y down, z forward, z > 0) by [..., 3, 3]:
    [..., P, 2] pixels."""
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
    """Weak perspective of [B, P, 3], root joint at the origin, by cam [B, 3] = (log(s / s0), tx_m,
    ty_m): [B, P, 2] ndc, x = s (X + tx), y = s (Y + ty)."""
    scale = scale0_per_m * cam[:, None, :1].exp()
    return scale * (points_root_m[..., :2] + cam[:, None, 1:])


def fit_weak(points_root_m: Tensor, points_ndc: Tensor, scale0_per_m: float) -> Tensor:
    """The least-squares `cam` of `project_weak`, [B, 3], for points seen at [B, P, 2]; its scale is
    at least 1e-3 s0."""
    xy = points_root_m[..., :2]
    mean_xy, mean_ndc = xy.mean(dim=-2, keepdim=True), points_ndc.mean(dim=-2, keepdim=True)
    spread = ((xy - mean_xy) ** 2).sum(dim=(-1, -2)).clamp(min=1e-12)
    scale = ((xy - mean_xy) * (points_ndc - mean_ndc)).sum(dim=(-1, -2)) / spread
    scale = scale.clamp(min=1e-3 * scale0_per_m)
    shift_m = (mean_ndc / scale[..., None, None] - mean_xy).squeeze(-2)
    return torch.cat([(scale / scale0_per_m).log().unsqueeze(-1), shift_m], dim=-1)


def solve_translation(points_root_m: Tensor, points_px: Tensor, K_px: Tensor) -> Tensor:
    """Translation [B, 3] of known points [B, P, 3], P >= 2, before a pinhole camera [B, 3, 3] that
    sees them at [B, P, 2]: linear least squares in float64."""
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


@torch.no_grad()
def covered_cells(
    points: Tensor, faces: Tensor, size_hw: tuple[int, int], is_shown: Tensor | None = None
) -> Tensor:
    """Cells [B, h, w] whose centre lies in any triangle, from either side; exact. Points [B, V, 2]
    are finite, in cells; triangles with a corner that is not shown [B, V] are left out."""
    h, w = size_hw
    corners = points.float()[:, faces]  # [B, F, 3, 2]
    low, high = corners[..., 1].aminmax(dim=-1)
    top = (low - 0.5).ceil().clamp(0, h).long()
    below = (high + 0.5).floor().clamp(0, h).long()
    if is_shown is not None:
        below = torch.where(is_shown[:, faces].all(dim=-1), below, top)
    # As many rows from the top of every triangle are tested; it meets no other.
    most = int((below - top).amax().clamp(min=0))
    rows = top[..., None] + torch.arange(most, device=points.device)
    y = rows + 0.5
    left = torch.full_like(y, torch.inf)
    right = -left
    for i, j in ((0, 1), (1, 2), (2, 0)):
        (x0, y0), (x1, y1) = (corners[..., c, :, None].unbind(-2) for c in (i, j))
        crosses = (y0 <= y) != (y1 <= y)  # half open: of three edges none or two
        at = x0 + (y - y0) * ((x1 - x0) / (y1 - y0))
        left = torch.where(crosses, torch.minimum(left, at), left)
        right = torch.where(crosses, torch.maximum(right, at), right)
    first = (left - 0.5).ceil().clamp(0, w).long()
    past = (right + 0.5).floor().clamp(0, w).long()
    meets = (past > first) & (rows < below[..., None])
    rows = rows.clamp(max=h - 1)
    start = torch.arange(len(points), device=points.device)[:, None, None] * h + rows
    change = torch.zeros(len(points) * h * (w + 1), dtype=torch.int32, device=points.device)
    step = meets.flatten().int()
    change.index_add_(0, (start * (w + 1) + first).flatten(), step)
    change.index_add_(0, (start * (w + 1) + past).flatten(), -step)
    return change.view(-1, h, w + 1)[..., :w].cumsum(dim=-1) > 0
