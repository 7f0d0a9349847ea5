"""Backbones that pretraining exports, rebuilt from their file; its metadata is not trusted."""

import json
import re
from typing import Any

import timm

from handmim.models.vit import ViT
from handmim.models.weights.files import WeightFile, read_weights
from handmim.models.weights.load import filled_network, load_initial

STATED = {"timm_name", "timm_args", "pixel_norm"}  # metadata of an export
SIDES = {"img_size", "patch_size"}
SIZE = {
    "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "proj_bias", "qk_norm", "pre_norm",
    "final_norm", "init_values", "weight_init", "norm_layer", "act_layer", "num_classes",
}  # fmt: skip
UNFIT = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, AssertionError)


def load_exported(path: str) -> ViT:
    """See `handmim.load_backbone`."""
    file = read_weights(path)
    if not file.meta.keys() >= STATED:
        raise ValueError(f"{path} is no exported backbone: backbone.safetensors is required")
    try:
        backbone = _build(file)
    except (*UNFIT, RuntimeError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ValueError(f"{path} is no exported backbone, its metadata: {reason}") from error
    load_initial(backbone, path)
    return backbone


def _build(file: WeightFile) -> ViT:
    """The network that the metadata states, built only where it has the file's tensors."""
    name = re.fullmatch(r"(\w+)(\.\w+)?", file.meta["timm_name"])
    if name is None or name[1] not in timm.list_models():
        raise ValueError(f"timm_name must be a model of timm, got {file.meta['timm_name']!r}")
    args = json.loads(file.meta["timm_args"])
    if not isinstance(args, dict) or not SIDES <= args.keys() <= SIDES | SIZE:
        raise ValueError(f"timm_args must be an object with {sorted(SIDES)} and sizes, got {args}")
    filled_network(name[0], args, dict(file.tensors))  # takes no memory, whatever is stated
    settings: dict[str, Any] = {"img_px": args.pop("img_size"), "patch_px": args.pop("patch_size")}
    args.pop("num_classes", None)
    backbone = ViT(name[0], **settings, pixel_norm=file.meta["pixel_norm"], size=args)
    if backbone.net.state_dict().keys() != file.tensors.keys():
        raise ValueError(f"{name[0]} of timm_args {file.meta['timm_args']} has other tensors")
    return backbone
