"""Backbones that pretraining exports, rebuilt from their file; its metadata is not trusted."""

import json
import re
from typing import Any

import timm
import torch

from handmim.models.vit import ViT
from handmim.models.weights.files import WeightFile, read_weights
from handmim.models.weights.load import load_initial

STATED = {"timm_name", "timm_args", "pixel_norm"}  # metadata of an export
SIDES = {"img_size", "patch_size"}
SIZE = {
    "embed_dim", "depth", "num_heads", "mlp_ratio", "qkv_bias", "proj_bias", "qk_norm", "pre_norm",
    "final_norm", "init_values", "weight_init", "norm_layer", "act_layer",
}  # fmt: skip
MAX_SIDE = 4096  # pixels, and channels
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
    size = _checked(json.loads(file.meta["timm_args"]), len(file.tensors))
    settings: dict[str, Any] = {"pixel_norm": file.meta["pixel_norm"], "size": size}
    settings |= {"img_px": size.pop("img_size"), "patch_px": size.pop("patch_size")}
    size.pop("num_classes", None)
    with torch.device("meta"):  # takes no memory, whatever is stated
        expected = ViT(name[0], **settings).net.state_dict()
    shapes = [{key: tuple(t.shape) for key, t in ts.items()} for ts in (expected, file.tensors)]
    if shapes[0] != shapes[1]:
        raise ValueError(f"{name[0]} of timm_args {file.meta['timm_args']} has other tensors")
    return ViT(name[0], **settings)


def _checked(args: Any, num_tensors: int) -> dict[str, Any]:
    """timm_args with the keys of an export, and sizes that cannot exhaust memory or time."""
    if not isinstance(args, dict) or not SIDES <= args.keys() <= SIDES | SIZE | {"num_classes"}:
        raise ValueError(f"timm_args must be an object with {sorted(SIDES)} and sizes, got {args}")
    whole = [args[key] for key in (*SIDES, "embed_dim", "depth", "num_heads") if key in args]
    if not all(type(value) is int and 1 <= value <= MAX_SIDE for value in whole):
        raise ValueError(f"sizes of timm_args must be whole numbers of 1 to {MAX_SIDE}, got {args}")
    if args.get("depth", 1) > num_tensors:
        raise ValueError(f"depth must be at most the file's {num_tensors} tensors, got {args}")
    return args
