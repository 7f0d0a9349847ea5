"""The four losses on points and class tokens as terms: choices, needs, laws."""

import math

import pytest
import torch

from handmim.geometry.crop import invert, similarity
from handmim.losses import keypoint_agree, latent_equivariance, peclr
from handmim.losses.keypoint_align import Term
from handmim.types import ClassTargets, PretrainOutputs
from tests.losses.keypoint_cases import batch_of, outputs_of, random_maps, seen_points, some_hands

EYE = torch.eye(2, 3).expand(4, 2, 2, 3)


def test_parts_choose_what_counts():
    hands = some_hands()
    out = outputs_of(hands.joints + 0.1 * torch.randn_like(hands.joints))
    whole = Term()
    cost = {name: whole.part(name, out, hands.batch).item() for name in whole.weights}
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
        assert Term(parts=parts)(out, hands.batch).item() == pytest.approx(expected, rel=1e-5)
    no_disc = Term(disc="none")(out, hands.batch)
    assert no_disc.item() == pytest.approx(Term(parts="regularised")(out, hands.batch).item())


def test_a_predictor_is_matched_and_the_points_themselves_are_kept_from_collapse():
    hands = some_hands()
    bunched = torch.zeros_like(hands.joints)
    out = outputs_of(bunched, target=hands.joints)
    guessed = out._replace(predicted_keypoints_ndc=hands.joints)
    for name in ("spread", "repulsion", "variance"):
        assert Term().part(name, guessed, hands.batch) == Term().part(name, out, hands.batch) > 0
    assert Term().part("reg", guessed, hands.batch) < 1e-5 < Term().part("reg", out, hands.batch)
    assert Term().part("disc", guessed, hands.batch) < Term().part("disc", out, hands.batch)


def test_prototypes_are_asked_for_only_where_they_count():
    points = ("keypoints_ndc", "predicted_keypoints_ndc", "target_keypoints_ndc")
    assert Term().needs == points
    assert Term(disc="proto").needs == (*points, "keypoint_classes")
    assert Term(disc="proto", parts="reg").needs == points
    hands = some_hands()
    student, teacher = torch.zeros(24, 2, 8), torch.full((24, 2, 8), 1 / 8)
    out = outputs_of(hands.joints)._replace(keypoint_classes=ClassTargets(student, teacher))
    loss = Term(disc="proto", parts="disc", disc_weight=2.0)(out, hands.batch)
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
        ({"parts": "disc", "disc": "none"}, "leaves no loss"),
        ({"parts": "reg", "reg_weight": 0.0}, "no part with a weight"),
        ({"sigma_momentum": 2.0}, "sigma_momentum"),
    ],
)
def test_bad_values_say_where_to_change_them(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        Term(**options)
    assert "configs/loss/keypoint_align.yaml" in str(caught.value)


def test_moving_sigma_is_saved_with_the_term():
    hands = some_hands()
    term = Term(sigma_momentum=0.9)
    term(outputs_of(hands.joints), hands.batch)
    state = term.state_dict()
    assert state["sigma.average"] > 0
    Term(sigma_momentum=0.9).load_state_dict(state)
    assert not Term().state_dict()


@pytest.mark.parametrize("num_dims", [2, 3])
@pytest.mark.parametrize("b", [1, 3])
def test_the_whole_term_runs_on_any_batch_in_full_precision(num_dims, b):
    batch = batch_of(random_maps(b, 2), group=torch.zeros(b, dtype=torch.int64))
    points = seen_points(batch, d=num_dims).requires_grad_()
    term = Term(pairs="cross+same")
    plain = term(outputs_of(points), batch)
    plain.backward()
    assert points.grad.isfinite().all()
    with torch.autocast("cpu", torch.bfloat16):
        cast = term(outputs_of(points), batch)
    assert cast.item() == pytest.approx(plain.item(), rel=1e-5)


def test_the_class_token_follows_the_points_and_not_the_reverse():
    # Points with std sqrt(2)/3 per axis; the class token is .25 off on x only: smooth L1 with beta
    # .05 gives (.25 - .025) / 2.
    found = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]).expand(4, 2, 3, 2).clone()
    named = found + torch.tensor([0.25, 0.0])
    found.requires_grad_()
    named.requires_grad_()
    out = PretrainOutputs(keypoints_ndc=found, class_keypoints_ndc=named)
    term = keypoint_agree.Term(beta_ndc=0.05)
    loss = term(out, batch_of(EYE))
    loss.backward()
    assert loss.item() == pytest.approx(0.1125 / (math.sqrt(2) / 3), rel=1e-4)
    assert found.grad is None
    assert named.grad.abs().sum() > 0
    with pytest.raises(ValueError, match="class_keypoint"):
        term(out._replace(class_keypoints_ndc=named[:, :, :2]), batch_of(EYE))


def test_peclr_undoes_turns_about_the_points_own_mean():
    # Latents that turn with the picture: a view turned by -r shows them turned by -r.
    maps = similarity(torch.ones(8, 2), 6.28 * torch.rand(8, 2), torch.zeros(8, 2, 2))
    latents = torch.randn(8, 1, 5, 2)
    seen = latents @ invert(maps)[..., :2].mT
    back = peclr.undone(seen, maps)
    shapes = (latents - latents.mean(-2, True)).expand(-1, 2, -1, -1)
    torch.testing.assert_close(back - back.mean(-2, True), shapes, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(back.mean(-2), seen.mean(-2), atol=1e-5, rtol=1e-5)


def test_peclr_shifts_by_the_points_range_and_leaves_size_alone():
    # The source's centre lies at (.5, 0) of a view shifted by -.5: a quarter of the view's side.
    # Points range over 4 in x and 2 in y: they move back by 1 and 0.
    maps = similarity(torch.ones(1, 1), torch.zeros(1, 1), torch.tensor([[[-0.5, 0.0]]]))
    points = torch.tensor([[[[-2.0, 0.0], [2.0, 0.0], [0.0, 2.0]]]])
    torch.testing.assert_close(peclr.undone(points, maps), points - torch.tensor([1.0, 0.0]))
    double = similarity(torch.full((1, 1), 2.0), torch.zeros(1, 1), torch.zeros(1, 1, 2))
    torch.testing.assert_close(peclr.undone(points, double), points)


def test_peclr_contrasts_all_views_of_other_samples():
    # One latent shape for all, no augmentation: 2B - 1 candidates that look alike.
    points = torch.randn(1, 1, 5, 2).expand(4, 2, 5, 2)
    loss = peclr.Term()(PretrainOutputs(keypoints_ndc=points), batch_of(EYE))
    assert loss.item() == pytest.approx(math.log(7), rel=1e-4)
    batch = batch_of(random_maps(4, 2, scale=(1.0, 1.0)))
    turned = (torch.randn(4, 1, 5, 2) @ invert(batch.source_from_view)[..., :2].mT) * 3
    told = peclr.Term(temp=0.1)(PretrainOutputs(keypoints_ndc=turned), batch)
    untold = peclr.Term(temp=0.1)(PretrainOutputs(keypoints_ndc=turned), batch_of(EYE))
    assert told < untold
    zero = torch.zeros(4, 2, 5, 2, requires_grad=True)
    peclr.Term()(PretrainOutputs(keypoints_ndc=zero), batch).backward()
    assert zero.grad.isfinite().all()
    with pytest.raises(ValueError, match="in the plane"):
        peclr.Term()(PretrainOutputs(keypoints_ndc=torch.zeros(4, 2, 5, 3)), batch)


@pytest.mark.parametrize("kind", latent_equivariance.KINDS)
@pytest.mark.parametrize("with_scale", [False, True])
def test_latents_that_move_with_the_picture_cost_nothing(kind, with_scale):
    maps = random_maps(64, 3, general=True)
    batch = batch_of(maps)
    linear = maps[..., :2]
    if not with_scale:
        linear = linear / linear.det().abs().sqrt()[..., None, None]
    latents = 3 * torch.randn(64, 1, 8, 2)
    cls = (latents @ linear.inverse().mT).flatten(2)
    term = latent_equivariance.Term(kind=kind, with_scale=with_scale)
    assert term(PretrainOutputs(cls=cls), batch) < 1e-4
    still = (0.5 * torch.randn(64, 1, 16)).expand(64, 3, 16)
    assert term(PretrainOutputs(cls=still), batch) > 0.05


def test_latents_of_one_value_are_punished_and_a_share_leaves_the_rest_free():
    maps = similarity(torch.ones(8, 2), torch.zeros(8, 2), torch.zeros(8, 2, 2))
    same = torch.ones(8, 2, 16, requires_grad=True)
    term = latent_equivariance.Term(min_std=0.5, variance_weight=2.0)
    loss = term(PretrainOutputs(cls=same), batch_of(maps))
    loss.backward()
    assert loss.item() == pytest.approx(2 * 0.25, rel=1e-2)
    assert same.grad.isfinite().all()
    half = latent_equivariance.Term(share=0.5)
    cls = torch.randn(8, 2, 16, requires_grad=True)
    half(PretrainOutputs(cls=cls), batch_of(random_maps(8, 2))).backward()
    assert cls.grad[..., :8].abs().sum() > 0
    assert cls.grad[..., 8:].abs().sum() == 0


def test_latent_options_are_checked():
    for options, message in (
        ({"kind": "l1"}, "kind"), ({"share": 0.0}, "share"), ({"beta": 0.0}, "beta"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            latent_equivariance.Term(**options)
    with pytest.raises(ValueError, match="no channel pairs"):
        latent_equivariance.Term()(PretrainOutputs(cls=torch.zeros(2, 2, 5)), batch_of(EYE[:2]))
    with pytest.raises(ValueError, match="temp"):
        peclr.Term(temp=0.0)
    with pytest.raises(ValueError, match="beta_ndc"):
        keypoint_agree.Term(beta_ndc=0.0)
