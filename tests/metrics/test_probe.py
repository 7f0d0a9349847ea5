import pytest
import torch

from handmim.metrics.probe import joint_probe, ridge_probe


def test_ridge_recovers_a_linear_map_and_ignores_noise_features():
    g = torch.Generator().manual_seed(0)
    x, w = torch.randn(300, 8, generator=g), torch.randn(8, 3, generator=g)
    y = x @ w + 2.0
    noisy = torch.cat([5 * x + 1, torch.randn(300, 4, generator=g)], dim=1)
    pred, penalty = ridge_probe(noisy[:200], y[:200], noisy[200:])
    assert (pred - y[200:]).abs().mean() < 0.05
    assert penalty == 1.0


def test_pure_noise_is_predicted_by_the_mean():
    g = torch.Generator().manual_seed(0)
    x, y = torch.randn(200, 150, generator=g), torch.randn(200, 1, generator=g)
    pred, penalty = ridge_probe(x[:160], y[:160], x[160:])
    assert penalty >= 1e3
    assert pred.std() < 0.4
    with pytest.raises(ValueError, match=">= 10"):
        ridge_probe(x[:5], y[:5], x)


def test_joint_probe_reports_units():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(400, 6, generator=g)
    kp = (x @ torch.randn(6, 42, generator=g)).unflatten(1, (21, 2)) * 0.1
    joints = (x @ torch.randn(6, 63, generator=g)).unflatten(1, (21, 3)) * 0.02
    figures = joint_probe(x[:300], kp[:300], joints[:300], x[300:], kp[300:], joints[300:])
    assert figures["err2d_percent"] < 0.5
    assert figures["mpjpe_mm"] < 2
    assert figures["pck10"] == 1.0
    constant = torch.ones(400, 6) + 1e-6 * x
    worse = joint_probe(
        constant[:300] * 0, kp[:300], joints[:300], constant[300:] * 0, kp[300:], joints[300:]
    )
    # 10 % of ndc deviation is a few per cent of the side, which spans 2
    true = (kp[300:] - kp[:300].mean(0)).norm(dim=-1).mean().item() / 2 * 100
    assert worse["err2d_percent"] == pytest.approx(true, rel=1e-3)
    assert worse["pa_mpjpe_mm"] <= worse["mpjpe_mm"]
