"""Patch masks, True = masked: blocks or scattered patches, ratios stratified over the batch."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from handmim.engine.optim import Schedule, as_schedule
from handmim.types import StepInfo
from handmim.utils.arguments import one_of, shares

RNG = np.random.Generator
SHAPES = ("block", "random")
MASKED_VIEWS = ("all", "one")
CENTRE_STD = 0.15  # of the centres of hand-centred blocks, in sides of the image
MIN_ASPECT = 0.3  # aspect ratios of blocks are log-uniform in [MIN_ASPECT, 1 / MIN_ASPECT]


def _corner(side: int, block: int, rng: RNG) -> int:
    centre = side * (0.5 + CENTRE_STD * rng.standard_normal())
    return min(max(round(centre - block / 2), 0), side - block)


def block_mask(
    grid_hw: tuple[int, int], num_masked: int, rng: RNG, centre_bias: float = 0, exact: bool = False
) -> NDArray[np.bool_]:
    """Rectangles of about `num_masked` > 0 patches (BEiT, Bao et al. 2022, arXiv 2106.08254): [h,
    w] bool with at least one and at most so many; `exact` masks single patches for the rest."""
    h, w = grid_hw
    mask = np.zeros((h, w), dtype=bool)
    min_block = min(max(1, (min(h, w) // 3) ** 2), num_masked)
    log_aspect = math.log(MIN_ASPECT)
    count = 0
    while count < num_masked:
        for _ in range(10):
            area = rng.uniform(min_block, max(min_block, num_masked - count))
            aspect = math.exp(rng.uniform(log_aspect, -log_aspect))
            bh, bw = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if not (1 <= bh <= h and 1 <= bw <= w):
                continue
            if centre_bias > 0 and rng.random() < centre_bias:
                top, left = _corner(h, bh, rng), _corner(w, bw, rng)
            else:
                top, left = int(rng.integers(0, h - bh + 1)), int(rng.integers(0, w - bw + 1))
            block = mask[top : top + bh, left : left + bw]
            new = block.size - int(block.sum())
            if 0 < new <= num_masked - count:
                block[:] = True
                count += new
                break
        else:
            break
    missing = num_masked - count if exact else int(count == 0)
    if missing:
        mask.flat[rng.permutation(np.flatnonzero(~mask))[:missing]] = True
    return mask


def random_masks(num_patches: int, num_masked: NDArray[np.int64], rng: RNG) -> NDArray[np.bool_]:
    """Mask exactly `num_masked` [n] patches, anywhere: [n, num_patches] bool."""
    order = rng.random((len(num_masked), num_patches)).argsort(axis=1)
    masks = np.empty(order.shape, dtype=bool)
    np.put_along_axis(masks, order, np.arange(num_patches) < num_masked[:, None], axis=1)
    return masks


@dataclass(kw_only=True, eq=False)
class MaskSampler:
    """Draw masks for a batch of views. A fixed share of the views is masked; their ratios fill
    [low, high] evenly, so that every batch has light and heavy masks (as in DINOv2)."""

    shape: str = "block"  # or "random"
    ratio: Sequence[float | Schedule] = (0.1, 0.5)  # of masked patches; a schedule is the highest
    masked_share: float = 0.5  # of the views; of the samples where `masked_views` is "one"
    masked_views: str = "all"  # "one" of a chosen sample: another view shows what is masked in it
    centre_bias: float = 0.0  # share of the blocks that lie around the image's middle
    exact_count: bool = False  # one ratio per batch, as dropping masked patches requires

    def __post_init__(self) -> None:
        one_of("shape", self.shape, SHAPES)
        one_of("masked_views", self.masked_views, MASKED_VIEWS)
        shares(masked_share=self.masked_share, centre_bias=self.centre_bias)
        low, high = self.ratio
        if isinstance(low, Schedule):
            raise ValueError(
                f"only the highest ratio may be a schedule, got ratio={list(self.ratio)}"
            )
        self.low, self.high = low, as_schedule(high)
        for end in (self.high.start, self.high.start if self.high.end is None else self.high.end):
            if not 0.0 <= low <= end < 1.0:
                raise ValueError(
                    f"ratio must be [low, high] with 0 <= low <= high < 1, got {list(self.ratio)}"
                )
        if self.centre_bias > 0 and self.shape != "block":
            raise ValueError(
                f"centre_bias={self.centre_bias} requires shape=block, got shape={self.shape!r}"
            )

    def __call__(
        self,
        shape: tuple[int, int],
        grid_hw: tuple[int, int],
        generator: torch.Generator,
        info: StepInfo,
    ) -> Tensor:
        """Masks [B, G, N] bool on the CPU of (B, G) views, N = h * w row by row."""
        rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
        num_patches = grid_hw[0] * grid_hw[1]
        masks = np.zeros((shape[0] * shape[1], num_patches), dtype=bool)
        chosen = self._choose_views(shape, rng)
        if len(chosen):
            masks[chosen] = self._draw(len(chosen), grid_hw, rng, info)
        return torch.from_numpy(masks).unflatten(0, shape)

    def _choose_views(self, shape: tuple[int, int], rng: RNG) -> NDArray[np.int64]:
        num_samples, num_views = shape
        if self.masked_views == "all":
            num = round(num_samples * num_views * self.masked_share)
            return rng.permutation(num_samples * num_views)[:num]
        samples = rng.permutation(num_samples)[: round(num_samples * self.masked_share)]
        view = (np.arange(len(samples)) + rng.integers(num_views)) % num_views
        return samples * num_views + view

    def _draw(
        self, num: int, grid_hw: tuple[int, int], rng: RNG, info: StepInfo
    ) -> NDArray[np.bool_]:
        num_patches = grid_hw[0] * grid_hw[1]
        high = max(self.low, self.high(info.step, info.total_steps))  # it may warm up from below
        within = rng.random(1 if self.exact_count else num)
        position = np.full(num, within[0]) if self.exact_count else (np.arange(num) + within) / num
        ratios = self.low + (high - self.low) * position
        # at least one patch is masked and one is not
        counts = np.rint(ratios * num_patches).astype(np.int64).clip(1, max(1, num_patches - 1))
        if self.shape == "random":
            return random_masks(num_patches, counts, rng)
        how = self.centre_bias, self.exact_count
        blocks = [block_mask(grid_hw, count, rng, *how) for count in counts.tolist()]
        return np.stack(blocks).reshape(num, num_patches)
