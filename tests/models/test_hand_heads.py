"""Laws of every head that regresses a hand model."""

from functools import partial

import pytest
import torch

from handmim.hand.crop_camera import CropCamera
from handmim.hand.model import HandModel
from handmim.models.heads.hand_head import DecoderHead, HandHead, IterativeHead, PlainHead
from handmim.models.heads.pymaf import PyMafHead
from handmim.types import HandOutputs, Intrinsics, Tokens
from synthesis.mano import mirrored
from tests.models.head_cases import DIM, SMALL_PYMAF, tokens

IMG_PX = 64
DECODER = {"num_layers": 2, "width": 16, "num_heads": 2, "dropout": 0.0}
SMALL = {"hidden_dim": 16, "dropout": 0.0}
# name: constructor and the number of estimates, the mean hand among them
HEADS = {
    "pymaf": (partial(PyMafHead, **SMALL_PYMAF), 4),
    "iterative": (partial(IterativeHead, **SMALL), 4),
    "iterative_cls": (partial(IterativeHead, features="cls", num_steps=2, **SMALL), 3),
    "plain": (partial(PlainHead, **SMALL), 2),
    "linear": (partial(PlainHead, num_hidden=0, features="cls", dropout=0.0), 2),
    "decoder": (partial(DecoderHead, **DECODER), 2),
    "decoder_again": (partial(DecoderHead, num_queries=3, num_steps=2, **DECODER), 3),
    "decoder_layers": (
        partial(DecoderHead, num_steps=2, supervise_layers=True, **DECODER),
        5,
    ),
}
every_head = pytest.mark.parametrize("name", list(HEADS))


def intrinsics(b: int = 2) -> Intrinsics:
    """Crops of which the last has no intrinsics."""
    K = torch.tensor([[300.0, 0.0, 30.0], [0.0, 310.0, 35.0], [0.0, 0.0, 1.0]])
    known = torch.ones(b, dtype=torch.bool)
    known[1:] = False
    return Intrinsics(K.expand(b, 3, 3), known, IMG_PX)


def far_from_zero(head: HandHead) -> HandHead:
    """Updates as large as those of a trained head, so that every part has its say."""
    with torch.no_grad():
        for name, p in head.named_parameters():
            if name.endswith("out.weight") and p.shape[0] == head.state_dim:
                p.normal_(std=0.05)
    return head


@pytest.fixture
def make(hand):
    def build(name: str, **options: object) -> HandHead:
        torch.manual_seed(0)
        return far_from_zero(HEADS[name][0](DIM, hand, **options)).eval()

    return build


def fields(out: HandOutputs) -> list[torch.Tensor]:
    return [f for step in out.steps for f in step if f is not None]


def one(t: Tokens, i: int) -> Tokens:
    return Tokens(t.cls[i : i + 1], t.patches[i : i + 1], t.grid_hw)


@pytest.mark.parametrize("camera", ["weak", "pinhole"])
def test_the_mean_hand_is_posed_once_for_all_and_seen_by_each_camera(hand, camera, monkeypatch):
    head = PlainHead(DIM, hand, camera=camera)
    head.set_mean_hand(hand.mean_rotmats.float(), torch.tensor([0.1, -0.02, 0.03]))
    state, mean = head.start(3, intrinsics(3))
    expected = head.decode(head.mean_state(3), intrinsics(3))
    torch.testing.assert_close(state, head.mean_state(3))
    for name in mean._fields:
        torch.testing.assert_close(getattr(mean, name), getattr(expected, name))
    sizes = []
    pose = head.hand.forward
    monkeypatch.setattr(head.hand, "forward", lambda r, b: (sizes.append(len(r)), pose(r, b))[1])
    head(tokens(3), intrinsics(3))
    assert sizes == [1, 3]


@every_head
@pytest.mark.parametrize("camera", ["weak", "pinhole"])
@pytest.mark.parametrize(("b", "known"), [(1, True), (1, False), (2, True), (2, False)])
def test_all_estimates_are_whole(make, name, camera, b, known):
    out = make(name, camera=camera)(tokens(b), intrinsics(b) if known else None)
    assert len(out.steps) == HEADS[name][1]
    for step in out.steps:
        shapes = {k: tuple(v.shape) for k, v in step._asdict().items() if v is not None}
        placed = {} if camera == "weak" else {"transl_cam_m": (b, 3), "is_metric": (b,)}
        assert shapes == {
            "rotmats": (b, 16, 3, 3),
            "betas": (b, 10),
            "cam": (b, 3),
            "verts_root_m": (b, 778, 3),
            "joints_root_m": (b, 21, 3),
            "verts_crop_ndc": (b, 778, 2),
            "joints_crop_ndc": (b, 21, 2),
            **placed,
        }
        assert all(v.isfinite().all() for v in step if v is not None)
    if camera == "pinhole":
        assert out.steps[-1].is_metric.tolist() == [known, False][:b]
        assert bool(out.steps[-1].transl_cam_m[0].any()) is known


@every_head
def test_where_the_hand_stands_follows_from_camera_and_lens(make, name):
    estimate = make(name, camera="pinhole")(tokens(1), intrinsics(1)).steps[-1]
    expected, _ = CropCamera("pinhole", 8.0).root_translation(estimate.cam, intrinsics(1))
    torch.testing.assert_close(estimate.transl_cam_m, expected)
    blind = make(name, camera="weak")(tokens(1), intrinsics(1)).steps[-1]
    # Heads that look where the mesh lands see other places through another camera.
    if name != "pymaf":
        torch.testing.assert_close(blind.joints_root_m, estimate.joints_root_m)
    assert (blind.joints_crop_ndc - estimate.joints_crop_ndc).abs().max() > 1e-4


@every_head
def test_refinement_starts_at_the_mean_hand(hand, name):
    torch.manual_seed(0)
    head = HEADS[name][0](DIM, hand)
    R = torch.linalg.qr(torch.randn(16, 3, 3, generator=torch.Generator().manual_seed(3)))[0]
    R = R * torch.linalg.det(R)[:, None, None]
    cam = torch.tensor([0.1, -0.02, 0.03])
    head.set_mean_hand(R, cam)
    for seed in (0, 1):
        steps = head.eval()(tokens(seed=seed)).steps
        torch.testing.assert_close(steps[0].rotmats, R.expand(2, -1, -1, -1))
        torch.testing.assert_close(steps[0].cam, cam.expand(2, -1))
        assert steps[0].betas.abs().max() == 0
        moved = (steps[-1].joints_root_m - steps[0].joints_root_m).abs().max()
        assert 0 < moved < 0.02, "hardly leaves it before training"


@every_head
def test_gradient_reaches_every_parameter_and_the_tokens(make, name):
    head = make(name).train()
    t = tokens()
    t = t._replace(cls=t.cls.requires_grad_(), patches=t.patches.requires_grad_())
    out = head(t)
    sum(
        s.joints_root_m.square().sum() + s.verts_crop_ndc.square().sum() for s in out.steps
    ).backward()
    idle = [n for n, p in head.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert idle == []
    assert bool(t.cls.grad.any())
    assert (t.patches.grad is not None) is (name not in ("iterative_cls", "linear"))


@every_head
def test_tokens_matter_where_they_should(make, name):
    head, t = make(name), tokens()

    def moved(other: Tokens) -> bool:
        a, b = head(t).steps[-1].rotmats, head(other).steps[-1].rotmats
        return bool((a - b).abs().max() > 1e-5)

    assert moved(t._replace(cls=t.cls + torch.randn(DIM)))
    sees_patches = name not in ("iterative_cls", "linear")
    assert moved(t._replace(patches=t.patches + torch.randn(DIM))) is sees_patches
    # Without positions of their own, only heads that know places tell orders apart.
    assert moved(t._replace(patches=t.patches.flip(1))) is (name == "pymaf")


@every_head
def test_a_image_alone_is_answered_as_in_a_batch_and_every_time(make, name):
    head, t = make(name, camera="pinhole"), tokens(3)
    whole, again = head(t, intrinsics(3)), head(t, intrinsics(3))
    assert all(torch.equal(a, b) for a, b in zip(fields(whole), fields(again), strict=True))
    for i in range(3):
        K, known, img_px = intrinsics(3)
        alone = head(one(t, i), Intrinsics(K[i : i + 1], known[i : i + 1], img_px))
        for a, b in zip(fields(alone), fields(whole), strict=True):
            torch.testing.assert_close(a, b[i : i + 1], atol=2e-5, rtol=1e-4)


@every_head
def test_geometry_stays_fp32_under_autocast(make, name):
    head = make(name).train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = head(tokens())
    assert {f.dtype for f in fields(low)} == {torch.float32}
    estimate = low.steps[-1].rotmats
    eye = torch.eye(3).expand_as(estimate)
    torch.testing.assert_close(estimate @ estimate.mT, eye, atol=1e-5, rtol=0)
    low.steps[-1].verts_root_m.sum().backward()
    full = make(name)(tokens()).steps[-1]
    assert (low.steps[-1].joints_root_m - full.joints_root_m).abs().max() < 5e-3


@every_head
def test_weights_carry_everything(make, name):
    head = make(name, standardise_cls=True)
    head.set_mean_hand(head.hand.mean_rotmats.float().flip(0), torch.tensor([0.2, 0.0, 0.1]))
    head.set_cls_statistics(torch.randn(DIM), torch.rand(DIM) + 0.5)
    torch.manual_seed(5)
    other = HEADS[name][0](DIM, head.hand, standardise_cls=True).eval()
    assert not torch.equal(other(tokens()).steps[-1].cam, head(tokens()).steps[-1].cam)
    other.load_state_dict(head.state_dict())
    for a, b in zip(fields(other(tokens())), fields(head(tokens())), strict=True):
        assert torch.equal(a, b)


@every_head
@pytest.mark.parametrize("grid", [(6, 6), (3, 5)])
def test_other_grids_of_tokens_are_taken(make, name, grid):
    estimate = make(name)(tokens(grid=grid)).steps[-1]
    assert estimate.verts_root_m.isfinite().all()


@every_head
def test_a_standardised_class_token_ignores_what_all_images_share(make, name):
    head = make(name, standardise_cls=True)
    t = tokens()
    before = head(t).steps[-1].rotmats
    shared, spread = torch.linspace(-5, 5, DIM), torch.linspace(0.5, 3, DIM)
    head.set_cls_statistics(shared, spread)
    after = head(t._replace(cls=t.cls * spread + shared)).steps[-1].rotmats
    torch.testing.assert_close(after, before)
    assert (head(t).steps[-1].rotmats - before).abs().max() > 1e-5


@every_head
def test_left_hands_are_refused(hand_arrays, name):
    with pytest.raises(ValueError, match="heads regress right hands"):
        HEADS[name][0](DIM, HandModel(mirrored(hand_arrays)))


@pytest.mark.parametrize(
    ("name", "options", "word"),
    [
        ("iterative", {"features": "patch"}, "features"),
        ("iterative", {"num_steps": 0}, "num_steps"),
        ("iterative", {"activation": "relu"}, "activation"),
        ("plain", {"features": "patch"}, "features"),
        ("plain", {"num_hidden": -1}, "num_hidden"),
        ("plain", {"camera": "fisheye"}, "camera"),
        ("decoder", {"num_queries": 0}, "num_queries"),
        ("decoder", {"num_layers": 0}, "num_layers"),
        ("decoder", {"num_steps": 0}, "num_steps"),
        ("decoder", {"num_heads": 3}, "width must be a multiple of num_heads, got 16 and 3"),
        ("decoder", {"num_heads": 0}, "num_heads"),
        ("decoder", {"scale0_per_m": 0.0}, "scale0_per_m"),
    ],
)
def test_bad_settings_are_named(make, name, options, word):
    with pytest.raises(ValueError, match=word):
        make(name, **options)


@pytest.mark.parametrize(("detach", "trains_earlier"), [(False, True), (True, False)])
def test_feedback_carries_a_gradient_unless_detached(make, detach, trains_earlier):
    """Through the last step alone, an update sees itself once; through all, three times."""
    head = make("iterative", detach=detach)
    bias = head.update.out.bias
    last = head(tokens()).steps[-1]
    (grad,) = torch.autograd.grad(last.cam.sum(), bias)
    # d cam / d bias of the camera's own numbers: 1 per sample and step that carries a gradient,
    # and what the bias does through the state that the next step sees.
    direct = torch.full((3,), 2.0)
    same = bool(torch.allclose(grad[-3:], direct, atol=1e-6))
    assert same is not trains_earlier


def test_one_update_is_applied_again_and_again(make, hand):
    """Steps of an iterative head are steps of one map: two heads of T and T + 1 steps agree."""
    three = make("iterative")
    four = IterativeHead(DIM, hand, num_steps=4, **SMALL).eval()
    four.load_state_dict(three.state_dict())
    a, b = three(tokens()).steps, four(tokens()).steps
    for i in range(4):
        assert torch.equal(a[i].rotmats, b[i].rotmats)
    assert (b[4].rotmats - b[3].rotmats).abs().max() > 1e-5


def test_estimates_after_layers_end_in_the_same_answer(make):
    last = make("decoder_again")
    layers = make("decoder_again", supervise_layers=True)
    layers.load_state_dict(last.state_dict())
    a, b = last(tokens()).steps, layers(tokens()).steps
    assert (len(a), len(b)) == (3, 5)
    for round_end, estimate in zip(b[::2], a, strict=True):  # what is fed back is the last layer's
        torch.testing.assert_close(round_end.rotmats, estimate.rotmats)
    assert (b[1].rotmats - b[2].rotmats).abs().max() > 1e-5


def test_decoders_start_again_from_their_own_answer(make, hand):
    once = make("decoder")
    twice = DecoderHead(DIM, hand, num_steps=2, **DECODER).eval()
    twice.load_state_dict(once.state_dict())
    estimate = twice(tokens(1)).steps
    # One more round from the first estimate as the mean hand is the second estimate.
    torch.testing.assert_close(once(tokens(1)).steps[-1].cam, estimate[1].cam)
    assert (estimate[2].rotmats - estimate[1].rotmats).abs().max() > 1e-5
    once.mean_state = lambda b: once_state(twice, b)  # type: ignore[method-assign]
    torch.testing.assert_close(once(tokens(1)).steps[-1].rotmats, estimate[2].rotmats)


def once_state(head: DecoderHead, b: int) -> torch.Tensor:
    """[B, S] the state after the first round."""
    mean = head.mean_state(b)
    t = tokens(b)
    context = head.embed_tokens(torch.cat([t.cls[:, None], t.patches], dim=1))
    return mean + head.updates(0, context, mean, head.decode(mean))[-1]


@pytest.mark.parametrize("name", ["iterative", "plain", "decoder"])
def test_dropout_is_only_in_training(make, name):
    head = make(name, dropout=0.5)
    assert torch.equal(head(tokens()).steps[-1].rotmats, head(tokens()).steps[-1].rotmats)
    head.train()
    assert not torch.equal(head(tokens()).steps[-1].rotmats, head(tokens()).steps[-1].rotmats)
