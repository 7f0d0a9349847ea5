from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException
from hydra.utils import instantiate

from handmim.losses import pixel_recon
from handmim.models.heads.pixel import PixelDecoder, PixelHead
from handmim.types import PixelTargets, PretrainBatch, PretrainOutputs

CONFIGS = Path(__file__).parents[2] / "configs"
BATCH = PretrainBatch(
    torch.zeros(1, 2, 3, 8, 8),
    torch.eye(2, 3).expand(1, 2, 2, 3),
    torch.zeros(1, 2, 4, dtype=torch.bool),
)


def composed(*overrides: str):
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("pretrain", overrides=["data=folder", "data.root=x", *overrides]).task


def cost(term: pixel_recon.Term, pred: torch.Tensor, target: torch.Tensor, weight: list[float]):
    pixels = PixelTargets(pred, target, torch.tensor(weight), num_views=2)
    return term(PretrainOutputs(pixels=pixels), BATCH)


def test_normalised_patches_have_mean_0_and_variance_1_and_flat_ones_stay_flat():
    patches = torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.5, 0.5, 0.5, 0.501]])
    out = pixel_recon.normalise_patches(patches)
    torch.testing.assert_close(out[0], torch.tensor([-1.0, 1.0, -1.0, 1.0]))
    assert out[1].abs().max() < 0.1  # without the floor the noise would reach 1.7


@pytest.mark.parametrize(("kind", "value"), [("mse", 2.75), ("l1", 1.25)])
def test_error_matches_hand_value(kind: str, value: float):
    # errors 1 and 3 per value; weights 1 and 1/2 over 2 views: (1 + 9/2) / 2 and (1 + 3/2) / 2
    term = pixel_recon.Term(kind=kind, per_patch_norm=False)
    pred = torch.tensor([[1.0, 1.0], [3.0, 3.0]])
    assert cost(term, pred, torch.zeros(2, 2), [1.0, 0.5]).item() == pytest.approx(value)


def test_normalised_targets_ignore_each_patchs_brightness_and_contrast():
    g = torch.Generator().manual_seed(0)
    pred, target = torch.randn(2, 12, generator=g), torch.rand(2, 12, generator=g)
    a = cost(pixel_recon.Term(), pred, target, [1.0, 1.0])
    b = cost(pixel_recon.Term(), pred, 0.5 * target + 0.2, [1.0, 1.0])
    torch.testing.assert_close(a, b)
    raw = pixel_recon.Term(per_patch_norm=False)
    assert not torch.allclose(
        cost(raw, pred, target, [1.0, 1.0]), cost(raw, pred, 0.5 * target + 0.2, [1.0, 1.0])
    )


def test_nothing_hidden_costs_nothing_and_keeps_the_graph():
    pred = torch.zeros(0, 12, requires_grad=True)
    loss = cost(pixel_recon.Term(), pred, torch.zeros(0, 12), [])
    loss.backward()
    assert loss.item() == 0.0


def test_bad_choices_are_named():
    with pytest.raises(ValueError, match="kind must be one of"):
        pixel_recon.Term(kind="huber")
    with pytest.raises(ValueError, match="min_var"):
        pixel_recon.Term(min_var=0.0)


@pytest.mark.parametrize(
    ("overrides", "cls", "taps"),
    [
        ([], PixelHead, (1.0,)),
        (["task.heads.pixel.tap_layers=[0.75]"], PixelHead, (0.75,)),
        (["pixel_head=decoder"], PixelDecoder, (1.0,)),
        (["method=mae"], PixelDecoder, (1.0,)),
    ],
)
def test_the_head_is_one_word(overrides: list[str], cls: type, taps: tuple[float, ...]):
    heads = composed("loss=[pixel_recon]", *overrides).heads
    assert set(heads) == {"pixel"}
    make = instantiate(heads.pixel)
    head = make(24, patch_px=8, **({"grid_hw": (4, 4)} if cls is PixelDecoder else {}))
    assert isinstance(head, cls)
    assert head.tap_layers == taps


def test_without_the_loss_there_is_no_head_and_no_choice():
    task = composed("loss=[patch_distill]", "method=handmim-plain")
    assert "pixel" not in task.heads
    assert "pixel" not in task
    with pytest.raises(ConfigCompositionException, match="pixel_head"):
        composed("loss=[patch_distill]", "pixel_head=decoder")
