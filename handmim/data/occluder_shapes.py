"""Random convex shapes about a joint, as half planes: drawing, shrinking, filling. No pictures.

A shape is { p : n_k . (p - joint) <= reach_k for all k } with the joint inside it, all in ndc.
"""

import math

import torch
from torch import Tensor

from handmim.geometry.camera import cell_centres_ndc
from handmim.geometry.crop import similarity, transform_points

SIDES = 16  # of every shape: enough for a smooth ellipse; four of them make a bar
OFF_CENTRE = 0.6  # the joint lies within this share of the shape's half axes
# Sides of polygons lie so many times as far off as an ellipse's: about the same area on average.
IRREGULAR = (0.8, 1.4)


def log_uniform(u: Tensor, low: float, high: float) -> Tensor:
    """[0, 1) to [low, high), evenly in the logarithm."""
    return low * (high / low) ** u


def draw_sides(u: Tensor, irregular: Tensor, area: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """Ellipses, irregular polygons and bars, one third each, as the half planes they are cut from.

    Args:
        u: [n, 6] uniform: kind, area, stretch, angle, and where in the shape the joint lies.
        irregular: [n, SIDES] uniform, of the polygons.
        area: lowest and highest share of the crop's area; a polygon's varies about it.
    Returns: normals n [n, SIDES, 2] of unit length and reach [n, SIDES] > 0 in ndc.
    """
    kind, is_bar = (3 * u[:, 0]).long(), u[:, 0] >= 2 / 3
    half_area = log_uniform(u[:, 1], *area) * torch.where(is_bar, 1.0, 4 / math.pi)
    stretch = torch.where(is_bar, 3 * 2 ** u[:, 2], 2 ** u[:, 2])  # bars are 3 to 6 times as long
    axes = torch.stack([(half_area * stretch).sqrt(), (half_area / stretch).sqrt()], dim=1)
    angle = torch.arange(SIDES, device=u.device) * (2 * math.pi / SIDES)
    own = torch.stack([angle.cos(), angle.sin()], dim=1)  # [SIDES, 2] along the shape's own axes
    along = axes[:, None] * own
    support = torch.where(is_bar[:, None], along.abs().sum(dim=-1), along.norm(dim=-1))
    low, high = IRREGULAR
    polygon = support * (low + (high - low) * irregular)
    support = torch.where((kind == 1)[:, None], polygon, support)
    place = 2 * math.pi * u[:, 5]
    joint = torch.stack([place.cos(), place.sin()], dim=1) * OFF_CENTRE * u[:, 4:5].sqrt()
    reach = support - (along * joint[:, None]).sum(dim=-1)
    turn = similarity(torch.ones_like(place), math.pi * u[:, 3], torch.zeros_like(axes))
    return transform_points(turn, own.expand(len(u), -1, -1)), reach


def shrinking(
    offsets_ndc: Tensor,
    is_seen: Tensor,
    normals: Tensor,
    reach: Tensor,
    max_joints: float,
    spare_ndc: float,
) -> Tensor:
    """How far shapes shrink towards the joint they cover so as not to cover too many.

    A convex shape that shrinks towards a point inside it sheds joints one by one: joint j is
    farther than `spare_ndc` from it below the factor g_j = max_k (n_k . offset_j - spare) /
    reach_k. Of m seen joints floor(max_joints m) may be nearer, so the factor is the next smallest
    g, or 1 where that is less of a change, or 0 where there is no such shape.

    Args:
        offsets_ndc: [n, 21, 2] joints from the one that is covered.
        is_seen: [n, 21] bool, the joints that count; where there is none nothing shrinks.
        normals, reach: [n, SIDES, 2] and [n, SIDES], see `draw_sides`.
        max_joints: share of the seen joints that may be covered.
        spare_ndc: distance from the shape at which a joint counts as free.
    Returns: [n] in [0, 1].
    """
    along = (offsets_ndc.unsqueeze(2) * normals.unsqueeze(1)).sum(dim=-1)  # [n, 21, SIDES]
    free_below = ((along - spare_ndc) / reach[:, None]).amax(dim=-1)
    ranked = free_below.masked_fill(~is_seen, math.inf).sort(dim=1).values
    ranked = torch.cat([ranked, torch.full_like(ranked[:, :1], math.inf)], dim=1)
    allowed = (is_seen.sum(dim=1) * max_joints + 1e-4).long()
    return ranked.gather(1, allowed[:, None]).squeeze(1).clamp(0, 1)


def cover(
    side_px: int, joint_ndc: Tensor, normals: Tensor, reach: Tensor, soft_px: float
) -> Tensor:
    """Opacity of shapes in pixels: 0 outside, rising to 1 over `soft_px` from their border inwards.

    Args:
        side_px: of the picture.
        joint_ndc: [n, 2] where the shapes lie.
        normals, reach: [n, SIDES, 2] and [n, SIDES].
        soft_px: width of the border.
    Returns: [n, 1, side, side].
    """
    at = cell_centres_ndc(side_px, reach.device)
    reach = reach + (normals * joint_ndc[:, None]).sum(dim=-1)  # from the crop's centre
    depth = torch.full((len(reach), side_px, side_px), math.inf, device=reach.device)
    here = torch.empty_like(depth)
    for side in range(SIDES):
        normal = normals[:, side, :, None]
        down = reach[:, side, None] - normal[:, 1] * at  # [n, H]
        torch.sub(down[:, :, None], (normal[:, 0] * at)[:, None], out=here)
        torch.minimum(depth, here, out=depth)
    return depth.mul_(side_px / (2 * soft_px)).clamp_(0, 1).unsqueeze(1)
