"""The objectives on points and class tokens: choices, what they read, laws."""

import math
from functools import partial

import pytest
import torch

from handmim.geometry.crop import invert, similarity
from handmim.objectives.base import Setup
from handmim.objectives.distillation import Pair
from handmim.objectives.experimental import LatentEquivariance
from handmim.objectives.keypoint_align import KeypointAgree, KeypointAlign, PeCLR, undone
from handmim.objectives.keypoints import KeypointHead
from tests.objectives.keypoint_cases import (
    aligned,
    batch_of,
    context,
    random_maps,
    seen_points,
    some_hands,
)

EYE = torch.eye(2, 3).expand(4, 2, 2, 3)


def test_parts_choose_what_counts():
    hands = some_hands()
    ctx, points = context(hands.batch), aligned(hands.joints + 0.1 * torch.randn_like(hands.joints))
    whole = KeypointAlign()
    cost = {name: whole.part(name, ctx, points).item() for name in whole.weights}
    default = {"reg": 1.0, "disc": 0.5, "spread": 0.1, "repulsion": 0.1, "variance": 0.1}
    assert whole.weights == default
    chosen = {
        "reg": ["reg"],
        "regularised": ["reg", "spread", "repulsion", "variance"],
        "disc": ["disc"],
        "full": list(default),
    }
    for parts, names in chosen.items():
        expected = sum(default[n] * cost[n] for n in names)
        found = KeypointAlign(parts=parts).loss(ctx, points).item()
        assert found == pytest.approx(expected, rel=1e-5)
    no_disc = KeypointAlign(disc="none").loss(ctx, points)
    regularised = KeypointAlign(parts="regularised").loss(ctx, points)
    assert no_disc.item() == pytest.approx(regularised.item())


def test_a_predictor_is_matched_and_the_points_themselves_are_kept_from_collapse():
    hands, term = some_hands(), KeypointAlign()
    bunched = aligned(torch.zeros_like(hands.joints), target=hands.joints)
    guessed, ctx = bunched._replace(predicted=hands.joints), context(hands.batch)
    for name in ("spread", "repulsion", "variance"):
        assert term.part(name, ctx, guessed) == term.part(name, ctx, bunched) > 0
    assert term.part("reg", ctx, guessed) < 1e-5 < term.part("reg", ctx, bunched)
    assert term.part("disc", ctx, guessed) < term.part("disc", ctx, bunched)


def test_prototypes_are_built_only_where_they_count():
    def built(**options):
        setup = Setup(16, heads={"keypoint": partial(KeypointHead, num_keypoints=5)})
        objective = KeypointAlign(**options)
        objective.build(setup)
        return objective

    assert not built().ema
    assert not built(disc="proto", parts="reg").ema
    found = built(disc="proto", prototypes={"num_prototypes": 7})
    assert found.ema == ("keypoint_prototypes",)
    assert found.keypoint_prototypes.num_prototypes == 7
    hands = some_hands()
    student, teacher = torch.zeros(24, 2, 8), torch.full((24, 2, 8), 1 / 8)
    points = aligned(hands.joints)._replace(classes=Pair(student, teacher))
    objective = KeypointAlign(disc="proto", parts="disc", disc_weight=2.0)
    loss = objective.loss(context(hands.batch), points)
    assert loss.item() == pytest.approx(2 * math.log(8), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": "regular"}, "parts must be one of"),
        ({"kind": "l1"}, "kind must be one of"),
        ({"frame": "crop"}, "frame must be one of"),
        ({"pairs": "same"}, "pairs must be one of"),
        ({"disc": "simclr"}, "disc must be one of"),
        ({"embed": "raw"}, "embed must be one of"),
        ({"beta_ndc": 0.0}, "beta_ndc must be > 0"),
        ({"nce_temp": -1.0}, "nce_temp must be > 0"),
        ({"parts": "disc", "disc": "none"}, "no part with a weight"),
        ({"parts": "reg", "reg_weight": 0.0}, "no part with a weight"),
        ({"scale_momentum": 2.0}, "scale_momentum"),
        ({"target": "both"}, "target must be one of"),
    ],
)
def test_bad_values_are_refused_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        KeypointAlign(**options)


def test_the_running_scale_is_saved_with_the_objective():
    hands = some_hands()
    term = KeypointAlign(scale_momentum=0.9)
    term.loss(context(hands.batch), aligned(hands.joints))
    state = term.state_dict()
    assert state["running_scale.average"] > 0
    KeypointAlign(scale_momentum=0.9).load_state_dict(state)
    assert not KeypointAlign().state_dict()


@pytest.mark.parametrize("num_dims", [2, 3])
@pytest.mark.parametrize("b", [1, 3])
def test_alignment_runs_on_any_batch_in_full_precision(num_dims, b):
    batch = batch_of(random_maps(b, 2), group=torch.zeros(b, dtype=torch.int64))
    points = seen_points(batch, d=num_dims).requires_grad_()
    term, ctx = KeypointAlign(pairs="cross+same"), context(batch)
    plain = term.loss(ctx, aligned(points))
    plain.backward()
    assert points.grad.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        cast = term.loss(ctx, aligned(points))
    assert cast.item() == pytest.approx(plain.item(), rel=1e-5)


def test_the_class_token_follows_the_points_and_not_the_reverse():
    # Points with std sqrt(2)/3 per axis; the class token is .25 off on x only: smooth L1 with beta
    # .05 gives (.25 - .025) / 2.
    found = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).expand(4, 2, 3, 2).clone()
    named = found + torch.tensor([0.25, 0.0])
    found.requires_grad_()
    named.requires_grad_()
    loss = KeypointAgree(beta_ndc=0.05).loss(context(batch_of(EYE), keypoints=found), named)
    loss.backward()
    assert loss.item() == pytest.approx(0.1125 / (math.sqrt(2) / 3), rel=1e-4)
    assert found.grad is None
    assert named.grad.abs().sum() > 0


def test_the_class_token_predicts_as_many_points_as_the_shared_head():
    heads = {"keypoint": partial(KeypointHead, num_keypoints=5, num_dims=3)}
    setup, agree = Setup(16, heads=heads), KeypointAgree(hidden_dim=8, num_hidden=1)
    agree.build(setup)
    cls = torch.randn(4, 2, 16)
    assert agree.predict(context(batch_of(EYE), cls=cls)).shape == (4, 2, 5, 3)


def test_peclr_undoes_rotations_about_the_points_own_mean():
    # Latents that rotate with the image: a view rotated by -r shows them rotated by -r.
    maps = similarity(torch.ones(8, 2), 6.28 * torch.rand(8, 2), torch.zeros(8, 2, 2))
    latents = torch.randn(8, 1, 5, 2)
    seen = latents @ invert(maps)[..., :2].mT
    back = undone(seen, maps)
    shapes = (latents - latents.mean(-2, True)).expand(-1, 2, -1, -1)
    torch.testing.assert_close(back - back.mean(-2, True), shapes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(back.mean(-2), seen.mean(-2), atol=1e-5, rtol=1e-5)


def test_peclr_shifts_by_the_points_range_and_leaves_size_alone():
    # The source's centre lies at (.5, 0) of a view shifted by -.5: a quarter of the view's side.
    # Points range over 4 in x and 2 in y: they move back by 1 and 0.
    maps = similarity(torch.ones(1, 1), torch.zeros(1, 1), torch.tensor([[[-0.5, 0.0]]]))
    points = torch.tensor([[[[-2.0, 0.0], [2.0, 0.0], [0.0, 2.0]]]])
    torch.testing.assert_close(undone(points, maps), points - torch.tensor([1.0, 0.0]))
    double = similarity(torch.full((1, 1), 2.0), torch.zeros(1, 1), torch.zeros(1, 1, 2))
    torch.testing.assert_close(undone(points, double), points)


def test_peclr_contrasts_all_views_of_other_samples():
    # One latent shape for all, no augmentation: 2B - 1 candidates that look alike.
    def cost(batch, points, **options):
        return PeCLR(**options).loss(context(batch, keypoints=points), None)

    points = torch.randn(1, 1, 5, 2).expand(4, 2, 5, 2)
    assert cost(batch_of(EYE), points).item() == pytest.approx(math.log(7), rel=1e-4)
    batch = batch_of(random_maps(4, 2, scale=(1.0, 1.0)))
    rotated = (torch.randn(4, 1, 5, 2) @ invert(batch.source_from_view)[..., :2].mT) * 3
    assert cost(batch, rotated, temp=0.1) < cost(batch_of(EYE), rotated, temp=0.1)
    zero = torch.zeros(4, 2, 5, 2, requires_grad=True)
    cost(batch, zero).backward()
    assert zero.grad.isfinite().all()
    with pytest.raises(ValueError, match="in the plane"):
        cost(batch, torch.zeros(4, 2, 5, 3))


@pytest.mark.parametrize("kind", ["smooth_l1", "l2", "cosine"])
@pytest.mark.parametrize("with_scale", [False, True])
def test_latents_that_move_with_the_image_cost_nothing(kind, with_scale):
    maps = random_maps(64, 3, general=True)
    batch = batch_of(maps)
    linear = maps[..., :2]
    if not with_scale:
        linear = linear / linear.det().abs().sqrt()[..., None, None]
    latents = 3 * torch.randn(64, 1, 8, 2)
    cls = (latents @ linear.inverse().mT).flatten(2)
    term = LatentEquivariance(kind=kind, with_scale=with_scale)
    assert term.loss(context(batch, cls=cls), None) < 1e-4
    still = (0.5 * torch.randn(64, 1, 16)).expand(64, 3, 16)
    assert term.loss(context(batch, cls=still), None) > 0.05


def test_latents_of_one_value_are_punished_and_a_share_leaves_the_rest_free():
    maps = similarity(torch.ones(8, 2), torch.zeros(8, 2), torch.zeros(8, 2, 2))
    same = torch.ones(8, 2, 16, requires_grad=True)
    term = LatentEquivariance(min_std=0.5, variance_weight=2.0)
    loss = term.loss(context(batch_of(maps), cls=same), None)
    loss.backward()
    assert loss.item() == pytest.approx(2 * 0.25, rel=1e-2)
    assert same.grad.isfinite().all()
    half = LatentEquivariance(share=0.5)
    cls = torch.randn(8, 2, 16, requires_grad=True)
    half.loss(context(batch_of(random_maps(8, 2)), cls=cls), None).backward()
    assert cls.grad[..., :8].abs().sum() > 0
    assert cls.grad[..., 8:].abs().sum() == 0


def test_latent_options_are_checked():
    for options, message in (
        ({"kind": "l1"}, "kind"), ({"share": 0.0}, "share"), ({"beta": 0.0}, "beta"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            LatentEquivariance(**options)
    with pytest.raises(ValueError, match="no channel pairs"):
        LatentEquivariance().loss(context(batch_of(EYE[:2]), cls=torch.zeros(2, 2, 5)), None)
    with pytest.raises(ValueError, match="temp"):
        PeCLR(temp=0.0)
    with pytest.raises(ValueError, match="beta_ndc"):
        KeypointAgree(beta_ndc=0.0)
