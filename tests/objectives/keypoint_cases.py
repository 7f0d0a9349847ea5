"""Hands seen in two views, of which everything is known: for tests of keypoint losses."""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from handmim.geometry.crop import compose, from_source, invert, similarity
from handmim.objectives.base import StepContext
from handmim.objectives.keypoint_align import AlignedPoints, KeypointAlign
from handmim.types import PretrainBatch, StepInfo, Tokens


def random_maps(
    *shape: int, seed: int = 0, scale: tuple[float, float] = (0.6, 1.0), general: bool = False
) -> Tensor:
    """[*shape, 2, 3] similarities; `general` adds flips and up to 20 % of stretch."""
    g = torch.Generator().manual_seed(seed)
    u = torch.rand(*shape, 6, generator=g)
    aspect = None
    if general:
        aspect = (0.8 + 0.4 * u[..., 4]) * torch.where(u[..., 5] < 0.5, -1.0, 1.0)
    low, high = scale
    shift = 0.3 * u[..., 2:4] - 0.15
    return similarity(low + (high - low) * u[..., 0], 6.28 * u[..., 1], shift, aspect)


def batch_of(maps: Tensor, displacement: Tensor | None = None, group=None) -> PretrainBatch:
    b, g = maps.shape[:2]
    views, is_masked = torch.zeros(b, g, 3, 8, 8), torch.zeros(b, g, 1, dtype=torch.bool)
    return PretrainBatch(views, maps, is_masked, displacement_ndc=displacement, group=group)


def context(
    batch: PretrainBatch,
    *,
    cls: Tensor | None = None,
    patches: Tensor | None = None,
    keypoints: Tensor | None = None,
) -> StepContext:
    """A batch with the tokens [B, G, ...] and points of its views, as far as an objective reads."""
    b, g = batch.views.shape[:2]
    cls = torch.zeros(b, g, 4) if cls is None else cls
    patches = torch.zeros(b, g, 1, 4) if patches is None else patches
    side = round(patches.shape[2] ** 0.5)
    tokens = Tokens(cls.flatten(0, 1), patches.flatten(0, 1), (side, side))
    return StepContext(batch, StepInfo(0, 10), tokens, points=keypoints)


def aligned(points: Tensor, target: Tensor | None = None) -> AlignedPoints:
    return AlignedPoints(points, points, points if target is None else target)


def seen_points(batch: PretrainBatch, k: int = 6, d: int = 2, seed: int = 1) -> Tensor:
    """[B, G, k, d] one point set per sample, as each of its views sees it."""
    g = torch.Generator().manual_seed(seed)
    b, num_views = batch.source_from_view.shape[:2]
    in_source = (torch.rand(b, 1, k, d, generator=g) - 0.5).expand(-1, num_views, -1, -1)
    return from_source(in_source, batch.source_from_view, batch.displacement_ndc)


@dataclass
class Hands:
    """A batch of hands: a similarity frame each, joints that bend in it, two views."""

    batch: PretrainBatch
    cues: dict[str, Tensor]  # [B, G, C] what a network may read off a view, by name
    joints: Tensor  # [B, G, K, 2] true joints in each view


@cache
def some_hands(b: int = 24, k: int = 6, seed: int = 0) -> Hands:
    g = torch.Generator().manual_seed(seed)
    maps = random_maps(b, 2, seed=seed + 1)
    source_from_hand = random_maps(b, 1, seed=seed + 2, scale=(0.4, 0.7))
    base = torch.rand(k, 2, generator=torch.Generator().manual_seed(99)) * 2 - 1
    in_hand = base + 0.4 * torch.randn(b, 1, k, 2, generator=g)
    in_source = from_source(in_hand, invert(source_from_hand)).expand(-1, 2, -1, -1)
    view_from_source = invert(maps)
    view_from_hand = compose(view_from_source, source_from_hand.expand(-1, 2, -1, -1))
    cues = {
        "nothing": torch.zeros(b, 2, 1),
        "place": view_from_hand[..., 2],
        "border": view_from_source.flatten(2),
        "frame": view_from_hand.flatten(2),
    }
    return Hands(batch_of(maps), cues, from_source(in_source, maps))


class Reader(torch.nn.Module):
    """The smallest network: points linear in a cue and, once opened, in the joints."""

    def __init__(self, cue: str, k: int = 6, seed: int = 0) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(seed)
        width = some_hands(2, k).cues[cue].shape[-1]
        self.cue = cue
        self.of_cue = torch.nn.Parameter(0.5 * torch.randn(2 * k, width, generator=g))
        self.of_joints = torch.nn.Parameter(torch.zeros(2 * k, 2 * k))
        self.bias = torch.nn.Parameter(torch.rand(2 * k, generator=g) - 0.5)

    def forward(self, hands: Hands) -> Tensor:
        flat = hands.cues[self.cue] @ self.of_cue.T + hands.joints.flatten(2) @ self.of_joints.T
        return (flat + self.bias).unflatten(-1, (-1, 2))


def train(net: Reader, objective: KeypointAlign, steps: int, lr: float = 0.05) -> None:
    """Both sides are the net's own points, and gradient goes through both."""
    opt = torch.optim.Adam(net.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(opt, steps)
    for step in range(steps):
        hands = some_hands(seed=1000 + step % 40)
        opt.zero_grad()
        objective.loss(context(hands.batch), aligned(net(hands))).backward()
        opt.step()
        schedule.step()
