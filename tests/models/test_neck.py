"""A pyramid from its export beside a backbone to the head of a fine-tuning."""

import json
import logging

import pytest
import timm
import torch
from hydra.utils import instantiate
from torch import nn

import handmim
from handmim.models.pyramid import Pyramid, export_neck, load_neck, neck_beside
from handmim.models.vit import ViT
from handmim.models.weights.files import read_weights
from handmim.models.weights.load import load_initial
from handmim.utils.tensor_files import save_weights
from tests.test_configs import composed

SIZE = {"embed_dim": 24, "depth": 2, "num_heads": 2}
SETTINGS = {"pyramid": "light", "dim": 24, "channels": 8, "num_levels": 3, "norm": "group"}


def backbone(seed: int = 0) -> ViT:
    torch.manual_seed(seed)
    return ViT("vit_tiny_patch16_224", img_px=16, patch_px=8, size=SIZE)


def head(**settings) -> nn.Module:
    """A head that has a pyramid, with weights of its own."""
    torch.manual_seed(9)
    made = nn.Module()
    made.pyramid = Pyramid(**SETTINGS | settings)
    return made


def exported(folder, **settings):
    """A backbone and a neck beside it."""
    weights = folder / "backbone.safetensors"
    backbone().export(weights)
    torch.manual_seed(1)
    neck = Pyramid(**SETTINGS | settings)
    export_neck(neck, weights, {"step": "3"})
    return str(weights), neck.state_dict()


VARIANTS = ({}, {"taps": [1, 2]}, {"pyramid": "deconv", "norm": "batch"}, {"num_levels": 1})


@pytest.mark.parametrize("settings", VARIANTS)
def test_a_head_of_the_same_settings_starts_with_the_exported_neck(tmp_path, settings, caplog):
    weights, expected = exported(tmp_path, **settings)
    mine = head(**settings)
    with caplog.at_level(logging.INFO, "handmim"):
        facts = load_neck(mine, weights, "auto")
    assert all(torch.equal(v, expected[k]) for k, v in mine.pyramid.state_dict().items())
    path = tmp_path / "neck.safetensors"
    assert f"{path}, {len(expected)} tensors" in caplog.text
    assert facts == {"neck_sha256": read_weights(str(path)).meta["sha256"]}
    assert read_weights(str(path)).meta["step"] == "3"


def test_the_backbone_loads_as_without_a_neck(tmp_path):
    weights, _ = exported(tmp_path)
    assert not any("neck" in k or "pyramid" in k for k in read_weights(weights).tensors)
    same = backbone(1)
    assert load_initial(same, weights).unused == {}
    args = json.loads(read_weights(weights).meta["timm_args"])
    net = timm.create_model("vit_tiny_patch16_224", **args, checkpoint_path=weights).eval()
    image = torch.rand(1, 3, 16, 16)
    expected = same.eval()(image).cls
    theirs = net.forward_features(same.normalise(image))[:, 0]
    torch.testing.assert_close(theirs, expected)
    torch.testing.assert_close(handmim.load_backbone(weights).eval()(image).cls, expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": 16}, r"channels 8 \(here 16\): give task\.head\.channels=8, or .*=never"),
        ({"num_levels": 2}, r"num_levels 3 \(here 2\): give task\.head\.num_steps=3"),
        ({"taps": [1, 2]}, r"taps \[\] \(here \[1, 2\]\): give task\.head\.taps=\[\]"),
        ({"norm": "batch"}, r"norm group \(here batch\)"),
        (
            {"pyramid": "deconv", "channels": 4},
            r"pyramid light \(here deconv\), channels .* task\.head\.pyramid=light task\.head\.ch",
        ),
    ],
)
def test_a_neck_of_another_shape_is_refused_and_left_out_on_request(tmp_path, settings, message):
    weights, _ = exported(tmp_path)
    mine = head(**settings)
    before = {k: v.clone() for k, v in mine.pyramid.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        load_neck(mine, weights, "auto")
    assert load_neck(mine, weights, "never") == {}
    assert all(torch.equal(v, before[k]) for k, v in mine.pyramid.state_dict().items())


def test_a_neck_of_another_backbone_is_refused(tmp_path):
    weights, _ = exported(tmp_path)
    backbone(5).export(tmp_path / "backbone.safetensors")
    with pytest.raises(ValueError, match=r"with another backbone than .*init_neck=never"):
        load_neck(head(), weights, "auto")


def test_a_file_of_another_origin_is_refused(tmp_path):
    weights, expected = exported(tmp_path)
    path = tmp_path / "neck.safetensors"
    meta = read_weights(str(path)).meta
    save_weights(expected, path, {k: v for k, v in meta.items() if k != "pyramid"})
    with pytest.raises(ValueError, match=r"neck\.safetensors is no exported neck.*init_neck=never"):
        load_neck(head(), weights, "auto")
    first, *_ = expected
    save_weights({first: expected[first]}, path, meta)
    with pytest.raises(ValueError, match=r"other tensors than it states.*init_neck=never"):
        load_neck(head(), weights, "auto")


def test_where_there_is_no_neck_or_no_pyramid_nothing_is_read(tmp_path, caplog):
    weights, _ = exported(tmp_path)
    with caplog.at_level(logging.INFO, "handmim"):
        assert load_neck(nn.Linear(1, 1), weights, "auto") == {}
        assert load_neck(nn.Linear(1, 1), None, "auto") == {}
        assert load_neck(head(), None, "auto") == {}
    assert "is not read, Linear has no pyramid" in caplog.text
    assert "neck: random weights (no neck.safetensors beside init_from=None)" in caplog.text
    assert neck_beside(tmp_path / "mae.pth") is None
    assert neck_beside("timm:vit_base_patch16_224") is None


@pytest.mark.parametrize(("dim", "head"), [(96, "pymaf_small"), (384, "pymaf")])
def test_channels_are_those_of_the_head_of_this_width_by_default(dim, head):
    expected = composed("finetune", f"head={head}").task.head
    neck = instantiate(composed("pretrain", "objective=[pyramid_hog]").task.heads.neck)(dim=dim)
    mine = {k: neck.settings[k] for k in ("pyramid", "channels", "norm", "taps")}
    assert mine == {k: expected[k] for k in mine}
    assert neck.settings["num_levels"] == expected.num_steps
