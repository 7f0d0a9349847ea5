import math

import pytest
import torch

from handmim.geometry.camera import fit_weak, project_weak
from handmim.models.heads.direct import DirectHead
from handmim.types import Tokens


def tokens(b=3, d=8, n=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    return Tokens(torch.randn(b, d, generator=g), torch.randn(b, n, d, generator=g), (2, 2))


def test_before_training_the_answer_is_nearly_the_mean():
    head = DirectHead(8)
    mean_3d = torch.randn(21, 3) * 0.05
    mean_3d -= mean_3d[9].clone()
    mean_2d = torch.randn(21, 2)
    head.set_mean_joints(mean_3d, mean_2d)
    start, estimate = head(tokens()).steps
    torch.testing.assert_close(start.joints_root_m[1], mean_3d)
    torch.testing.assert_close(start.joints_crop_ndc[2], mean_2d)
    assert (estimate.joints_root_m - start.joints_root_m).abs().max() < 5e-3
    assert (estimate.joints_crop_ndc - start.joints_crop_ndc).abs().max() < 5e-2
    assert estimate.verts_root_m is None


def test_outputs_are_in_units_and_relative_to_the_root():
    head = DirectHead(8, unit_m=0.1)
    with torch.no_grad():
        head.out.weight.zero_()
        head.out.bias.zero_()
        head.out.bias.view(21, 5)[4] = torch.tensor([1.0, 2.0, 3.0, 0.5, -0.5])
        head.out.bias.view(21, 5)[9, 2] = 1.0  # moving the root moves every other joint back
    estimate = head(tokens(b=1)).steps[-1]
    torch.testing.assert_close(estimate.joints_root_m[0, 4], torch.tensor([0.1, 0.2, 0.2]))
    torch.testing.assert_close(estimate.joints_root_m[0, 0], torch.tensor([0.0, 0.0, -0.1]))
    assert estimate.joints_root_m[0, 9].abs().max() == 0
    torch.testing.assert_close(estimate.joints_crop_ndc[0, 4], torch.tensor([0.5, -0.5]))


@pytest.mark.parametrize(("features", "sees_patches"), [("cls", False), ("cls_patch", True)])
def test_features_are_those_that_were_asked_for(features, sees_patches):
    head = DirectHead(8, features=features, hidden_dim=6)
    seen = tokens()
    other = seen._replace(patches=seen.patches + torch.randn(1, 1, 8))
    a, b = (head(t).steps[-1].joints_root_m for t in (seen, other))
    assert torch.equal(a, b) is not sees_patches
    rotated = seen._replace(patches=seen.patches.flip(1))  # only their mean is looked at
    torch.testing.assert_close(head(rotated).steps[-1].joints_root_m, a)
    moved = seen._replace(cls=tokens(seed=1).cls)
    assert not torch.equal(head(moved).steps[-1].joints_root_m, a)


def test_the_mean_belongs_to_the_weights():
    head = DirectHead(8)
    head.set_mean_joints(torch.full((21, 3), 0.02), torch.full((21, 2), 0.3))
    other = DirectHead(8)
    other.load_state_dict(head.state_dict())
    assert float(other.mean_joints_crop_ndc[0, 0]) == pytest.approx(0.3)
    assert float(other.mean_joints_root_m[0, 0]) == pytest.approx(0.02)


def test_dropout_is_only_in_training():
    head = DirectHead(8, dropout=0.5)
    seen = tokens()
    assert not torch.equal(head(seen).steps[-1][0], head(seen).steps[-1][0])
    head.eval()
    assert torch.equal(head(seen).steps[-1][0], head(seen).steps[-1][0])


def test_wrong_settings_say_where():
    with pytest.raises(ValueError, match="features must be one of"):
        DirectHead(8, features="patch")
    with pytest.raises(ValueError, match="unit_m must be > 0"):
        DirectHead(8, unit_m=0.0)
    with pytest.raises(ValueError, match="coords must be one of"):
        DirectHead(8, coords="2d")
    with pytest.raises(ValueError, match="scale_ndc_per_m must be > 0"):
        DirectHead(8, coords="25d").set_mean_scale(0.0)


def test_the_default_has_the_weights_and_answers_it_always_had():
    torch.manual_seed(0)
    head = DirectHead(8)
    shapes = {name: tuple(v.shape) for name, v in head.state_dict().items()}
    assert shapes == {
        "body.0.weight": (16,),
        "body.0.bias": (16,),
        "out.weight": (105, 16),
        "out.bias": (105,),
        "mean_joints_root_m": (21, 3),
        "mean_joints_crop_ndc": (21, 2),
    }
    t = tokens()
    seen = torch.cat([t.cls, t.patches.mean(dim=1)], dim=-1)
    delta = head.out(torch.nn.functional.layer_norm(seen, (16,))).unflatten(1, (21, 5))
    estimate = head(t).steps[-1]
    expected = 0.1 * (delta[..., :3] - delta[:, 9:10, :3])
    torch.testing.assert_close(estimate.joints_root_m, expected)
    torch.testing.assert_close(estimate.joints_crop_ndc, delta[..., 3:])


def test_25d_agrees_with_itself_in_the_image():
    head = DirectHead(8, coords="25d")
    head.set_mean_joints(torch.randn(21, 3) * 0.05, torch.randn(21, 2) * 0.3)
    head.set_mean_scale(6.0)
    torch.nn.init.normal_(head.out.weight, std=0.2)
    estimate = head(tokens()).steps[-1]
    assert estimate.joints_root_m[:, 9].abs().max() == 0
    # Some weak-perspective camera per image shows the joints exactly where they are said to be.
    cam = fit_weak(estimate.joints_root_m, estimate.joints_crop_ndc, 6.0)
    seen = project_weak(estimate.joints_root_m, cam, 6.0)
    torch.testing.assert_close(seen, estimate.joints_crop_ndc, atol=1e-5, rtol=1e-5)
    assert cam[:, 0].std() > 1e-2, "each image has a scale of its own"


def test_25d_by_hand():
    head = DirectHead(8, coords="25d", unit_m=0.1)
    mean_2d, mean_3d = torch.zeros(21, 2), torch.zeros(21, 3)
    mean_2d[4], mean_3d[4] = torch.tensor([0.4, -0.2]), torch.tensor([9.0, 9.0, 0.03])
    head.set_mean_joints(mean_3d, mean_2d)
    head.set_mean_scale(5.0)
    with torch.no_grad():
        head.out.weight.zero_()
        head.out.bias[-1] = math.log(2.0)
        head.out.bias[:-1].view(21, 3)[4] = torch.tensor([0.2, 0.1, 0.0])
        head.out.bias[:-1].view(21, 3)[9] = torch.tensor([0.1, 0.0, 0.1])
    start, estimate = head(tokens(b=1)).steps
    # 10 ndc per metre: (0.4 + 0.1 - 0) / 10, (-0.2 - 0.1) / 10, 0.03 + 0.2 * 0.1 - 0.1 * 0.1
    torch.testing.assert_close(estimate.joints_root_m[0, 4], torch.tensor([0.05, -0.03, 0.04]))
    torch.testing.assert_close(estimate.joints_crop_ndc[0, 4], torch.tensor([0.5, -0.2]))
    torch.testing.assert_close(start.joints_root_m[0], mean_3d)


def test_25d_of_a_far_hand_is_the_hand():
    """Weak perspective is the limit of a pinhole: from 100 m labels lift back to themselves."""
    joints = torch.randn(21, 3, generator=torch.Generator().manual_seed(0)) * 0.05
    cam_m = joints + torch.tensor([0.0, 0.0, 100.0])
    head = DirectHead(8, coords="25d")
    head.set_mean_joints(joints, 800.0 * cam_m[..., :2] / cam_m[..., 2:])
    head.set_mean_scale(8.0)
    torch.nn.init.zeros_(head.out.weight)
    lifted = head(tokens(b=1)).steps[-1].joints_root_m[0]
    torch.testing.assert_close(lifted, joints - joints[9], atol=3e-4, rtol=0)
