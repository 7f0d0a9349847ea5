import json
from pathlib import Path

import pytest
import timm
import torch

from handmim.models.vit import ViT, standardise_per_image


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
    meta = nano().load_exported(path)
    assert meta["step"] == "7"
    net = timm.create_model(
        meta["timm_name"], **json.loads(meta["timm_args"]), checkpoint_path=str(path)
    ).eval()
    image = torch.rand(1, 3, 32, 32)
    theirs = net.forward_features(vit.normalise(image))
    torch.testing.assert_close(vit(image).cls, theirs[:, 0])
    assert [p.name for p in tmp_path.iterdir()] == ["backbone.safetensors"]


def test_loading_restores_weights_and_resamples_positions(tmp_path: Path):
    path = tmp_path / "backbone.safetensors"
    vit = nano()
    with torch.no_grad():
        vit.net.pos_embed.normal_()
    vit.export(path)
    same, larger = nano(), nano(img_px=64)
    same.load_exported(path)
    for name, value in vit.net.state_dict().items():
        torch.testing.assert_close(same.net.state_dict()[name], value)
    larger.load_exported(path)
    assert larger.net.pos_embed.shape == (1, 65, 24)
    torch.testing.assert_close(larger.net.pos_embed[:, 0], vit.net.pos_embed[:, 0])


def test_loading_names_what_does_not_fit(tmp_path: Path):
    path = tmp_path / "backbone.safetensors"
    nano().export(path)
    with pytest.raises(ValueError, match=r"blocks\.2.*choose the same backbone"):
        nano(size={"embed_dim": 24, "depth": 3, "num_heads": 2}).load_exported(path)
    with pytest.raises(ValueError, match="pixel_norm=imagenet"):
        nano(pixel_norm="per_image").load_exported(path)
    with pytest.raises(FileNotFoundError, match="init_from"):
        nano().load_exported(tmp_path / "none.safetensors")


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="multiple of patch_px"):
        nano(img_px=30)
    with pytest.raises(ValueError, match="pixel_norm"):
        nano(pixel_norm="none")
    with pytest.raises(ValueError, match="built for 32 px"):
        nano()(torch.rand(1, 3, 48, 48))


def test_layers_are_counted_from_the_input():
    vit = nano()
    assert vit.layer_of("net.pos_embed") == 0
    assert vit.layer_of("net.blocks.0.attn.qkv.weight") == 1
    assert vit.layer_of("net.blocks.1.mlp.fc1.bias") == 2
    assert vit.layer_of("net.norm.weight") == 3
