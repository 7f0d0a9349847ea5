import pytest
import torch

from handmim.diagnostics.probe import Poses, joint_probe, mean_pose, pose_errors, ridge


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_ridge_recovers_a_linear_map_and_ignores_noise_features():
    g = generator()
    x, w = torch.randn(300, 8, generator=g), torch.randn(8, 3, generator=g)
    y = x @ w + 2.0
    noisy = torch.cat([5 * x + 1, torch.randn(300, 4, generator=g)], dim=1)
    ((pred, penalty),) = ridge(noisy[:200], [y[:200]], noisy[200:])
    assert (pred - y[200:]).abs().mean() < 0.05
    assert penalty == 1.0


def test_ridge_solves_the_normal_equations_of_standardised_features():
    g = generator()
    x, y = torch.randn(50, 4, generator=g).double(), torch.randn(50, 2, generator=g).double()
    ((pred, penalty),) = ridge(x, [y], x)
    z = (x - x.mean(0)) / (x.std(0) + 1e-8)
    weight = torch.linalg.solve(
        z.T @ z + penalty * torch.eye(4, dtype=torch.float64), z.T @ (y - y.mean(0))
    )
    torch.testing.assert_close(pred, z @ weight + y.mean(0))


def test_pure_noise_is_predicted_by_the_mean():
    g = generator()
    x, y = torch.randn(200, 150, generator=g), torch.randn(200, 1, generator=g)
    ((pred, penalty),) = ridge(x[:160], [y[:160]], x[160:])
    assert penalty >= 1e3
    assert pred.std() < 0.4
    with pytest.raises(ValueError, match=">= 10"):
        ridge(x[:5], [y[:5]], x)


def test_joint_probe_reports_units():
    g = generator()
    x = torch.randn(400, 6, generator=g)
    kp = (x @ torch.randn(6, 42, generator=g)).unflatten(1, (21, 2)) * 0.1
    joints = (x @ torch.randn(6, 63, generator=g)).unflatten(1, (21, 3)) * 0.02
    train, test = Poses(kp[:300], joints[:300]), Poses(kp[300:], joints[300:])
    metrics = joint_probe(x[:300], train, x[300:], test)
    assert metrics["err2d_percent"] < 0.5
    assert metrics["mpjpe_mm"] < 2
    assert metrics["pck10"] == 1.0
    # features that say nothing give the mean hand
    blind = joint_probe(torch.zeros(300, 6), train, torch.zeros(100, 6), test)
    assert blind == pytest.approx(mean_pose(train, test))
    # 10 % of ndc deviation is a few per cent of the side, which spans 2
    true = (kp[300:] - kp[:300].mean(0)).norm(dim=-1).mean().item() / 2 * 100
    assert blind["err2d_percent"] == pytest.approx(true, rel=1e-3)
    assert blind["pa_mpjpe_mm"] <= blind["mpjpe_mm"]
    flat = joint_probe(x[:300], Poses(kp[:300], None), x[300:], test)
    assert set(flat) == {"err2d_percent", "pck10"}


def test_metrics_of_a_known_offset():
    g = generator()
    kp, joints = torch.rand(5, 21, 2, generator=g), torch.rand(5, 21, 3, generator=g) * 0.1
    off = pose_errors(Poses(kp + torch.tensor([0.1, 0.0]), joints + 0.003), Poses(kp, joints))
    assert off["err2d_percent"] == pytest.approx(5.0, rel=1e-4)  # of a side of 2
    assert off["pck10"] == 1.0
    assert off["mpjpe_mm"] == pytest.approx(3 * 3**0.5, rel=1e-4)
    assert off["pa_mpjpe_mm"] == pytest.approx(0.0, abs=1e-4)
    far = pose_errors(Poses(kp + torch.tensor([0.21, 0.0]), None), Poses(kp, joints))
    assert far["pck10"] == 0.0
