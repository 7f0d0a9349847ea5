import math
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from handmim.geometry.crop import transform_points
from handmim.objectives.lejepa import SigReg, ViewMean, embeddings, epps_pulley
from tests.objectives.keypoint_cases import batch_of, context, random_maps

CONFIGS = Path(__file__).parents[2] / "configs" / "objective"
EYE = torch.eye(2, 3)


def gaussian(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def closed_form(x: np.ndarray) -> float:
    """n times the integral over all t, by Gaussian integrals."""
    n = len(x)
    pairs = np.exp(-0.5 * (x[:, None] - x) ** 2).sum() / n
    cross = math.sqrt(2.0) * np.exp(-(x**2) / 4).sum()
    return math.sqrt(2 * math.pi) * (pairs - cross + n / math.sqrt(3.0))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_statistic_is_the_integral_in_closed_form(seed):
    x = 1.3 * gaussian(40, seed=seed) + 0.2
    found = epps_pulley(x, num_knots=200, max_t=9.0)
    assert found.item() == pytest.approx(closed_form(x.numpy()), rel=1e-6)


def test_the_statistic_equals_complex_exponentials_summed_over_both_halves():
    x = gaussian(30, 4)
    t = np.linspace(-3.0, 3.0, 33)
    mean = np.exp(1j * t * x.numpy()[..., None]).mean(axis=0)  # [4, 33]
    normal = np.exp(-0.5 * t**2)
    want = 30 * np.trapezoid(np.abs(mean - normal) ** 2 * normal, t, axis=-1)
    np.testing.assert_allclose(epps_pulley(x).numpy(), want, rtol=1e-12)


@pytest.mark.parametrize("num", [4, 64])
def test_a_normal_sample_has_its_expected_value(num):
    # E |mean - phi|^2 = (1 - phi^2) / n; over all t: sqrt(2 pi) (1 - 1 / sqrt(3)) = 1.059
    t = np.linspace(-3.0, 3.0, 33)
    want = np.trapezoid((1 - np.exp(-(t**2))) * np.exp(-0.5 * t**2), t)
    assert want == pytest.approx(1.06, abs=0.02)
    assert epps_pulley(gaussian(num, 6000)).mean().item() == pytest.approx(want, rel=0.03)


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x + 0.3,
        lambda x: 0.7 * x,
        lambda x: 1.4 * x,
        lambda x: 0.0 * x,
        lambda x: x.sign() * -(1 - torch.special.erf(x.abs() / 2**0.5)).log() / 2**0.5,  # Laplace
        torch.sign,
    ],
)
def test_other_distributions_cost_more(change):
    x = gaussian(2000, 20)
    assert (epps_pulley(change(x)) > 3 * epps_pulley(x).mean()).all()


def test_the_gradient_is_that_of_the_value():
    x = gaussian(5, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: epps_pulley(x, num_knots=5), x)


def test_the_factor_may_be_a_constant():
    x = gaussian(10)
    torch.testing.assert_close(epps_pulley(x, num_samples=256), 25.6 * epps_pulley(x))


def context_of(cls: torch.Tensor, **more):
    ctx = context(batch_of(EYE.expand(*cls.shape[:2], 2, 3)), cls=cls, **more)
    ctx.heads = {"embedding": torch.nn.Identity()}
    return ctx


def value_of(objective, ctx, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return objective.loss(ctx, objective.predict(ctx))


def test_directions_are_unit_vectors_and_belong_to_the_step():
    cls = gaussian(500, 2, 8).float()
    objective, ctx = SigReg(), context_of(cls)
    assert value_of(objective, ctx).item() == value_of(objective, ctx).item()
    assert value_of(objective, ctx).item() != value_of(objective, ctx, seed=1).item()
    assert 0.5 < value_of(objective, ctx).item() < 2.0
    assert value_of(objective, context_of(2 * cls)).item() > 20


def test_a_low_rank_costs_though_every_channel_is_normal():
    cls = gaussian(500, 2, 1).float().expand(-1, -1, 8)
    assert value_of(SigReg(), context_of(cls)).item() > 20


def test_views_are_tested_one_by_one():
    """Else opposite offsets of two views would pass for a wider distribution."""
    cls, objective = gaussian(400, 2, 8).float(), SigReg()
    both = [value_of(objective, context_of(cls[:, [v]])).item() for v in (0, 1)]
    assert value_of(objective, context_of(cls)).item() == pytest.approx(sum(both) / 2, rel=1e-5)


def test_patches_of_a_view_count_together():
    patches = gaussian(50, 2, 9, 8).float()
    ctx = context_of(torch.zeros(50, 2, 8), patches=patches)
    as_classes = patches.transpose(1, 2).flatten(0, 1)  # [450, 2, 8]
    want = value_of(SigReg(), context_of(as_classes))
    torch.testing.assert_close(value_of(SigReg(of="patches"), ctx), want)


def test_shapes_of_points_are_those_of_articulation():
    maps = random_maps(64, 2, seed=3)
    hand = gaussian(64, 1, 6, 2).float().expand(-1, 2, -1, -1)
    one = gaussian(1, 1, 6, 2, seed=1).float().expand(64, 2, -1, -1)
    objective = SigReg(of="keypoints", num_samples=1)

    def cost(points):
        ctx = context(batch_of(EYE.expand(64, 2, 2, 3)), keypoints=points)
        return value_of(objective, ctx).item()

    rigid = cost(transform_points(maps, one))  # wherever the hand lies: all shapes alike
    t = np.linspace(-3.0, 3.0, 33)
    normal = np.exp(-0.5 * t**2)
    assert rigid == pytest.approx(np.trapezoid((1 - normal) ** 2 * normal, t), rel=1e-3)
    assert cost(transform_points(maps, hand)) != pytest.approx(rigid, rel=0.1)
    bent = one + 0.1 * hand
    assert cost(bent) < 0.5 * rigid


def with_local(ctx, local: torch.Tensor):
    ctx.tokens = ctx.tokens._replace(local_cls=local.flatten(0, 1))
    return ctx


def test_the_mean_of_whole_views_is_the_target_of_all():
    views = torch.tensor([[[1.0, 0.0], [3.0, 0.0]]])  # mean (2, 0)
    assert ViewMean().loss(context_of(views), views).item() == pytest.approx(0.5)
    ctx = with_local(context_of(views), torch.tensor([[[2.0, 2.0]]]))
    found = embeddings(ctx)
    assert found.shape == (1, 3, 2)
    # squares 1, 1 and 4 of three tokens with two channels
    assert ViewMean().loss(ctx, found).item() == pytest.approx(1.0)


def test_prediction_and_target_have_gradients():
    z = gaussian(3, 4, 2).requires_grad_()
    ViewMean().loss(context_of(z.detach()), z).backward()
    torch.testing.assert_close(z.grad.sum(dim=1), torch.zeros(3, 2, dtype=z.dtype))
    torch.testing.assert_close(z.grad, (z - z.mean(dim=1, keepdim=True)).detach() / 12)


def test_sigreg_keeps_embeddings_apart_that_prediction_alone_collapses():
    x = gaussian(64, 1, 6).float() + 0.3 * gaussian(64, 4, 6, seed=1).float()

    def trained(weight: float) -> torch.Tensor:
        torch.manual_seed(0)
        net = torch.nn.Linear(6, 6, bias=False)
        torch.nn.init.normal_(net.weight, std=0.02)  # nearly collapsed
        optimizer, sigreg = torch.optim.Adam(net.parameters(), lr=0.05), SigReg(of="embedding")
        for _ in range(60):
            z = net(x)
            ctx = context_of(z)
            loss = ViewMean().loss(ctx, z) + weight * sigreg.loss(ctx, z)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return net(x).detach()[:, 0]

    kept, lost = trained(0.1), trained(0.0)
    assert torch.linalg.svdvals(kept).min() / 64**0.5 > 0.5
    assert lost.std(dim=0).max() < 0.05


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("of", "pixels", r"of must be one of .*'pixels'"),
        ("num_slices", 0, "num_slices must be >= 1, got 0"),
        ("num_knots", 1, "num_knots must be >= 2, got 1"),
        ("max_t", 0.0, "max_t must be > 0"),
        ("num_samples", 0, "num_samples must be >= 1, got 0"),
        ("keypoint_std", 0.0, "keypoint_std must be > 0"),
    ],
)
def test_settings_out_of_range_are_named(setting, value, message):
    with pytest.raises(ValueError, match=message):
        SigReg(**{setting: value})


def test_both_objectives_bring_the_same_shared_head():
    heads = [
        yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())["heads"]
        for name in ("sigreg", "view_mean")
    ]
    assert heads[0] == heads[1]
