import pytest
import torch
from hydra.utils import instantiate

from handmim.objectives.base import Setup, StepContext
from handmim.objectives.pixel_recon import (
    PixelDecoder,
    PixelHead,
    PixelRecon,
    PixelTargets,
    patchify,
)
from handmim.types import StepInfo, Tokens
from tests.objectives.keypoint_cases import batch_of, context
from tests.objectives.test_keypoint_configs import composed

CONTEXT = context(batch_of(torch.eye(2, 3).expand(1, 2, 2, 3)))


def cost(term: PixelRecon, pred: torch.Tensor, target: torch.Tensor, weight: list[float]):
    return term.loss(CONTEXT, PixelTargets(pred, target, torch.tensor(weight), num_views=2))


def test_normalised_patches_have_mean_0_and_variance_1_and_flat_ones_stay_flat():
    term, zeros = PixelRecon(kind="l1"), torch.zeros(1, 4)
    for patch, value in (([0.0, 1.0, 0.0, 1.0], 1.0), ([0.5, 0.5, 0.5, 0.501], 0.0)):
        found = cost(term, zeros, torch.tensor([patch]), [2.0]).item()
        assert found == pytest.approx(value, abs=0.1)  # without the floor noise would reach 0.87
    same = torch.tensor([[-1.0, 1.0, -1.0, 1.0]])
    assert cost(term, same, 3 * same + 2, [1.0]).item() == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(("kind", "value"), [("mse", 2.75), ("l1", 1.25)])
def test_error_matches_hand_value(kind: str, value: float):
    # errors 1 and 3 per value; weights 1 and 1/2 over 2 views: (1 + 9/2) / 2 and (1 + 3/2) / 2
    term = PixelRecon(kind=kind, per_patch_norm=False)
    pred = torch.tensor([[1.0, 1.0], [3.0, 3.0]])
    assert cost(term, pred, torch.zeros(2, 2), [1.0, 0.5]).item() == pytest.approx(value)


def test_normalised_targets_ignore_each_patchs_brightness_and_contrast():
    g = torch.Generator().manual_seed(0)
    pred, target = torch.randn(2, 12, generator=g), torch.rand(2, 12, generator=g)
    a = cost(PixelRecon(), pred, target, [1.0, 1.0])
    b = cost(PixelRecon(), pred, 0.5 * target + 0.2, [1.0, 1.0])
    torch.testing.assert_close(a, b)
    raw = PixelRecon(per_patch_norm=False)
    assert not torch.allclose(
        cost(raw, pred, target, [1.0, 1.0]), cost(raw, pred, 0.5 * target + 0.2, [1.0, 1.0])
    )


def test_nothing_masked_costs_no_pixels_and_keeps_the_graph():
    pred = torch.zeros(0, 12, requires_grad=True)
    loss = cost(PixelRecon(), pred, torch.zeros(0, 12), [])
    loss.backward()
    assert loss.item() == 0.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "huber"},
        {"head": "mlp"},
        {"min_var": 0.0},
        {"visible_share": 1.5},
        {"tap_layers": []},
        {"tap_layers": [0.0]},
        {"tap_layers": [1.5]},
    ],
)
def test_bad_choices_of_pixels_are_refused_by_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        PixelRecon(**wrong)


@pytest.mark.parametrize(
    ("overrides", "cls", "taps"),
    [
        ([], PixelHead, (2,)),
        (["task.objectives.pixel_recon.tap_layers=[0.5]"], PixelHead, (1,)),
        (["task.objectives.pixel_recon.head=decoder"], PixelDecoder, (2,)),
        (["method=mae"], PixelDecoder, (2,)),
    ],
)
def test_the_pixel_head_is_one_override(overrides, cls, taps):
    objectives = composed("objective=[pixel_recon]", *overrides).objectives
    assert set(objectives) == {"pixel_recon"}
    objective = instantiate(objectives.pixel_recon)
    objective.build(Setup(24, patch_px=8, grid_hw=(4, 4), depth=2))
    assert isinstance(objective.to_pixels, cls)
    assert objective.taps == taps


def test_clean_targets_require_clean_views():
    objective = PixelRecon(clean_target=True)
    with pytest.raises(ValueError, match=r"views\.keep_clean"):
        objective.predict(CONTEXT)


def test_targets_are_the_clean_views_where_they_are_chosen():
    batch = batch_of(torch.eye(2, 3).expand(1, 2, 2, 3))
    batch = batch._replace(
        views=torch.rand(1, 2, 3, 8, 8),
        clean_views=torch.rand(1, 2, 3, 8, 8),
        is_masked=torch.ones(1, 2, 4, dtype=torch.bool),
    )
    tapped = torch.randn(2, 4, 6)
    tokens = Tokens(torch.zeros(2, 6), tapped, (2, 2), (tapped,))
    ctx = StepContext(batch, StepInfo(0, 1), tokens, taps=(2,))
    for clean, views in ((True, batch.clean_views), (False, batch.views)):
        objective = PixelRecon(clean_target=clean)
        objective.build(Setup(6, patch_px=4, grid_hw=(2, 2), depth=2))
        expected = patchify(views.flatten(0, 1), 4).flatten(0, 1)
        assert torch.equal(objective.predict(ctx).target, expected)
