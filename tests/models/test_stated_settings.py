"""Settings beside weights are read in the spellings of public projects, and never against them."""

import argparse
import json
import sys
from collections import OrderedDict
from pathlib import Path, PosixPath
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from handmim.models.weights.load import load_initial
from tests.models.test_foreign_files import assert_same_patches, fixed_positions, saved
from tests.models.vit_files import SIZE, ours, renamed, theirs

FOUR = {
    "args": {"args": argparse.Namespace(num_heads=4, output_dir=PosixPath("/x"))},
    "simple namespace": {"args": SimpleNamespace(n_heads=4)},
    "nested": {"config": {"model": {"num_heads": 4, "decoder": {"num_heads": 8}}}},
    "lightning": {"hyper_parameters": {"encoder": {"num_attention_heads": 4}, "nhead": "?"}},
    "capitals": {"cfg": {"MODEL": {"BACKBONE": {"NUM_HEADS": 4}, "HAND_HEAD": {"HEADS": 8}}}},
    "text": {"hparams": json.dumps({"vit": {"nheads": "4"}})},
    "beside the weights": {"num_heads": 4},
    "of another width": {"args": {"num_heads": 8, "hidden_dim": 256}, "vit": {"num_heads": 4}},
}


@pytest.mark.parametrize("spelling", FOUR)
def test_heads_are_read_in_every_spelling(spelling: str, tmp_path: Path):
    net = theirs(num_heads=4)
    path = saved(tmp_path / "a.pth", {"model": net.state_dict(), **FOUR[spelling]})
    with pytest.raises(ValueError, match=r"num_heads=4; .* num_heads 4 \(required 2\) by .*\w"):
        load_initial(ours(), path)
    vit = ours(size=SIZE | {"num_heads": 4})
    (warning,) = load_initial(vit, path).warnings
    assert "does not state its activation, norms, pixel constants: read with gelu," in warning
    assert_same_patches(vit, net)


@pytest.mark.parametrize(
    "module",
    [
        "pytorch_lightning.utilities.parsing",
        "lightning.fabric.utilities.data",
        "lightning_fabric.utilities.data",
    ],
)
def test_hyper_parameters_of_every_lightning_are_read(module: str, tmp_path: Path, monkeypatch):
    kind = type("AttributeDict", (OrderedDict,), {"__module__": module})
    for name in (module.split(".")[0], module):
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(AttributeDict=kind))
    content = {"state_dict": theirs().state_dict(), "hyper_parameters": kind(num_heads=4)}
    path = saved(tmp_path / "a.ckpt", content)
    with pytest.raises(ValueError, match=r"num_heads 4 .* by hyper_parameters\.num_heads"):
        load_initial(ours(), path)


@pytest.mark.parametrize(
    ("beside", "mine"),
    [
        ({"args": SimpleNamespace(act_layer="QuickGELU")}, "act_layer=quick_gelu"),
        ({"config": {"vit": {"hidden_act": "gelu_new"}}}, "act_layer=gelu_tanh"),
        ({"args": {"act_layer": "torch.nn.ReLU"}}, "act_layer=relu"),
        (
            {"args": {"model": "vit_small_patch16_224", "act_layer": "relu"}},
            "activation relu",
        ),
        ({"args": {"model": "vit_small_patch16_224", "num_heads": 4}}, "num_heads 4"),
        ({"config": {"head": {"act_layer": "relu"}, "activation": "relu"}}, ""),
    ],
)
def test_an_activation_of_the_network_is_compared(beside: Any, mine: str, tmp_path: Path):
    path = saved(tmp_path / "a.pth", {"model": theirs().state_dict(), **beside})
    if mine:
        with pytest.raises(ValueError, match=mine):
            load_initial(ours(), path)
    else:
        load_initial(ours(), path)


def test_two_statements_that_differ_are_refused(tmp_path: Path):
    content = {"model": theirs().state_dict(), "args": argparse.Namespace(num_heads=2)}
    path = saved(tmp_path / "a.pth", content)
    load_initial(ours(), path)
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 4}))
    message = r"states its num_heads twice: args\.num_heads=2, config\.json .*num_attention_heads=4"
    with pytest.raises(ValueError, match=message):
        load_initial(ours(), path)
    torch.save(content | {"config": {"num_heads": 3}}, path)
    with pytest.raises(ValueError, match=r"args\.num_heads=2, config\.num_heads=3"):
        load_initial(ours(), path)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"architecture": "vit_of_mine"}, "architecture vit_of_mine, which timm does not have"),
        ({"model_type": "beit"}, "names beit, which is not known"),
        ({"architectures": ["Dinov2WithRegistersModel"]}, "names Dinov2WithRegisters, which"),
        ({"architectures": ["ViTMAEForPreTraining"]}, ""),
        ({"model_type": "vit", "architectures": ["ViTModel"]}, ""),
    ],
)
def test_an_unknown_kind_beside_the_weights_is_warned_of(config: Any, message: str, tmp_path: Path):
    save_file(theirs().state_dict(), tmp_path / "model.safetensors")
    more = {"num_attention_heads": 2, "hidden_size": 24, "patch_size": 8}
    (tmp_path / "config.json").write_text(json.dumps(config | more))
    warnings = load_initial(ours(), str(tmp_path / "model.safetensors")).warnings
    assert any("config.json beside it names" in w for w in warnings) == bool(message)
    assert any(message in w for w in warnings)
    assert not any("heads" in w for w in warnings)
    (tmp_path / "config.json").write_text(json.dumps(config | more | {"num_attention_heads": 4}))
    with pytest.raises(ValueError, match=r"num_heads 4 \(required 2\) by config\.json beside it"):
        load_initial(ours(), str(tmp_path / "model.safetensors"))


def test_fixed_positions_alone_refuse_no_heads(tmp_path: Path):
    size = {"embed_dim": 384, "depth": 1, "num_heads": 6}
    net = theirs(**size)
    net.pos_embed.data = fixed_positions(384, rows_first=True)
    vit = ours(size=size)
    (warning,) = load_initial(vit, saved(tmp_path / "a.pth", {"model": net.state_dict()})).warnings
    assert "MoCo-v3, which has such positions, has 12, this backbone has 6" in warning
    assert_same_patches(vit, net)


@pytest.mark.parametrize(
    ("beside", "message"),
    [
        ({"args": SimpleNamespace(use_rope=True)}, "args.use_rope=true states rotary positions"),
        ({"config": {"vit": {"pos_embed": "rope2d"}}}, "states positions of another kind"),
        ({"args": {"num_register_tokens": 4}}, "states register tokens"),
        ({"args": {"ffn_layer": "swiglufused"}}, "states a gated MLP"),
        ({"args": {"norm_first": False}}, "states norms after the branches"),
        ({"args": {"window_size": 14}}, "states attention in windows"),
        ({"args": {"use_rope": False, "num_register_tokens": 0, "ffn_layer": "mlp"}}, ""),
        ({"args": {"decoder": {"use_rope": True}, "post_norm": None}}, ""),
    ],
)
def test_parts_that_only_settings_show_are_warned_of(beside: Any, message: str, tmp_path: Path):
    path = saved(tmp_path / "a.pth", {"model": theirs().state_dict(), **beside})
    warnings = load_initial(ours(), path).warnings
    assert any(message in w for w in warnings)
    assert len(warnings) == 1 + bool(message)


@pytest.mark.parametrize("name", ["registers", "reg_tokens", "memory_tokens", "embed_norm.weight"])
def test_parts_under_names_of_their_own_are_refused(name: str, tmp_path: Path):
    content = renamed(theirs().state_dict() | {name: torch.ones(1, 4, 24)}, "encoder.")
    with pytest.raises(ValueError, match=f"register tokens|a norm before the blocks .*{name}"):
        load_initial(ours(), saved(tmp_path / "a.pth", content))


@pytest.mark.parametrize(
    ("settings", "mean", "std"),
    [
        ({"image_mean": [122.4, 114.75, 102.0], "image_std": [63.75] * 3}, (0.48, 0.45, 0.4), 0.25),
        ({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": False}, (0, 0, 0), 1),
        (
            {"image_mean": [1.0] * 3, "image_std": [1.0] * 3, "rescale_factor": 2 / 255},
            (0.5, 0.5, 0.5),
            0.5,
        ),
    ],
)
def test_pixels_are_scaled_by_their_settings(settings: Any, mean: Any, std: Any, tmp_path: Path):
    net, vit = theirs(), ours()
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(settings))
    load_initial(vit, str(tmp_path / "model.safetensors"))
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = net.forward_features((image - torch.tensor(mean).view(3, 1, 1)) / std)
        torch.testing.assert_close(vit(image).patches, expected[:, 1:], atol=1e-4, rtol=1e-4)
