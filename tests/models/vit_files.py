"""A ViT of ours, one of timm's, and files as public projects write them."""

import argparse
from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor

from handmim.models.vit import ViT

SIZE = {"embed_dim": 24, "depth": 2, "num_heads": 2}


def ours(**kwargs: Any) -> ViT:
    torch.manual_seed(1)
    settings = {"img_px": 32, "patch_px": 8, "size": SIZE}
    return ViT("vit_tiny_patch16_224", **(settings | kwargs)).eval()


def theirs(seed: int = 0, **kwargs: Any) -> Any:
    """timm's model with every weight random."""
    torch.manual_seed(seed)
    settings = {"img_size": 32, "patch_size": 8, "num_classes": 0, **SIZE} | kwargs
    net = timm.create_model("vit_tiny_patch16_224", **settings).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return net


def renamed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + k: v for k, v in weights.items()}


def noise(*names: str) -> dict[str, Tensor]:
    return {name: torch.randn(3) for name in names}


def decoder() -> dict[str, Tensor]:
    extra = noise("decoder_pos_embed", "decoder_blocks.0.attn.qkv.weight", "decoder_embed.bias")
    return {"mask_token": torch.full((1, 1, 24), 9.0), **extra}


# Name: what the file holds, given timm's weights, those of another ViT, and what is left over.
Forgery = Callable[[dict[str, Tensor], dict[str, Tensor]], Any]
FILES: dict[str, tuple[Forgery, set[str]]] = {
    "timm": (lambda w, o: w, set()),
    "supervised": (lambda w, o: {**w, **noise("head.weight", "head.bias")}, {"head"}),
    "timm average": (lambda w, o: {"state_dict": o, "state_dict_ema": w}, {"state_dict"}),
    "MAE encoder": (lambda w, o: {"model": w}, set()),
    "MAE": (
        lambda w, o: {"model": {**w, **decoder()}, "args": argparse.Namespace(lr=0.1), "epoch": 3},
        {"mask_token", "decoder_pos_embed", "decoder_blocks", "decoder_embed"},
    ),
    "DINO": (
        lambda w, o: {
            "student": renamed(o, "module.backbone.") | noise("module.head.mlp.0.weight"),
            "teacher": renamed(w, "backbone.") | noise("head.mlp.0.weight"),
            "optimizer": {"state": {0: noise("exp_avg")}, "param_groups": [{"lr": 0.1}]},
            "args": argparse.Namespace(arch="vit_small"),
        },
        {"student", "head", "optimizer"},
    ),
    "DINO of a student": (lambda w, o: renamed(w, "module.backbone."), set()),
    "iBOT": (
        lambda w, o: {
            "student": {**renamed(o, "module.backbone."), **noise("module.head.mlp.0.bias")},
            "teacher": {
                **renamed(w, "module.backbone."),
                "module.backbone.masked_embed": torch.full((1, 24), 5.0),
                **noise("module.head.last_layer2.weight_v"),
            },
        },
        {"student", "head"},
    ),
    "iBOT encoder": (
        lambda w, o: {"state_dict": {**w, "masked_embed": torch.full((1, 24), 5.0)}},
        set(),
    ),
    "DINOv2": (lambda w, o: {**w, "mask_token": torch.full((1, 24), 5.0)}, set()),
    "DINOv2 in chunks": (
        lambda w, o: {
            "teacher": {
                f"backbone.{k.replace('blocks.', 'blocks.0.')}": v for k, v in w.items()
            } | noise("dino_head.mlp.0.weight"),
        },
        {"dino_head"},
    ),
    "own pretraining": (
        lambda w, o: {
            "format": 2,
            "task": {
                **renamed(o, "student.backbone.net."),
                **renamed(w, "teacher.net.backbone.net."),
                "teacher.net.backbone.mask_token": torch.full((1, 1, 24), 5.0),
                **noise("student.pixel.blocks.0.attn.qkv.weight"),
            },
            "config": {"task": {"backbone": {"pixel_norm": "imagenet"}}},
        },
        {"student"},
    ),
    "own fine-tuning": (
        lambda w, o: {"task": {**renamed(w, "backbone.net."), **noise("head.mean_cam")}},
        {"head"},
    ),
}  # fmt: skip
HAS_MASK_TOKEN = {"iBOT", "iBOT encoder", "DINOv2", "own pretraining"}
