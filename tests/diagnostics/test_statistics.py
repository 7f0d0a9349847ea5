import math

import pytest
import torch

from handmim.diagnostics.collapse import effective_rank, kl_nats
from handmim.objectives.base import entropy_nats
from handmim.objectives.keypoints import agreed_deviation, keypoint_diagnostics
from tests.objectives.keypoint_cases import batch_of, random_maps, seen_points

NUM = 256


def noise(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_views_agree_on_the_signal_and_not_on_their_noise():
    signal = 0.3 * noise(NUM, 10, seed=0)
    exact = agreed_deviation(signal, signal)
    assert exact.item() == pytest.approx(
        signal.var(dim=0, correction=0).mean().sqrt().item(), rel=1e-5
    )
    a, b = (signal + 0.5 * noise(NUM, 10, seed=seed) for seed in (1, 2))
    assert agreed_deviation(a, b).item() == pytest.approx(0.3, abs=0.03)
    chance = [
        agreed_deviation(noise(NUM, 10, seed=s), noise(NUM, 10, seed=100 + s)) for s in range(1, 9)
    ]
    assert max(chance) < 2 * (NUM * 10) ** -0.25
    assert agreed_deviation(signal, -signal) == 0
    assert agreed_deviation(signal[:1], signal[:1]) == 0
    assert agreed_deviation(signal + math.nan, signal).isnan()


@pytest.mark.parametrize("name", ["articulation", "source_std_ndc"])
def test_noise_of_each_view_adds_nothing_to_points_agree_on(name):
    """Points of a rigid template, and of one that is fixed in the source, under noise: the spread
    over the batch of one view alone would read above 0.1."""
    batch = batch_of(random_maps(NUM, 2))
    still = batch_of(torch.eye(2, 3).expand(NUM, 2, 2, 3))
    template = noise(8, 2, seed=3).expand(NUM, 2, 8, 2) * 0.4
    shaken = template + 0.1 * noise(NUM, 2, 8, 2, seed=4)
    bent = seen_points(batch, k=8)
    exact = keypoint_diagnostics(bent, batch)[f"keypoints/{name}"]
    noisy = keypoint_diagnostics(bent + 0.1 * noise(NUM, 2, 8, 2, seed=5), batch)[
        f"keypoints/{name}"
    ]
    assert keypoint_diagnostics(shaken, still)[f"keypoints/{name}"] < 0.06
    assert exact > 0.2
    assert noisy.item() == pytest.approx(exact.item(), rel=0.1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_rank_of_what_is_not_finite_is_nan(bad):
    features = noise(12, 4, seed=0)
    features[3, 1] = bad
    assert effective_rank(features).isnan()


def test_divergence_is_the_cross_entropy_without_the_targets_entropy():
    targets, logits = noise(5, 7, seed=0).softmax(dim=-1), noise(5, 7, seed=1)
    cross_entropy = -(targets * (logits / 0.1).log_softmax(dim=-1)).sum(dim=-1)
    found = kl_nats(targets, logits, 0.1)
    torch.testing.assert_close(found, cross_entropy - entropy_nats(targets))
    torch.testing.assert_close(kl_nats(targets, 0.1 * targets.log(), 0.1), torch.zeros(5))
    sharp = torch.eye(7)[:2]  # by hand: the answer is uniform over 7
    torch.testing.assert_close(
        kl_nats(sharp, torch.zeros(2, 7), 0.1), torch.full((2,), math.log(7))
    )
