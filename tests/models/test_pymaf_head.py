from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from handmim.geometry.camera import project_weak
from handmim.models.heads.pymaf import PointMlp, PyMafHead, farthest_points
from handmim.models.pyramid import PYRAMIDS, Pyramid
from handmim.models.vit import ViT
from handmim.types import Intrinsics, Tokens
from tests.models.head_cases import DIM, SMALL_PYMAF, tokens


@pytest.fixture
def make(hand):
    torch.manual_seed(0)
    return partial(PyMafHead, DIM, hand, **SMALL_PYMAF)


def test_starts_at_the_mean_hand_and_hardly_leaves_it_before_training(make, hand):
    head = make()
    R = hand.mean_rotmats.clone()
    head.set_mean_hand(R, torch.tensor([0.1, -0.2, 0.3]))
    steps = head(tokens()).steps
    assert len(steps) == 4
    torch.testing.assert_close(steps[0].rotmats, R.expand(2, -1, -1, -1))
    torch.testing.assert_close(steps[0].cam, torch.tensor([0.1, -0.2, 0.3]).expand(2, -1))
    assert steps[0].betas.abs().max() == 0
    assert (steps[-1].joints_root_m - steps[0].joints_root_m).abs().max() < 0.02


def test_decode_is_the_hand_model_relative_to_its_root(make, hand):
    head = make()
    state = head.mean_state(2) + 0.1 * torch.randn(
        2, 109, generator=torch.Generator().manual_seed(1)
    )
    out = head.decode(state)
    mesh = hand(out.rotmats, out.betas)
    torch.testing.assert_close(out.verts_root_m, mesh.verts_m - mesh.joints_m[:, 9:10])
    assert out.joints_root_m[:, 9].abs().max() == 0
    torch.testing.assert_close(out.verts_crop_ndc, project_weak(out.verts_root_m, out.cam, 8.0))


def test_every_refinement_has_its_own_gradient_and_states_are_detached(make):
    head = make()
    out = head(tokens())
    out.steps[-1].joints_root_m.sum().backward()
    last = [
        p.grad is not None and p.grad.abs().sum() > 0 for p in head.regressors[2].out.parameters()
    ]
    assert all(last)
    assert all(p.grad is None for p in head.regressors[0].parameters()), (
        "steps do not train each other"
    )


def test_later_steps_look_where_the_mesh_lands(make):
    """Moving the camera moves the samples: features differ when the hand lands elsewhere."""
    head = make()
    here = head.decode(head.mean_state(1))
    moved = head.decode(head.mean_state(1) + F.one_hot(torch.tensor([107]), 109) * 0.5)
    a, b = head._points(1, here), head._points(1, moved)
    assert a.shape == (1, 11 + 21, 2)
    torch.testing.assert_close(
        b - a, torch.tensor([8.0 * 0.5, 0.0]).expand_as(a), atol=1e-5, rtol=0
    )
    assert not a.requires_grad
    grid = head._points(0, here)
    assert grid.shape == (1, 9, 2)
    torch.testing.assert_close(grid[0, 4], torch.zeros(2))


@pytest.mark.parametrize("cls_at", ["none", "first", "all"])
def test_class_token_reaches_the_steps_it_should(make, cls_at):
    head = make(cls_at=cls_at)
    for reg in head.regressors:
        torch.nn.init.normal_(reg.out.weight, std=0.1)
    base, changed = tokens(), tokens()
    changed = changed._replace(cls=changed.cls + 1.0)
    a, b = head(base).steps, head(changed).steps
    moves = [bool((x.rotmats - y.rotmats).abs().max() > 1e-6) for x, y in zip(a, b, strict=True)]
    assert moves[0] is False
    assert any(moves) is (cls_at != "none")


def test_a_standardised_class_token_ignores_what_all_images_share(make):
    head = make(cls_at="all", standardise_cls=True)
    for reg in head.regressors:
        torch.nn.init.normal_(reg.out.weight, std=0.1)
    t = tokens()
    head.set_cls_statistics(torch.zeros(12), torch.ones(12))
    plain = head(t).steps[-1].rotmats
    head.set_cls_statistics(torch.full((12,), 5.0), torch.full((12,), 2.0))
    torch.testing.assert_close(head(t._replace(cls=t.cls * 2 + 5)).steps[-1].rotmats, plain)
    assert (head(t).steps[-1].rotmats - plain).abs().max() > 1e-4


def test_bad_settings_are_named(make):
    with pytest.raises(ValueError, match="cls_at"):
        make(cls_at="last")
    with pytest.raises(ValueError, match="num_steps"):
        make(num_steps=0)
    with pytest.raises(ValueError, match="num_points"):
        make(num_points=779)


def test_farthest_points_spread_over_the_hand(hand_arrays):
    verts = hand_arrays.v_template
    chosen = farthest_points(verts, 60)
    assert len(set(chosen)) == 60
    far = torch.cdist(torch.from_numpy(verts), torch.from_numpy(verts[chosen])).min(dim=1).values
    assert far.max() < 0.021, "no part of the hand is far from a chosen vertex"
    again = farthest_points(verts, 10)
    assert chosen[:10] == again


def token_map(t: Tokens) -> torch.Tensor:
    return t.patches.transpose(1, 2).unflatten(2, t.grid_hw)


def test_pyramid_doubles_and_keeps_places():
    torch.manual_seed(0)
    maps = Pyramid("light", 12, 8, 3, "group")(token_map(tokens()))
    assert [tuple(m.shape) for m in maps] == [(2, 8, 4, 4), (2, 8, 8, 8), (2, 8, 16, 16)]
    first = Pyramid("light", 12, 8, 1, "group")
    t = tokens(1)
    other = t._replace(patches=t.patches.clone())
    other.patches[0, 6] += 5.0  # row 1, column 2 of the 4 x 4 grid
    (a,), (b,) = first(token_map(t)), first(token_map(other))
    change = (a - b).abs().sum(dim=(0, 1))
    assert change.argmax().item() == 6


VARIANTS = {
    "deconv": {"pyramid": "deconv", "norm": "batch"},
    "deconv_group": {"pyramid": "deconv"},
    "max": {"pool": "max"},
    "attention": {"attention": True},
    "no_activation": {"activation": "none"},
    "no_joints": {"append_joints": False},
    "one_step": {"num_steps": 1},
    "four_steps": {"num_steps": 4},
    "taps": {"taps": (1, 2)},
    "all_points": {"num_points": 778},
    "pinhole": {"camera": "pinhole"},
    "drawing": {"heatmaps": True, "silhouette": True},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant_refines_and_trains_all_its_parts(make, name):
    head = make(**VARIANTS[name])
    t = tokens()
    t = t._replace(taps=tuple(t.patches + i for i in range(len(head.tapped_blocks))))
    intrinsics = Intrinsics(torch.eye(3).expand(2, 3, 3) * 300, torch.tensor([True, False]), 32)
    out = head(t, intrinsics)
    assert len(out.steps) == head.num_steps + 1
    assert out.steps[-1].verts_root_m.shape == (2, 778, 3)
    loss = sum((s.verts_root_m**2).sum() + (s.verts_crop_ndc**2).sum() for s in out.steps[1:])
    for drawn in (out.heatmaps, out.silhouette):
        assert (drawn is not None) is (name == "drawing")
        loss = loss if drawn is None else loss + (drawn**2).sum()
    loss.backward()
    idle = [n for n, p in head.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert idle == []


def test_without_detaching_later_steps_train_earlier_ones(make):
    head = make(detach=False)
    head(tokens()).steps[-1].joints_root_m.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in head.regressors[0].out.parameters())


def test_attention_lets_a_mesh_point_see_the_others(make):
    head = make(attention=True)
    torch.manual_seed(1)
    points, grid = torch.randn(1, 5, 8), torch.randn(1, 9, 8)
    other = grid.clone()
    other[0, 3] = torch.randn(8)
    change = (head.attentions[0](points, grid) - head.attentions[0](points, other)).abs()
    assert (change.sum(dim=-1) > 0).all()


def test_max_pooling_forgets_the_order_of_points():
    torch.manual_seed(0)
    mlp = PointMlp((8, 6, 4), "max")
    x = torch.randn(2, 7, 8)
    assert mlp(x).shape == (2, 4)
    torch.testing.assert_close(mlp(x.flip(1)), mlp(x))
    with pytest.raises(ValueError, match="pool must be one of"):
        PointMlp((8, 4), "mean")


def test_maps_have_the_resolutions_of_pymaf():
    """ViT tokens of 224 px and 16 px patches: 14, 28, 56, by both pyramids."""
    x = torch.randn(1, 12, 14, 14)
    for kind in PYRAMIDS:
        maps = Pyramid(kind, 12, 4, 3, "group")(x)
        assert [tuple(m.shape) for m in maps] == [(1, 4, s, s) for s in (14, 28, 56)]
    with pytest.raises(ValueError, match="norm must be one of"):
        Pyramid("light", 12, 8, 3, norm="layer")


def test_the_default_pyramid_costs_at_most_a_tenth_of_the_backbone(hand):
    """Multiply-adds at ViT-S/16, 224 px: pyramid, samples, point MLPs and updates."""
    backbone = ViT("vit_small_patch16_224", img_px=224, patch_px=16)
    head = PyMafHead(384, hand)
    image = torch.rand(1, 3, 224, 224)

    def flops(work) -> int:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops()

    with torch.no_grad():
        seen = backbone(image)
    body, whole = flops(lambda: backbone(image)), flops(lambda: head(seen))
    assert 0.01 * body < whole <= 0.10 * body
    heavy = PyMafHead(384, hand, pyramid="deconv", channels=256)
    assert flops(lambda: heavy(seen)) > 0.25 * body


def test_maps_are_drawn_as_asked(make):
    features = torch.randn(2, 8, 5, 7)
    both = make(heatmaps=True, silhouette=True)
    maps = both.drawings(([features], None))
    assert maps["heatmaps"].shape == (2, 21, 5, 7)
    assert maps["silhouette"].shape == (2, 5, 7)
    assert sum(p.numel() for p in both.aux.parameters()) == 22 * 9
    # 1x1: a cell is predicted from its own features
    again = both.drawings(([features[:, :, 2:3, 3:4]], None))
    torch.testing.assert_close(again["heatmaps"][..., 0, 0], maps["heatmaps"][..., 2, 3])
    torch.testing.assert_close(again["silhouette"][:, 0, 0], maps["silhouette"][:, 2, 3])
    for name in ("heatmaps", "silhouette"):
        assert set(make(**{name: True}).drawings(([features], None))) == {name}
    assert not make().aux.state_dict()
