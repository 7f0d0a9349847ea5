import math

import pytest
import torch

from handmim.diagnostics.probe import (
    Poses,
    class_accuracy,
    nearest,
    neighbour_poses,
    pose_errors,
)
from handmim.geometry.rotation import axis_angle_to_matrix


def test_neighbours_are_by_angle_about_the_mean_of_the_searched_set():
    base = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    order = nearest(torch.tensor([[10.0, 4.0]]), base, 4)
    assert order.tolist() == [[0, 1, 3, 2]]
    # what all have in common does not count: the shift moves no neighbour
    shifted = nearest(torch.tensor([[110.0, 54.0]]), base + torch.tensor([100.0, 50.0]), 4)
    assert torch.equal(shifted, order)
    with pytest.raises(ValueError, match=r"5 neighbours from 4 samples"):
        nearest(base, base, 5)


def test_a_neighbour_in_another_orientation_and_size_is_the_same_hand():
    g = torch.Generator().manual_seed(0)
    hand = torch.randn(21, 3, generator=g).double() * 0.05
    turned = hand @ axis_angle_to_matrix(torch.tensor([0.3, -0.9, 1.1]).double()).T * 1.4
    kp = torch.stack([torch.zeros(21, 2), torch.ones(21, 2)])
    train = Poses(kp, torch.stack([hand, turned]))
    both = torch.tensor([[0, 1]])
    mean = neighbour_poses(both, train)
    torch.testing.assert_close(mean.joints_m[0], hand, atol=1e-8, rtol=0)
    torch.testing.assert_close(mean.kp2d_ndc, torch.full((1, 21, 2), 0.5).double())
    metrics = pose_errors(mean, Poses(kp[:1], turned[None] * 0.7))
    assert metrics["pa_mpjpe_mm"] == pytest.approx(0.0, abs=1e-4)
    assert metrics["err2d_percent"] == pytest.approx(25 * math.sqrt(2), rel=1e-6)
    flat = neighbour_poses(both, Poses(kp, None))
    assert "pa_mpjpe_mm" not in pose_errors(flat, Poses(kp[:1], None))


def test_the_vote_is_by_number_then_by_nearness():
    classes = torch.tensor([0, 1, 1, 2])
    order = torch.tensor([[0, 1, 2], [0, 1, 3], [3, 1, 0]])
    assert class_accuracy(order, classes, torch.tensor([1, 0, 2])) == 1.0
    assert class_accuracy(order, classes, torch.tensor([0, 1, 2])) == pytest.approx(1 / 3)
    assert class_accuracy(order[:, :1], classes, torch.tensor([0, 0, 5])) == pytest.approx(2 / 3)
