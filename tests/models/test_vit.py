import json
from pathlib import Path

import pytest
import timm
import torch

from handmim.models.vit import ViT, standardise_per_image
from handmim.models.weights.files import read_weights
from handmim.models.weights.load import load_initial


def nano(**kwargs: object) -> ViT:
    torch.manual_seed(0)
    settings = {"img_px": 32, "patch_px": 8, "size": {"embed_dim": 24, "depth": 2, "num_heads": 2}}
    return ViT("vit_tiny_patch16_224", **(settings | kwargs)).eval()


def test_unmasked_tokens_equal_timms_own_forward():
    vit = nano()
    image = torch.rand(2, 3, 32, 32)
    tokens = vit(image)
    theirs = vit.net.forward_features((image - vit.pixel_mean) / vit.pixel_std)
    torch.testing.assert_close(tokens.cls, theirs[:, 0])
    torch.testing.assert_close(tokens.patches, theirs[:, 1:])
    assert tokens.grid_hw == (4, 4)


def test_hidden_patches_cannot_be_seen():
    vit = nano(pixel_norm="imagenet")
    is_masked = torch.zeros(1, 16, dtype=torch.bool)
    is_masked[0, [0, 5]] = True
    image = torch.rand(1, 3, 32, 32)
    changed = image.clone()
    changed[..., :8, :8] = 0.9  # patch 0
    changed[..., 8:16, 8:16] = 0.1  # patch 5
    torch.testing.assert_close(vit(image, is_masked).cls, vit(changed, is_masked).cls)
    changed[..., 24:, 24:] = 0.0  # patch 15 is not hidden
    assert (vit(image, is_masked).cls - vit(changed, is_masked).cls).abs().max() > 1e-4


def test_per_image_standardisation_removes_cast_and_contrast():
    image = 0.3 + 0.2 * torch.rand(2, 3, 16, 16)
    cast = torch.tensor([0.1, 0.0, 0.2]).view(1, 3, 1, 1)
    a, b = (
        standardise_per_image(image, floor=0.0),
        standardise_per_image(0.5 * image + cast, floor=0.0),
    )
    torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert a.mean().abs() < 1e-5
    assert standardise_per_image(torch.full((1, 3, 8, 8), 0.4)).abs().max() < 1e-4


def test_timm_loads_what_is_exported(tmp_path: Path):
    vit = nano()
    path = tmp_path / "backbone.safetensors"
    vit.export(path, {"step": "7"})
    load_initial(nano(), str(path))
    meta = read_weights(str(path)).meta
    assert meta["step"] == "7"
    net = timm.create_model(
        meta["timm_name"], **json.loads(meta["timm_args"]), checkpoint_path=str(path)
    ).eval()
    image = torch.rand(1, 3, 32, 32)
    theirs = net.forward_features(vit.normalise(image))
    torch.testing.assert_close(vit(image).cls, theirs[:, 0])
    assert [p.name for p in tmp_path.iterdir()] == ["backbone.safetensors"]


def test_other_sides_resample_positions_as_timm_does():
    vit = nano()
    with torch.no_grad():
        vit.net.pos_embed.normal_()
    for height, width in ((16, 16), (40, 24)):
        image = torch.rand(2, 3, height, width)
        grid_hw = (height // 8, width // 8)
        net = timm.create_model("vit_tiny_patch16_224", dynamic_img_size=True, **vit.timm_args)
        net.load_state_dict(vit.net.state_dict())
        theirs = net.eval().forward_features(vit.normalise(image))
        tokens = vit(image)
        assert tokens.grid_hw == grid_hw
        torch.testing.assert_close(tokens.patches, theirs[:, 1:], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("arch", ["small", "base", "large"])
def test_public_sizes_are_built_for_both_sides(arch: str):
    with torch.device("meta"):
        nets = [ViT(f"vit_{arch}_patch16_224", img_px=px, patch_px=16) for px in (224, 256)]
    assert [net.grid_hw for net in nets] == [(14, 14), (16, 16)]
    assert [net.net.pos_embed.shape[1] for net in nets] == [197, 257]


def test_dropped_patches_leave_the_visible_ones_in_order():
    vit = nano()
    is_masked = torch.zeros(2, 16, dtype=torch.bool)
    is_masked[0, [0, 5, 6]] = True
    is_masked[1, [3, 9, 15]] = True
    image, other = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    tokens = vit(image, is_masked, drop_masked=True)
    assert tokens.patches.shape == (2, 13, 24)
    # Nothing hidden: the whole computation.
    whole = vit(image, torch.zeros_like(is_masked), drop_masked=True)
    torch.testing.assert_close(whole.patches, vit(image).patches)
    # What is hidden cannot matter, what is visible does.
    hidden = is_masked.view(2, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3)
    same = vit(torch.where(hidden, other, image), is_masked, drop_masked=True)
    torch.testing.assert_close(same.patches, tokens.patches)
    changed = vit(torch.where(hidden, image, other), is_masked, drop_masked=True)
    assert (changed.patches - tokens.patches).abs().max() > 1e-4


def test_unequal_counts_cannot_be_dropped():
    is_masked = torch.zeros(2, 16, dtype=torch.bool)
    is_masked[0, :4] = True
    with pytest.raises(ValueError, match=r"12 to 16 visible.*exact_count"):
        nano()(torch.rand(2, 3, 32, 32), is_masked, drop_masked=True)


def test_taps_are_normed_tokens_of_the_blocks_asked_for():
    vit = nano(size={"embed_dim": 24, "depth": 3, "num_heads": 2})
    image = torch.rand(2, 3, 32, 32)
    tokens = vit(image, taps=(3, 1))
    cut = nano(size={"embed_dim": 24, "depth": 1, "num_heads": 2})  # ends after its first block
    weights = vit.net.state_dict()
    cut.net.load_state_dict({name: weights[name] for name in cut.net.state_dict()})
    torch.testing.assert_close(tokens.taps[0], tokens.patches)
    torch.testing.assert_close(tokens.taps[1], cut(image).patches)
    assert vit(image).taps == ()
    for taps in ((0,), (4,)):
        with pytest.raises(ValueError, match="blocks 1 to 3"):
            vit(image, taps=taps)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="multiple of patch_px"):
        nano(img_px=30)
    with pytest.raises(ValueError, match="pixel_norm"):
        nano(pixel_norm="none")
    with pytest.raises(ValueError, match=r"multiples of 8 px, got 48 x 44"):
        nano()(torch.rand(1, 3, 48, 44))


def test_layers_are_counted_from_the_input():
    vit = nano()
    assert vit.layer_of("net.pos_embed") == 0
    assert vit.layer_of("net.blocks.0.attn.qkv.weight") == 1
    assert vit.layer_of("net.blocks.1.mlp.fc1.bias") == 2
    assert vit.layer_of("net.norm.weight") == 3
