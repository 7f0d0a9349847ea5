import numpy as np
import pytest
import torch
from torch import Tensor

from handmim.data.views import MaskSampler, block_mask
from handmim.engine.optim import Schedule
from handmim.types import StepInfo


def drawn(
    sampler: MaskSampler,
    shape: tuple[int, int] = (32, 2),
    grid_hw: tuple[int, int] = (10, 10),
    *,
    seed: int = 0,
    step: int = 0,
) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    masks = sampler(shape, grid_hw, g, StepInfo(step, 100))
    assert masks.shape == (*shape, grid_hw[0] * grid_hw[1])
    assert masks.dtype == torch.bool
    return masks


@pytest.mark.parametrize("count", [1, 6, 18, 30])
def test_block_masks_hide_about_what_was_asked(count: int):
    rng = np.random.default_rng(0)
    hidden = [int(block_mask((6, 6), count, rng).sum()) for _ in range(50)]
    assert max(hidden) <= count
    assert min(hidden) >= 1
    assert sum(hidden) / len(hidden) >= 0.8 * count
    assert {int(block_mask((6, 6), count, rng, exact=True).sum()) for _ in range(50)} == {count}


def borders(mask: np.ndarray) -> int:
    return int((mask[1:] != mask[:-1]).sum() + (mask[:, 1:] != mask[:, :-1]).sum())


def test_block_masks_are_clumped_and_random_ones_are_not():
    rng = np.random.default_rng(1)
    block = sum(borders(block_mask((14, 14), 70, rng)) for _ in range(20))
    exact = sum(borders(block_mask((14, 14), 70, rng, exact=True)) for _ in range(20))
    sampler = MaskSampler(shape="random", ratio=(70 / 196, 70 / 196), masked_share=1.0)
    scattered = drawn(sampler, (20, 1), (14, 14)).view(20, 14, 14).numpy()
    assert (scattered.sum(axis=(1, 2)) == 70).all()
    assert block <= exact < 0.6 * sum(borders(mask) for mask in scattered)


def test_random_masks_lie_anywhere():
    sampler = MaskSampler(shape="random", ratio=(0.0, 0.9), masked_share=1.0)
    masks = drawn(sampler, (2000, 1), (5, 5)).flatten(0, 1).float()
    assert masks.mean(dim=0).sub(masks.mean()).abs().max() < 0.05


@pytest.mark.parametrize("shape", ["random", "block"])
def test_sampler_masks_the_share_and_spreads_the_ratios(shape: str):
    per_view = drawn(MaskSampler(shape=shape, ratio=(0.1, 0.5))).flatten(0, 1).sum(dim=1)
    assert int((per_view > 0).sum()) == 32
    ratios = per_view[per_view > 0].sort().values / 100
    expected = 0.1 + 0.4 * (torch.arange(32) + 0.5) / 32
    error = ratios - expected
    assert error.abs().max() < (0.02 if shape == "random" else 0.15)
    assert error.max() < 0.02, "blocks undershoot, they never overshoot"
    assert drawn(MaskSampler(shape=shape, masked_share=0.0)).sum() == 0
    assert (drawn(MaskSampler(shape=shape, masked_share=1.0)).sum(dim=-1) > 0).all()


def test_masks_depend_on_the_generator_only():
    sampler = MaskSampler()
    assert torch.equal(drawn(sampler, seed=1), drawn(sampler, seed=1))
    assert not torch.equal(drawn(sampler, seed=1), drawn(sampler, seed=2))


def test_something_is_hidden_and_something_is_left_whatever_the_ratio():
    for shape in ("random", "block"):
        few = drawn(MaskSampler(shape=shape, ratio=(0.0, 0.0), masked_share=1.0), grid_hw=(3, 3))
        assert (few.sum(dim=-1) == 1).all()
        sampler = MaskSampler(shape=shape, ratio=(0.99, 0.99), masked_share=1.0, exact_count=True)
        assert (drawn(sampler, grid_hw=(3, 3)).sum(dim=-1) == 8).all()


@pytest.mark.parametrize("shape", ["random", "block"])
def test_exact_counts_are_equal_in_a_batch_and_spread_over_batches(shape: str):
    sampler = MaskSampler(shape=shape, ratio=(0.2, 0.6), masked_share=0.75, exact_count=True)
    counts = []
    for seed in range(12):
        per_view = drawn(sampler, (8, 2), seed=seed).flatten(0, 1).sum(dim=1)
        assert len(per_view[per_view > 0].unique()) == 1
        assert int((per_view > 0).sum()) == 12
        counts.append(int(per_view.max()))
    assert 20 <= min(counts) < 35
    assert 45 < max(counts) <= 60


def test_three_quarters_of_196_patches_for_dropping():
    sampler = MaskSampler(shape="random", ratio=(0.75, 0.75), masked_share=1.0, exact_count=True)
    assert (drawn(sampler, grid_hw=(14, 14)).sum(dim=-1) == 147).all()


@pytest.mark.parametrize("num_views", [2, 3])
def test_one_view_of_a_sample_is_masked_each_in_its_turn(num_views: int):
    sampler = MaskSampler(masked_views="one", masked_share=0.5)
    is_masked = drawn(sampler, (24, num_views)).any(dim=-1)
    assert is_masked.sum(dim=1).max() == 1
    assert is_masked.sum() == 12, "half of the samples"
    assert is_masked.sum(dim=0).tolist() == [12 // num_views] * num_views
    every = drawn(MaskSampler(masked_views="one", masked_share=1.0), (24, num_views)).any(dim=-1)
    assert (every.sum(dim=1) == 1).all()


def test_centred_blocks_hide_the_middle():
    def share_in_middle(centre_bias: float) -> float:
        sampler = MaskSampler(ratio=(0.25, 0.25), masked_share=1.0, centre_bias=centre_bias)
        masks = drawn(sampler, (100, 2), (12, 12)).view(200, 12, 12)
        return float(masks[:, 3:9, 3:9].sum() / masks.sum())

    anywhere, some, centred = (share_in_middle(bias) for bias in (0.0, 0.5, 1.0))
    assert anywhere < some - 0.05 < centred - 0.1
    assert centred > 0.55, "a quarter of the area holds most of what is hidden"


def test_curriculum_raises_the_highest_ratio_over_the_training():
    high = Schedule(start=0.3, end=0.6, shape="linear")
    sampler = MaskSampler(shape="random", ratio=(0.1, high), masked_share=1.0)
    for step, highest in ((0, 0.3), (99, 0.6), (500, 0.6)):
        ratios = drawn(sampler, (50, 2), step=step).sum(dim=-1) / 100
        assert ratios.min().item() == pytest.approx(0.1, abs=0.011)
        assert ratios.max().item() == pytest.approx(highest, abs=0.011)
    warm = Schedule(start=0.5, warmup_steps=50)  # leaves from 0, below the lowest ratio
    start = drawn(MaskSampler(shape="random", ratio=(0.2, warm), masked_share=1.0), (50, 2))
    assert set(start.sum(dim=-1).flatten().tolist()) == {20}


@pytest.mark.parametrize(
    ("key", "settings"),
    [
        ("shape", {"shape": "blob"}),
        ("ratio", {"ratio": (0.5, 0.1)}),
        ("ratio", {"ratio": (0.5, 1.0)}),
        ("ratio", {"ratio": (0.4, Schedule(start=0.3, end=0.6))}),
        ("ratio", {"ratio": (0.1, Schedule(start=0.3, end=1.0))}),
        ("ratio", {"ratio": (Schedule(start=0.1), 0.5)}),
        ("masked_share", {"masked_share": 1.1}),
        ("masked_views", {"masked_views": "first"}),
        ("centre_bias", {"centre_bias": 2.0}),
        ("centre_bias", {"centre_bias": 0.5, "shape": "random"}),
    ],
)
def test_bad_mask_settings_are_named(key: str, settings: dict):
    with pytest.raises(ValueError, match=key):
        MaskSampler(**settings)
