"""Files as the public projects write them, forged from timm's ViT, must give timm's features."""

import os
import pickle
import re
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from handmim.models.vit import IMAGENET_MEAN, IMAGENET_STD, ViT
from handmim.models.weights.files import read_weights
from handmim.models.weights.load import load_initial
from tests.models.vit_files import FILES, HAS_MASK_TOKEN, SIZE, noise, ours, renamed, theirs

UNSTATED = "the file does not state its heads"
SILENT = FILES.keys() - {"own pretraining"}


def size_overrides(text: str) -> dict[str, float]:
    """Overrides of the size that an error names, as numbers."""
    overrides = re.findall(r"\+\+task\.backbone\.size\.(\w+)=([\d.e-]+)", text)
    return {key: float(v) if key == "mlp_ratio" else int(v) for key, v in overrides}


def assert_same_features(vit: ViT, net: Any, **tolerance: float) -> None:
    image = torch.rand(2, 3, vit.img_px, vit.img_px)
    tokens = vit(image)
    expected = net.forward_features((image - vit.pixel_mean) / vit.pixel_std)
    close = {"atol": 1e-5, "rtol": 1e-5} | tolerance
    torch.testing.assert_close(tokens.cls, expected[:, 0], **close)
    torch.testing.assert_close(tokens.patches, expected[:, 1:], **close)


@pytest.mark.parametrize("kind", FILES)
def test_public_files_give_timms_features(kind: str, tmp_path: Path):
    forge, unused = FILES[kind]
    net, vit, path = theirs(), ours(), tmp_path / "file.pth"
    torch.save(forge(net.state_dict(), theirs(seed=5).state_dict()), path)
    report = load_initial(vit, str(path))
    assert_same_features(vit, net)
    assert set(report.unused) == unused
    assert report.missing == (() if kind in HAS_MASK_TOKEN else ("mask_token",))
    assert len(report.matched) == len(net.state_dict()) + (kind in HAS_MASK_TOKEN)
    assert ((vit.mask_token == 5.0).all() == (kind in HAS_MASK_TOKEN)).item()
    assert report.resampled == report.folded == ()
    assert [UNSTATED in warning for warning in report.warnings] == [True] * (kind in SILENT)


def test_safetensors_of_others_load_too(tmp_path: Path):
    net, vit = theirs(), ours()
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    report = load_initial(vit, str(tmp_path / "model.safetensors"))
    assert_same_features(vit, net)
    assert "left random  mask_token" in report.table()


def test_layer_scale_becomes_part_of_the_weights(tmp_path: Path):
    net, vit = theirs(init_values=0.3), ours()
    weights = net.state_dict()
    torch.save(weights, tmp_path / "a.pth")
    report = load_initial(vit, str(tmp_path / "a.pth"))
    assert report.folded == ("layer scale of 4 branches",)
    assert_same_features(vit, net)
    old = {re.sub(r"ls(\d)\.gamma", r"gamma_\1", k): v for k, v in weights.items()}
    torch.save(old, tmp_path / "b.pth")
    again = ours()
    load_initial(again, str(tmp_path / "b.pth"))
    assert_same_features(again, net)


def test_positions_move_to_another_grid_as_timm_moves_them(tmp_path: Path):
    net = theirs()
    torch.save(net.state_dict(), tmp_path / "a.pth")
    vit = ours(img_px=48)
    report = load_initial(vit, str(tmp_path / "a.pth"))
    assert report.resampled == ("pos_embed 4 x 4 -> 6 x 6",)
    net.set_input_size((48, 48))
    assert_same_features(vit, net)


def test_a_class_token_without_position_gets_none(tmp_path: Path):
    net, vit = theirs(no_embed_class=True), ours()
    torch.save(net.state_dict(), tmp_path / "a.pth")
    assert load_initial(vit, str(tmp_path / "a.pth")).resampled == (
        "pos_embed: class token gets 0",
    )
    assert_same_features(vit, net)


def test_patches_of_another_side_are_resampled_as_timm_does(tmp_path: Path):
    net = theirs(img_size=32, patch_size=4)  # an 8 x 8 grid
    torch.save(net.state_dict(), tmp_path / "a.pth")
    vit = ours()
    report = load_initial(vit, str(tmp_path / "a.pth"))
    assert report.resampled == ("patch_embed 4 px -> 8 px", "pos_embed 8 x 8 -> 4 x 4")
    net.set_input_size((32, 32), (8, 8))
    assert_same_features(vit, net)
    # A flat patch looks the same whatever its side.
    flat = torch.full((1, 3, 8, 8), 0.7)
    small = theirs(img_size=32, patch_size=4).patch_embed.proj(flat[..., :4, :4])
    torch.testing.assert_close(vit.net.patch_embed.proj(flat), small, atol=1e-4, rtol=1e-4)


def cached(tmp_path: Path, repo: str, weights: dict[str, Tensor]) -> Path:
    """A cache of the hub that holds one repository."""
    folder = tmp_path / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    save_file(weights, folder / "snapshots" / "abc" / "model.safetensors")
    return tmp_path


def test_timms_cached_weights_and_their_pixel_constants(tmp_path: Path, monkeypatch: Any):
    # These weights were trained on pixels less 0.5, over 0.5.
    name = "vit_tiny_patch16_224.augreg_in21k"
    torch.manual_seed(0)
    net = timm.create_model("vit_tiny_patch16_224", num_classes=0).eval()
    cache = cached(tmp_path, f"timm/{name}", net.state_dict())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    vit = ViT("vit_tiny_patch16_224", img_px=224, patch_px=16).eval()
    report = load_initial(vit, f"timm:{name}")
    assert "pixel constants" in report.folded[0]
    image = torch.rand(1, 3, 224, 224)
    expected = net.forward_features((image - 0.5) / 0.5)
    torch.testing.assert_close(vit(image).cls, expected[:, 0], atol=1e-4, rtol=1e-4)
    # DINO's were trained with ImageNet's, as ours.
    cached(tmp_path, "timm/vit_small_patch16_224.dino", net.state_dict())
    with pytest.raises(ValueError, match="width 192 and depth 12"):
        load_initial(ours(), "timm:vit_small_patch16_224.dino")


def test_nothing_is_downloaded(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        FileNotFoundError, match=r"hf download timm/vit_small_patch16_224\.dino .*init=FILE"
    ):
        load_initial(ours(), "timm:vit_small_patch16_224.dino")
    with pytest.raises(ValueError, match="no pretrained weights 'vit_none'"):
        load_initial(ours(), "timm:vit_none")


def test_another_size_is_named_with_the_backbone_that_fits(tmp_path: Path):
    path = tmp_path / "a.pth"
    torch.save(theirs(depth=3, embed_dim=96).state_dict(), path)
    with pytest.raises(
        ValueError, match=r"width 24 and depth 2; give backbone=vit_nano_p8; .*: width 96 "
    ):
        load_initial(ours(), str(path))
    for depth in (1, 3):  # more blocks than ours are no better than fewer
        torch.save(theirs(depth=depth).state_dict(), path)
        with pytest.raises(ValueError, match=rf"depth {depth}, .*blocks\.\d\.attn"):
            load_initial(ours(), str(path))
    weights = theirs().state_dict()
    del weights["blocks.1.attn.qkv.bias"]
    torch.save(weights, path)
    before = {k: v.clone() for k, v in ours().net.state_dict().items()}
    vit = ours()
    with pytest.raises(ValueError, match=r"blocks\.1\.attn\.qkv\.bias is missing"):
        load_initial(vit, str(path))
    assert all(torch.equal(v, before[k]) for k, v in vit.net.state_dict().items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"register_tokens": torch.zeros(1, 4, 24)}, "register_tokens"),
        ({"dist_token": torch.zeros(1, 1, 24)}, "dist_token"),
        ({"norm_pre.weight": torch.ones(24)}, "a norm before the blocks"),
        ({"pos_embed": torch.zeros(1, 19, 24)}, "19 positions"),
        ({"blocks.0.temperature": torch.ones(())}, "temperature is too much"),
        ({"norm.weight": torch.full((24,), torch.nan)}, "not finite"),
    ],
)
def test_what_a_plain_vit_cannot_be_is_refused(change: Any, message: str, tmp_path: Path):
    torch.save(theirs().state_dict() | change, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=message):
        load_initial(ours(), str(tmp_path / "a.pth"))


class Hostile:
    def __reduce__(self) -> Any:
        return os.system, ("touch hacked",)


def test_a_hostile_file_is_refused_and_does_nothing(tmp_path: Path, monkeypatch: Any):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": theirs().state_dict(), "args": Hostile()}, "a.pth")
    Path("b.pth").write_bytes(pickle.dumps(Hostile(), protocol=2))
    for path in ("a.pth", "b.pth"):
        with pytest.raises(ValueError, match=r"more than tensors.*system"):
            load_initial(ours(), path)
    assert not Path("hacked").exists()


def test_damaged_and_foreign_files_are_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no weights at"):
        load_initial(ours(), str(tmp_path / "none.pth"))
    for name in ("a.pth", "a.safetensors"):
        (tmp_path / name).write_bytes(b"PK\x03\x04 nothing")
        with pytest.raises(ValueError, match="damaged"):
            load_initial(ours(), str(tmp_path / name))
    torch.save({"state_dict": noise("conv1.weight")}, tmp_path / "b.pth")
    with pytest.raises(ValueError, match=r"no plain ViT.*conv1"):
        load_initial(ours(), str(tmp_path / "b.pth"))
    looped: dict[str, Any] = {}
    looped["again"] = looped
    torch.save(looped, tmp_path / "c.pth")
    with pytest.raises(ValueError, match="damaged"):
        load_initial(ours(), str(tmp_path / "c.pth"))


def test_public_weights_under_other_pixels_are_warned_of(tmp_path: Path):
    torch.save(theirs().state_dict(), tmp_path / "a.pth")
    report = load_initial(ours(pixel_norm="per_image"), str(tmp_path / "a.pth"))
    assert "pixel_norm=per_image" in report.warnings[0]
    assert "warning " in report.table()


def test_heads_that_a_public_file_does_not_state_are_warned_of(tmp_path: Path):
    size = {"embed_dim": 64, "depth": 2, "num_heads": 1}
    torch.save(theirs(**size).state_dict(), tmp_path / "a.pth")
    (warning,) = load_initial(ours(size=size | {"num_heads": 4}), str(tmp_path / "a.pth")).warnings
    assert "width 64 have 1, this backbone has 4 (++task.backbone.size.num_heads=1)" in warning
    (warning,) = load_initial(ours(size=size), str(tmp_path / "a.pth")).warnings
    assert UNSTATED in warning
    assert "public ViTs" not in warning


def test_a_file_of_another_size_names_the_overrides_that_fit(tmp_path: Path):
    size = {"embed_dim": 64, "depth": 3, "mlp_ratio": 2.0}
    torch.save(theirs(**size).state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="width 64 and depth 3") as raised:
        load_initial(ours(), str(tmp_path / "a.pth"))
    named = size_overrides(str(raised.value))
    assert named == {"embed_dim": 64, "depth": 3, "num_heads": 1, "mlp_ratio": 2.0}
    assert load_initial(ours(size=named), str(tmp_path / "a.pth")).missing == ("mask_token",)
    # The size comes first: the pixels of a ViT that cannot fit are beside the point.
    ours(size=named).export(tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match="holds a ViT of width 64"):
        load_initial(ours(pixel_norm="per_image"), str(tmp_path / "b.safetensors"))


@pytest.mark.parametrize(("width", "hidden"), [(24, 71), (144, 538), (104, 272), (192, 1120)])
def test_a_ratio_that_is_no_short_decimal_is_named_exactly(tmp_path: Path, width, hidden):
    size = {"embed_dim": width, "depth": 2, "num_heads": 2, "mlp_ratio": (hidden + 0.5) / width}
    net = theirs(**size)
    assert len(net.state_dict()["blocks.0.mlp.fc1.bias"]) == hidden
    torch.save(net.state_dict(), tmp_path / "a.pth")
    mine = SIZE | {"embed_dim": width}
    with pytest.raises(ValueError, match="what differs") as raised:
        load_initial(ours(size=mine), str(tmp_path / "a.pth"))
    named = size_overrides(str(raised.value))
    assert set(named) == {"mlp_ratio"}, "nothing but the ratio differs"
    load_initial(ours(size=mine | named), str(tmp_path / "a.pth"))


def test_another_width_names_the_ratio_though_as_many_units_are_hidden(tmp_path: Path):
    size = {"embed_dim": 64, "depth": 2, "mlp_ratio": 1.5, "num_heads": 1}  # 96 as in 24 x 4
    torch.save(theirs(**size).state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="what differs") as raised:
        load_initial(ours(), str(tmp_path / "a.pth"))
    assert size_overrides(str(raised.value)) == size


def test_tensors_that_no_size_explains_get_no_advice(tmp_path: Path):
    torch.save(theirs(qk_norm=True).state_dict(), tmp_path / "a.pth")
    with pytest.raises(ValueError, match="norms of queries and keys") as raised:
        load_initial(ours(), str(tmp_path / "a.pth"))
    assert "give" not in str(raised.value)


def test_our_checkpoints_state_their_heads(tmp_path: Path):
    size = {"embed_dim": 64, "depth": 2, "num_heads": 4}
    backbone = {"pixel_norm": "imagenet", "size": size}
    state = {"task": renamed(ours(size=size).net.state_dict(), "student.backbone.net.")}
    torch.save(state | {"config": {"task": {"backbone": backbone}}}, tmp_path / "last.pt")
    assert load_initial(ours(size=size), str(tmp_path / "last.pt")).warnings == ()
    with pytest.raises(ValueError, match=r"give \+\+task.backbone.size.num_heads=4; .*num_heads 4"):
        load_initial(ours(size=size | {"num_heads": 1}), str(tmp_path / "last.pt"))


def test_an_export_is_as_open_as_the_umask_leaves_it(tmp_path: Path):
    (tmp_path / "plain.txt").write_text("")
    ours().export(tmp_path / "backbone.safetensors")
    modes = {p.name: p.stat().st_mode for p in tmp_path.iterdir()}
    assert modes["backbone.safetensors"] == modes["plain.txt"]
    assert len(modes) == 2


def test_our_own_files_state_their_kind(tmp_path: Path):
    path = tmp_path / "backbone.safetensors"
    vit = ours()
    vit.export(path, {"step": "7"})
    same = ours()
    with torch.no_grad():
        same.net.pos_embed.zero_()
    load_initial(same, str(path))
    assert read_weights(str(path)).meta["step"] == "7"
    for name, value in vit.net.state_dict().items():
        torch.testing.assert_close(same.net.state_dict()[name], value)
    with pytest.raises(ValueError, match=r"pixel_norm imagenet \(required per_image\)"):
        load_initial(ours(pixel_norm="per_image"), str(path))
    with pytest.raises(ValueError, match="num_heads 2 \\(required 4\\)"):
        load_initial(ours(size=SIZE | {"num_heads": 4}), str(path))
    saved = {"task": renamed(vit.net.state_dict(), "student.backbone.net.")}
    config = {"task": {"backbone": {"pixel_norm": "per_image"}}}
    torch.save(saved | {"config": config}, tmp_path / "last.pt")
    with pytest.raises(ValueError, match=r"pixel_norm per_image \(required imagenet\)"):
        load_initial(ours(), str(tmp_path / "last.pt"))


def test_no_source_leaves_the_random_start():
    vit = ours()
    before = vit.net.pos_embed.clone()
    report = load_initial(vit, None)
    assert report.source == "random"
    assert report.matched == ()
    assert torch.equal(vit.net.pos_embed, before)
    assert timm_constants() == (IMAGENET_MEAN, IMAGENET_STD)


def timm_constants() -> tuple[tuple[float, ...], tuple[float, ...]]:
    card = timm.models.get_pretrained_cfg("vit_small_patch16_224.dino")
    return tuple(card.mean), tuple(card.std)
