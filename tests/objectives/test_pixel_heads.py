import pytest
import torch

from handmim.models.vit import ViT
from handmim.objectives.base import Setup
from handmim.objectives.pixel_recon import PixelDecoder, PixelHead, PixelRecon, patchify, unpatchify


def decoder(**kwargs: object) -> PixelDecoder:
    torch.manual_seed(0)
    settings = {"depth": 2, "width": 16, "num_heads": 2}
    return PixelDecoder(24, 8, (4, 4), **(settings | kwargs)).eval()


def masks(num_views: int, num_masked: int, seed: int = 0) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(num_views, 16, generator=g).argsort(dim=1) < num_masked


def indices(mask: torch.Tensor) -> torch.Tensor:
    return mask.flatten().nonzero().squeeze(1)


EVERYWHERE = indices(torch.ones(3, 16, dtype=torch.bool))


def test_patchify_orders_patches_by_row_and_inverts():
    image = torch.arange(2 * 3 * 8 * 12, dtype=torch.float32).reshape(2, 3, 8, 12)
    patches = patchify(image, 4)
    assert patches.shape == (2, 6, 48)
    torch.testing.assert_close(patches[0, 1, :3], image[0, :, 0, 4])  # second: column 4
    torch.testing.assert_close(patches[0, 3, :3], image[0, :, 4, 0])  # fourth: second row
    torch.testing.assert_close(unpatchify(patches, 4, (2, 3)), image)


@pytest.mark.parametrize("head", [PixelHead(24, 8), decoder()], ids=["linear", "decoder"])
def test_answers_come_in_row_major_order_of_what_is_target(head):
    patches, is_target = torch.randn(3, 16, 24), masks(3, 6)
    is_target[1] = False  # a view without a mask
    out = head(patches, indices(is_target))
    everything = head(patches, EVERYWHERE).view(3, 16, 192)
    assert out.shape == (12, 192)
    rows = [(v, n) for v in range(3) for n in range(16) if is_target[v, n]]
    for got, (v, n) in zip(out, rows, strict=True):
        torch.testing.assert_close(got, everything[v, n])
    assert head(patches, EVERYWHERE[:0]).shape == (0, 192)


def test_masked_autoencoder_equals_the_plain_computation():
    """Gather visible patches, run the blocks on them, scatter, run the decoder: one by one."""
    torch.manual_seed(0)
    size = {"embed_dim": 24, "depth": 2, "num_heads": 2}
    vit = ViT("vit_tiny_patch16_224", img_px=32, patch_px=8, size=size).eval()
    head, net = decoder(), vit.net
    image, is_masked = torch.rand(3, 3, 32, 32), masks(3, 12)
    out = head(vit(image, is_masked, drop_masked=True).patches, indices(is_masked), is_masked)
    plain = []
    for view, masked in zip(image, is_masked, strict=True):
        x = net.patch_embed(vit.normalise(view[None]))[0] + net.pos_embed[0, 1:]
        visible = (~masked).nonzero().squeeze(1)
        x = torch.cat([net.cls_token[0] + net.pos_embed[0, :1], x[visible]])
        x = net.norm(net.blocks(x[None]))[0, 1:]
        whole = torch.stack([head.mask_token[0, 0]] * 16)
        for idx, token in zip(visible, head.embed(x), strict=True):
            whole[idx] = token
        x = head.blocks((whole + head.positions)[None])[0]
        plain.append(head.out(head.norm(x))[masked])
    torch.testing.assert_close(out, torch.cat(plain), atol=1e-5, rtol=1e-5)


def test_every_parameter_of_the_masked_autoencoder_learns():
    size = {"embed_dim": 24, "depth": 2, "num_heads": 2}
    vit = ViT("vit_tiny_patch16_224", img_px=32, patch_px=8, size=size)
    head, is_masked = decoder(), masks(2, 12)
    tokens = vit(torch.rand(2, 3, 32, 32), is_masked, drop_masked=True)
    head(tokens.patches, indices(is_masked), is_masked).square().sum().backward()
    assert head.mask_token.grad.abs().max() > 0
    assert all(p.grad is not None for p in head.parameters())
    assert vit.mask_token.grad is None  # nothing of the encoder's is replaced


def test_the_decoder_distinguishes_positions_of_equal_tokens():
    patches = torch.ones(1, 16, 24)
    out = decoder()(patches, EVERYWHERE[:16])
    assert torch.pdist(out).min() > 1e-3
    assert "positions" not in decoder().state_dict()


@pytest.mark.parametrize(
    ("shares", "depth", "taps"),
    [
        ([1.0], 12, (12,)),
        ([0.75], 12, (9,)),
        ([0.5, 0.75, 1.0], 12, (6, 9, 12)),
        ([0.5, 0.75, 1.0], 24, (12, 18, 24)),
        ([0.5, 0.75, 1.0], 3, (2, 3)),
        ([0.01], 3, (1,)),
    ],
)
def test_shares_of_the_depth_become_blocks(shares, depth, taps):
    objective = PixelRecon(tap_layers=shares)
    objective.build(Setup(8, depth=depth))
    assert objective.taps == taps


@pytest.mark.parametrize("bad", [{"width": 18}, {"num_heads": 3}, {"depth": 0}])
def test_bad_sizes_of_the_decoder_are_refused(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        decoder(**bad)
