"""Which cells of a grid a mesh covers, for a whole batch on any device."""

import torch
from torch import Tensor


def _cells_between(low: Tensor, high: Tensor, num: int) -> tuple[Tensor, Tensor]:
    """Of `num` cells along a side those whose centres lie in [low, high]: the first, and the one
    after the last."""
    return (low - 0.5).ceil().clamp(0, num).long(), (high + 0.5).floor().clamp(0, num).long()


def _spans(corners: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Where triangles [..., 3, 2] meet the centre lines of rows [..., k]: left and right ends [...,
    k], +inf and -inf where they do not meet."""
    y = rows + 0.5
    left = torch.full_like(y, torch.inf)
    right = -left
    for i, j in ((0, 1), (1, 2), (2, 0)):
        (x0, y0), (x1, y1) = (corners[..., c, :, None].unbind(-2) for c in (i, j))
        crosses = (y0 <= y) != (y1 <= y)  # half open: of three edges none or two
        at = x0 + (y - y0) * ((x1 - x0) / (y1 - y0))
        left = torch.where(crosses, torch.minimum(left, at), left)
        right = torch.where(crosses, torch.maximum(right, at), right)
    return left, right


@torch.no_grad()
def covered_cells(
    points: Tensor, faces: Tensor, size_hw: tuple[int, int], is_shown: Tensor | None = None
) -> Tensor:
    """Cells whose centre lies in any triangle, from either side.

    Exact: every triangle becomes one span of cells in each row that it meets.

    Args:
        points: [B, V, 2] finite, in cells: the grid is [0, w] x [0, h], the first centre (0.5,
            0.5).
        faces: [F, 3] int64.
        size_hw: (h, w).
        is_shown: [B, V] bool; triangles with any other corner are left out. None shows all.
    Returns: [B, h, w] bool.
    """
    h, w = size_hw
    corners = points.float()[:, faces]  # [B, F, 3, 2]
    low, high = corners[..., 1].aminmax(dim=-1)
    top, below = _cells_between(low, high, h)
    if is_shown is not None:
        below = torch.where(is_shown[:, faces].all(dim=-1), below, top)
    # As many rows from the top of every triangle are tested; it meets no other.
    most = int((below - top).amax().clamp(min=0))
    rows = top[..., None] + torch.arange(most, device=points.device)
    first, past = _cells_between(*_spans(corners, rows), w)
    meets = (past > first) & (rows < below[..., None])
    rows = rows.clamp(max=h - 1)
    start = torch.arange(len(points), device=points.device)[:, None, None] * h + rows
    change = torch.zeros(len(points) * h * (w + 1), dtype=torch.int32, device=points.device)
    step = meets.flatten().int()
    change.index_add_(0, (start * (w + 1) + first).flatten(), step)
    change.index_add_(0, (start * (w + 1) + past).flatten(), -step)
    return change.view(-1, h, w + 1)[..., :w].cumsum(dim=-1) > 0
