"""Weights of another network are never taken in silence, though every shape fits."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from handmim.models.weights.load import load_initial
from tests.models.vit_files import SIZE, ours

TINY = {"img_size": 32, "patch_size": 8, "num_classes": 0, **SIZE}
# Architecture, arguments beside the tiny size, and what is refused, where anything is.
NETWORKS: dict[str, tuple[str, dict[str, Any], str]] = {
    "plain": ("vit_small_patch16_224", {}, ""),
    "dinov2": ("vit_small_patch14_dinov2", {}, ""),
    "deit": ("deit_small_patch16_224", {}, ""),
    "deit3": ("deit3_small_patch16_224", {}, ""),
    "flexivit": ("flexivit_small", {}, ""),
    "one branch a block": ("vit_small_patch16_36x1_224", {}, ""),
    "no bias of queries": ("vit_small_patch16_224", {"qkv_bias": False}, ""),
    "12 heads as MoCo-v3": ("vit_small_patch16_224", {"num_heads": 4}, "num_heads 4"),
    "quick GELU": ("vit_small_patch16_224", {"act_layer": "quick_gelu"}, "activation quick_gelu"),
    "epsilon": ("vit_base_patch16_clip_224", {"pre_norm": False}, ""),
    "rotary": ("vit_small_patch16_rope_224", {}, "no learned positions"),
    "rotary and learned": ("vit_small_patch16_rope_ape_224", {}, "positions rotary"),
    "rotary, learned angles": ("vit_small_patch16_rope_mixed_ape_224", {}, "rotary positions"),
    "dinov3": ("vit_small_patch16_dinov3", {}, "register tokens"),
    "dinov3 plus": ("vit_small_plus_patch16_dinov3", {}, "no learned positions"),
    "eva02": ("eva02_tiny_patch14_224", {}, "gated MLP"),
    "eva02 gated": ("eva02_base_patch14_448", {}, "SwiGLU"),
    "eva": ("eva_giant_patch14_224", {"mlp_ratio": 4}, ""),
    "beit": ("beit_base_patch16_224", {}, "relative position biases"),
    "beit3": ("beit3_base_patch16_224", {}, "norms within blocks"),
    "registers": ("vit_small_patch14_reg4_dinov2", {}, "register tokens"),
    "distilled": ("deit_small_distilled_patch16_224", {}, "distillation token"),
    "clip": ("vit_base_patch16_clip_quickgelu_224", {}, "norm before the blocks"),
    "siglip": ("vit_base_patch16_siglip_224", {}, ""),
    "no class token": ("vit_base_patch16_gap_224", {}, ""),
    "heads without class token": ("vit_base_patch16_gap_224", {"num_heads": 4}, "num_heads 4"),
    "norm after pooling": ("vit_small_patch16_224", {"global_pool": "avg"}, ""),
    "relative": ("vit_relpos_small_patch16_224", {}, "relative position biases"),
    "perception encoder": ("vit_pe_core_tiny_patch16_384", {}, "norm before the blocks"),
    "aimv2": ("aimv2_large_patch14_224", {}, "SwiGLU"),
    "qk norm": ("vit_small_patch16_224", {"qk_norm": True}, "norms of queries and keys"),
    "parallel": ("vit_small_patch16_18x2_224", {}, "blocks of another kind"),
    "segment anything": ("samvit_base_patch16", {}, "relative position biases"),
    "talking heads": ("cait_xxs24_224", {}, "blocks of another kind"),
}
INVISIBLE = {
    "heads without class token",
    "12 heads as MoCo-v3",
    "quick GELU",
    "rotary and learned",
}  # among tensors alone
COMPARED = {"plain", "epsilon", "dinov2", "deit", "deit3", "flexivit", "one branch a block",
            "no bias of queries"}  # fmt: skip


def network(name: str) -> tuple[Any, str, dict[str, Any]]:
    """One of `NETWORKS` with random weights, its architecture and its arguments."""
    arch, more, _ = NETWORKS[name]
    args = TINY | more
    torch.manual_seed(0)
    net = timm.create_model(arch, **args).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net, arch, args


def patch_difference(vit: Any, net: Any) -> float:
    """Norm of the difference of patch tokens relative to timm's."""
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = net.forward_features((image - vit.pixel_mean) / vit.pixel_std)
        expected = expected[:, getattr(net, "num_prefix_tokens", 0) :]
        return float((vit(image).patches - expected).norm() / expected.norm())


@pytest.mark.parametrize("states", [False, True], ids=["bare", "stated"])
@pytest.mark.parametrize("name", NETWORKS)
def test_weights_are_equal_or_refused_or_warned_of(name: str, states: bool, tmp_path: Path):
    net, arch, args = network(name)
    path, vit = tmp_path / "model.safetensors", ours()
    save_file({k: v.contiguous() for k, v in net.state_dict().items()}, path)
    if states:
        constants = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
        config = {"architecture": arch, "model_args": args, "pretrained_cfg": constants}
        (tmp_path / "config.json").write_text(json.dumps(config))
    refused = NETWORKS[name][2]
    if refused and (states or name not in INVISIBLE):
        with pytest.raises(ValueError, match=re.escape(refused)):
            load_initial(vit, str(path))
        return
    report = load_initial(vit, str(path))
    if not report.warnings:
        assert patch_difference(vit, net) < 1e-4
    assert bool(report.warnings) != (states and name in COMPARED)


@pytest.mark.parametrize(
    "args", [{"depth": 10**6}, {"checkpoint_path": "/etc/hosts"}, {"evil": 1}, {"depth": "many"}]
)
def test_arguments_that_build_nothing_are_a_warning(args: Any, tmp_path: Path):
    net, arch, size = network("plain")
    save_file(net.state_dict(), tmp_path / "model.safetensors")
    constants = {"mean": ["a", "b", "c"], "std": [0, 0, 0]}
    config = {"architecture": arch, "model_args": size | args, "pretrained_cfg": constants}
    (tmp_path / "config.json").write_text(json.dumps(config))
    report = load_initial(ours(), str(tmp_path / "model.safetensors"))
    assert sum("was not compared" in w or "pixel constants" in w for w in report.warnings) == 2
