import numpy as np
import pytest
import torch

from handmim.geometry.camera import covered_cells


def brute_force(points, faces, size_hw):
    """Centres on the same side of all three edges, cell by cell."""
    h, w = size_hw
    px, py = np.meshgrid(np.arange(w) + 0.5, np.arange(h) + 0.5)
    seen = np.zeros((len(points), h, w), bool)
    for i, cloud in enumerate(points):
        for a, b, c in cloud[faces]:
            sides = [
                (q[0] - p[0]) * (py - p[1]) - (q[1] - p[1]) * (px - p[0])
                for p, q in ((a, b), (b, c), (c, a))
            ]
            seen[i] |= np.all([s >= 0 for s in sides], axis=0)
            seen[i] |= np.all([s <= 0 for s in sides], axis=0)
    return seen


@pytest.mark.parametrize("size_hw", [(12, 12), (9, 17), (1, 5)])
@pytest.mark.parametrize("spread", [1.5, 30.0])
def test_cells_are_those_whose_centres_lie_in_a_triangle(size_hw, spread):
    rng = np.random.default_rng(0)
    centre = rng.uniform(-2, np.array(size_hw[::-1]) + 2, (3, 20, 1, 2))
    points = (centre + rng.normal(0, spread, (3, 20, 3, 2))).reshape(3, 60, 2)
    faces = np.arange(60).reshape(20, 3)
    if spread > 10:
        faces = faces[:2]  # larger than the grid, which would else be full
    found = covered_cells(torch.from_numpy(points), torch.from_numpy(faces), size_hw).numpy()
    expected = brute_force(points, faces, size_hw)
    assert 0 < expected.mean() < 1
    assert np.array_equal(found, expected)


def test_one_triangle_by_hand_and_corners_that_are_hidden():
    points = torch.tensor([[[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [9.0, 9.0]]])
    faces = torch.tensor([[0, 1, 2]])
    expected = torch.ones(4, 4, dtype=torch.bool).tril().flip(0)
    assert torch.equal(covered_cells(points, faces, (4, 4))[0], expected)
    assert torch.equal(covered_cells(points, faces.flip(1), (4, 4))[0], expected)  # either side
    shown = torch.tensor([[True, True, False, True]])
    assert not covered_cells(points, faces, (4, 4), shown).any()
    shown = torch.tensor([[True, True, True, False]])
    assert torch.equal(covered_cells(points, faces, (4, 4), shown)[0], expected)


def test_nothing_in_sight_covers_nothing():
    faces = torch.tensor([[0, 1, 2]])
    for points in ([[9.0, 9], [12, 9], [9, 12]], [[-9.0, 1], [-1, 1], [-3, 2]], [[1.0, 1]] * 3):
        assert not covered_cells(torch.tensor([points]), faces, (4, 4)).any()
    far = torch.tensor([[[-1e30, -1e30], [1e30, -1e30], [0.0, 1e30]]])
    assert covered_cells(far, faces, (4, 4)).all()
