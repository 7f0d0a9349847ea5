"""Patch masks: blocks or scattered patches, with ratios stratified over the batch. True =
hidden."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SHAPES = ("block", "random")


def block_mask(
    grid_hw: tuple[int, int],
    num_masked: int,
    rng: np.random.Generator,
    *,
    min_aspect: float = 0.3,
    min_block: int | None = None,
) -> NDArray[np.bool_]:
    """Hide rectangles until about `num_masked` patches are gone (Bao et al. 2022, BEiT, arXiv
    2106.08254).

    Args:
        grid_hw: patches per column and row.
        num_masked: wanted; never exceeded, now and then undershot by part of a block.
        rng: source of randomness.
        min_aspect: aspect ratios are log-uniform in [min_aspect, 1 / min_aspect].
        min_block: least patches in a block, default (shorter side // 3)^2.
    Returns: [h, w] bool; at least one patch hidden when num_masked > 0.
    """
    h, w = grid_hw
    mask = np.zeros((h, w), dtype=bool)
    if num_masked <= 0:
        return mask
    least = min(max(1, min_block or (min(h, w) // 3) ** 2), num_masked)
    log_aspect = math.log(min_aspect)
    hidden = 0
    while hidden < num_masked:
        for _ in range(10):
            area = rng.uniform(least, max(least, num_masked - hidden))
            aspect = math.exp(rng.uniform(log_aspect, -log_aspect))
            bh, bw = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (1 <= bh <= h and 1 <= bw <= w):
                continue
            top, left = rng.integers(0, h - bh + 1), rng.integers(0, w - bw + 1)
            block = mask[top : top + bh, left : left + bw]
            new = block.size - int(block.sum())
            if 0 < new <= num_masked - hidden:
                block[:] = True
                hidden += new
                break
        else:
            break
    if hidden == 0:
        mask.flat[rng.integers(h * w)] = True
    return mask


def random_mask(
    grid_hw: tuple[int, int], num_masked: int, rng: np.random.Generator
) -> NDArray[np.bool_]:
    """Hide exactly `num_masked` patches, anywhere: [h, w] bool."""
    mask = np.zeros(grid_hw[0] * grid_hw[1], dtype=bool)
    mask[rng.permutation(mask.size)[:num_masked]] = True
    return mask.reshape(grid_hw)


class MaskSampler:
    """Draw masks for a batch of views.

    A fixed share of the views is masked; their ratios fill [low, high] evenly, so that every batch
    sees light and heavy masks (as in DINOv2).

    Args:
        shape: "block" or "random".
        ratio: lowest and highest share of hidden patches in a masked view.
        masked_share: share of the views that get a mask at all.
    """

    def __init__(
        self,
        *,
        shape: str = "block",
        ratio: Sequence[float] = (0.1, 0.5),
        masked_share: float = 0.5,
    ) -> None:
        if shape not in SHAPES:
            raise ValueError(
                f"mask shape must be one of {SHAPES}, got {shape!r} (views.masks.shape)"
            )
        low, high = ratio
        if not 0.0 <= low <= high < 1.0:
            raise ValueError(f"need 0 <= low <= high < 1, got ratio={ratio} (views.masks.ratio)")
        if not 0.0 <= masked_share <= 1.0:
            raise ValueError(
                f"masked_share is a share, got {masked_share} (views.masks.masked_share)"
            )
        self.shape, self.ratio, self.masked_share = shape, (low, high), masked_share

    def __call__(
        self, num_views: int, grid_hw: tuple[int, int], generator: torch.Generator
    ) -> Tensor:
        """[num_views, N] bool on the CPU, N = h * w row by row."""
        seed = int(torch.randint(2**62, (), generator=generator))
        rng = np.random.default_rng(seed)
        num_patches = grid_hw[0] * grid_hw[1]
        num_masked_views = round(num_views * self.masked_share)
        masks = np.zeros((num_views, num_patches), dtype=bool)
        draw = block_mask if self.shape == "block" else random_mask
        low, high = self.ratio
        for i, view in enumerate(rng.permutation(num_views)[:num_masked_views]):
            ratio = low + (high - low) * (i + rng.random()) / num_masked_views
            count = max(1, round(ratio * num_patches))
            masks[view] = draw(grid_hw, count, rng).reshape(-1)
        return torch.from_numpy(masks)
