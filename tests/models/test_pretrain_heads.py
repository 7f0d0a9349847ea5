import pytest
import torch

from handmim.models.heads.keypoint import AffineHead, KeypointHead, ThumbnailHead
from handmim.models.heads.pixel import PixelHead, patchify, unpatchify
from handmim.models.heads.projection import ProjectionHead


def test_patchify_orders_patches_by_row_and_inverts():
    image = torch.arange(2 * 3 * 8 * 12, dtype=torch.float32).reshape(2, 3, 8, 12)
    patches = patchify(image, 4)
    assert patches.shape == (2, 6, 48)
    torch.testing.assert_close(
        patches[0, 1, :3], image[0, :, 0, 4]
    )  # second patch starts at column 4
    torch.testing.assert_close(patches[0, 3, :3], image[0, :, 4, 0])  # fourth starts the second row
    torch.testing.assert_close(unpatchify(patches, 4, (2, 3)), image)


def test_logits_are_cosines_times_gain():
    torch.manual_seed(0)
    head = ProjectionHead(8, num_prototypes=5, hidden_dim=16, bottleneck_dim=4)
    logits = head(torch.randn(7, 8))
    assert logits.abs().max() <= 1 + 1e-6
    with torch.no_grad():
        head.gain.fill_(3.0)
    torch.testing.assert_close(head(torch.ones(1, 8)) / 3, head(torch.ones(1, 8)) * (1 / 3))


def test_frozen_prototypes_get_no_gradient_but_the_mlp_does():
    head = ProjectionHead(8, num_prototypes=5, hidden_dim=16, bottleneck_dim=4)
    head(torch.randn(3, 8), freeze_prototypes=True).square().sum().backward()
    assert head.prototypes.grad.abs().max() == 0  # in the graph, for distributed training
    assert head.mlp[0].weight.grad.abs().sum() > 0


def test_points_are_bounded_and_start_spread_out():
    torch.manual_seed(0)
    head = KeypointHead(16, num_keypoints=21, hidden_dim=32)
    points = head(100 * torch.randn(4, 2, 16))
    assert points.shape == (4, 2, 21, 2)
    assert points.abs().max() <= 1.5
    assert head(torch.zeros(1, 16)).std(dim=-2).min() > 0.2
    with pytest.raises(ValueError, match="num_keypoints"):
        KeypointHead(16, num_keypoints=2)


def test_affine_head_adds_to_the_identity():
    head = AffineHead(4, hidden_dim=8)
    torch.nn.init.zeros_(head.mlp[-1].weight)
    torch.testing.assert_close(
        head(torch.randn(3, 4), torch.randn(3, 4)), torch.eye(2, 3).expand(3, 2, 3)
    )


def test_small_heads_have_the_shapes_they_promise():
    assert ThumbnailHead(4, thumb_px=6, hidden_dim=8)(torch.zeros(2, 3, 4)).shape == (2, 3, 6, 6)
    assert PixelHead(dim=4, patch_px=2)(torch.zeros(5, 4)).shape == (5, 12)
