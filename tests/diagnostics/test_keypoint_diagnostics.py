import pytest
import torch

from handmim.objectives.base import Targets
from handmim.objectives.keypoints import keypoint_diagnostics
from tests.objectives.keypoint_cases import batch_of, random_maps, seen_points


def of(points: torch.Tensor, batch) -> dict[str, float]:
    return {k.split("/")[1]: v.item() for k, v in keypoint_diagnostics(points, batch).items()}


@pytest.mark.parametrize("d", [2, 3])
def test_true_points_are_diagnosed_as_alive(d):
    warp = 0.08 * torch.randn(16, 2, 2, 4, 4, generator=torch.Generator().manual_seed(3))
    batch = batch_of(random_maps(16, 2), warp)
    found = of(seen_points(batch, d=d), batch)
    assert found["disagreement_ndc"] < 1e-4
    assert found["retrieval"] == 1.0
    for name in ("spread_ndc", "view_std_ndc", "source_std_ndc", "articulation"):
        assert found[name] > 0.1
    assert abs(found["cosine"]) < 0.5


def test_each_template_shows_in_its_own_number():
    maps = random_maps(16, 2)
    batch = batch_of(maps)
    template = torch.rand(6, 2) - 0.5
    in_view = of(template.expand(16, 2, 6, 2), batch)
    assert in_view["view_std_ndc"] == pytest.approx(0.0, abs=1e-6)
    assert in_view["disagreement_ndc"] > 0.1
    eye = batch_of(torch.eye(2, 3).expand(16, 2, 2, 3))
    rigid = (template @ random_maps(16, 1)[..., :2].mT).expand(16, 2, 6, 2)
    locked = of(rigid, eye)
    assert locked["articulation"] < 1e-3
    assert min(locked["view_std_ndc"], locked["source_std_ndc"], locked["spread_ndc"]) > 0.05
    spot = of(torch.zeros(16, 2, 6, 2), eye)
    assert spot["spread_ndc"] == 0.0
    assert all(torch.isfinite(torch.tensor(v)) for v in spot.values())


def test_cosine_and_disagreement_match_hand_values():
    # Two samples whose shapes are at right angles; view b is (0.3, 0.4) off.
    batch = batch_of(torch.eye(2, 3).expand(2, 2, 2, 3))
    shapes = torch.tensor([[[1.0, 0], [-1, 0], [0, 0]], [[0, 1.0], [0, -1], [0, 0]]])
    points = torch.stack([shapes, shapes + torch.tensor([0.3, 0.4])], dim=1)
    found = of(points, batch)
    assert found["cosine"] == pytest.approx(0.0, abs=1e-6)
    assert found["disagreement_ndc"] == pytest.approx(0.5, rel=1e-5)
    one = of(points[:1], batch_of(torch.eye(2, 3).expand(1, 2, 2, 3)))
    assert one["retrieval"] == 1.0
    assert one["cosine"] == pytest.approx(0.0, abs=1e-6)


def test_entropies_of_a_large_batch_are_of_rows_from_all_of_it():
    """A half of uniform rows, a half of certain ones: 300 rows, of which 75 are looked at."""
    probs = torch.cat([torch.full((150, 4), 0.25), torch.eye(4)[:1].expand(150, 4)])
    found = Targets(probs).diagnostics()
    assert found["targets/entropy_of_each"].item() == pytest.approx(0.5, abs=0.02)
    assert Targets(probs[:3]).diagnostics()["targets/entropy_of_each"].item() == pytest.approx(1.0)
