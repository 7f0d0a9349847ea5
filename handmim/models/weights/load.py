"""A backbone's first weights: our own exports and checkpoints, or those of public ViTs.

A transformer of another size is refused, and one that computes otherwise with tensors of the same
shapes: one image goes through timm's own network, where it is known, and through ours. Properties
that the file does not state are a warning."""

import inspect
import logging
import math
from dataclasses import dataclass, field
from typing import Any

import timm
import torch
from timm.layers import LayerNorm
from torch import nn

from handmim.models.vit import ViT, activation_name
from handmim.models.weights import names
from handmim.models.weights.files import read_weights
from handmim.models.weights.names import PATCHES, Weights
from handmim.models.weights.network import Stated, public_heads, stated_network

log = logging.getLogger(__name__)
Grid = tuple[int, int]  # rows and columns of patches

# (width, depth) of the files in configs/backbone.
BACKBONES = {(384, 12): "vit_small_p16", (768, 12): "vit_base_p16", (96, 3): "vit_nano_p8"}
BACKBONES[1024, 24] = "vit_base_p16 task.backbone.arch=vit_large_patch16_224"
ROUNDING = 1e-4  # relative difference of tokens of one network, computed twice
TOLERATED = ("class token", "epsilon")  # differences of networks that are warnings alone
SIZE = "++task.backbone.size"
OVERRIDES = {"num_heads": f"{SIZE}.num_heads", "activation": f"{SIZE}.act_layer"}
OVERRIDES["pixel_norm"] = "task.backbone.pixel_norm"
FREE_ARGS = ("img_size", "patch_size", "num_classes", "weight_init", "drop_path_rate")
# Arguments of timm itself, which choose files to read.
LOADING = {*inspect.signature(timm.create_model).parameters, "features_only"} - {"kwargs"}
MAX_SETTING = 1024  # depth and widths, where no tensor is larger
MAX_GRID = 14  # patches along a side of the compared image


@dataclass(frozen=True)
class InitialWeights:
    """Report of a source's weights."""

    source: str  # as requested
    prefix: str = ""  # beginning of the ViT's names there
    matched: tuple[str, ...] = ()  # tensors of the backbone that were filled
    resampled: tuple[str, ...] = ()  # changes of size, from what to what
    folded: tuple[str, ...] = ()  # exact changes
    missing: tuple[str, ...] = ()  # tensors of the backbone that keep their random start
    unused: dict[str, int] = field(default_factory=dict)  # of the source, by first part of a name
    warnings: tuple[str, ...] = ()
    network: str = ""  # how it is known that the source computes what the backbone computes

    def table(self) -> str:
        """A few lines of plain text."""
        unused = (f"{k} ({n} tensor{'s' if n > 1 else ''})" for k, n in self.unused.items())
        rows = {
            "source": self.source + (f" ({self.prefix}*)" if self.prefix else ""),
            "matched": f"{len(self.matched)} tensors",
            "resampled": ", ".join(self.resampled),
            "folded": ", ".join(self.folded),
            "left random": ", ".join(self.missing),
            "unused": ", ".join(unused),
            "network": self.network,
            "warning": "; ".join(self.warnings),
        }
        return "\n".join(f"{key:<12} {value}" for key, value in rows.items() if value)


def load_initial(backbone: ViT, source: str | None) -> InitialWeights:
    """Fill a backbone in place.

    Args:
        source: None keeps the random start; "timm:NAME" takes timm's weights from the local cache;
            else a file of safetensors or torch.save, or the index of its shards: ours, or of MAE,
            DINO, iBOT, DINOv2, MoCo-v3, ViTPose, timm, or Hugging Face's ViT, ViT-MAE, DINOv2.
    Returns: a report, also logged.
    Raises: FileNotFoundError; ValueError for transformers that differ in size or in what they
        compute, and for files that hold no plain ViT or more than tensors."""
    mine: Weights = backbone.net.state_dict()
    if source is None:
        return InitialWeights("random", missing=(*mine, "mask_token"))
    file = read_weights(source)
    found = names.find_vit(file)
    for name, value in found.weights.items():
        if not value.is_floating_point() or value.layout != torch.strided:
            raise ValueError(f"{source}: {name} is of {value.dtype}, floats are required")
        if not value.isfinite().all():
            raise ValueError(f"{source} does not fit this backbone: {name} is not finite")
    raw = {name: value.float() for name, value in found.weights.items()}
    stated, weights = stated_network(file, raw), dict(raw)
    folded = names.fold_layer_scale(weights, mine) + names.fold_biases(weights, mine)
    if parts := names.foreign_parts(weights, mine):
        text = f"{'; '.join(parts)}: its features would differ, take weights without"
        raise ValueError(f"{source} is no plain ViT but has {text}")
    _check_fit(backbone, weights, source, stated)
    grid, resampled = names.complete_positions(weights, source)
    network, doubts = _compared(backbone, source, stated, raw, weights, grid)
    if backbone.pixel_norm == "imagenet":
        folded += names.fold_pixel_constants(weights, stated.mean, stated.std)
    resampled += names.resample(backbone, weights, grid)
    matched = [name for name in mine if name in weights]
    backbone.net.load_state_dict({**mine, **{name: weights[name] for name in matched}})
    token = found.mask_token
    if token is not None and token.shape == backbone.mask_token.shape:
        backbone.mask_token.data.copy_(token)
        matched.append("mask_token")
    report = InitialWeights(
        source=source,
        prefix=found.prefix,
        matched=tuple(matched),
        resampled=tuple(resampled),
        folded=tuple(folded),
        missing=tuple(name for name in (*mine, "mask_token") if name not in matched),
        unused=found.unused,
        warnings=(*_warnings(backbone, stated, weights, grid), *doubts),
        network=network,
    )
    level = logging.WARNING if report.warnings else logging.INFO
    log.log(level, "initial weights\n%s", report.table())
    return report


def _check_fit(backbone: ViT, weights: Weights, source: str, stated: Stated) -> None:
    """Raises: ValueError with the overrides for a ViT of another size or another kind."""
    mine: Weights = backbone.net.state_dict()
    numbers = [int(k.split(".")[1]) for k in weights if k.startswith("blocks.")]
    width, depth = len(weights[PATCHES]), 1 + max(numbers, default=-1)
    overrides: dict[str, Any] = {}
    if (width, depth) in BACKBONES and (width, depth) != (backbone.embed_dim, backbone.depth):
        overrides["backbone"] = BACKBONES[width, depth]
    elif (width, depth) != (backbone.embed_dim, backbone.depth):
        size = {"embed_dim": width, "depth": depth, "num_heads": public_heads(width)}
        overrides |= {f"{SIZE}.{key}": value for key, value in size.items()}
    wrong = (
        [] if width == backbone.embed_dim else [f"width {width} (required {backbone.embed_dim})"]
    )
    for name, key in OVERRIDES.items():
        theirs, own = getattr(stated, name), getattr(backbone, name)
        if theirs not in (None, own):
            wrong.append(f"{name} {theirs} (required {own}) by {stated.by}")
            overrides[key] = theirs
    fc1 = "blocks.0.mlp.fc1.weight"
    if "backbone" not in overrides and fc1 in weights and weights[fc1].shape != mine[fc1].shape:
        units = len(weights[fc1])
        ratio = units / width
        # timm cuts width times ratio down to a whole number.
        ratio = ratio if int(width * ratio) == units else math.nextafter(ratio, units)
        overrides[f"{SIZE}.mlp_ratio"] = ratio
    wrong += _misfits(weights, mine)
    if not wrong:
        return
    given = " ".join(f"{key}={value}" for key, value in overrides.items() if value is not None)
    raise ValueError(
        f"{source} holds a ViT of width {width} and depth {depth}, this backbone has width "
        f"{backbone.embed_dim} and depth {backbone.depth}{given and f'; give {given}'}; what "
        f"differs: {', '.join(wrong[:4])}{f' and {len(wrong) - 4} more' if wrong[4:] else ''}"
    )


def _misfits(weights: Weights, mine: Weights) -> list[str]:
    """Faults of tensors by name. Positions and sides of patches are free; a class token and a last
    norm may be missing."""
    wrong = []
    for name in sorted({*weights, *mine} - {"pos_embed"}):
        theirs, own = weights.get(name), mine.get(name)
        num_dims = 2 if name == PATCHES else None
        if theirs is None:
            wrong += [] if name.startswith(("cls_token", "norm.")) else [f"{name} is missing"]
        elif own is None:
            wrong.append(f"{name} is too much")
        elif theirs.shape[:num_dims] != own.shape[:num_dims]:
            wrong.append(f"{name} {tuple(theirs.shape)} (required {tuple(own.shape)})")
    return wrong


def _compared(
    backbone: ViT, source: str, stated: Stated, raw: Weights, weights: Weights, grid: Grid
) -> tuple[str, list[str]]:
    """How a source's network was found to be ours, and doubts about it: `raw`, the source's
    tensors, in timm's network against `weights`, as the backbone takes them, on a corner of their
    `grid`.

    Raises: ValueError where timm's network gives other tokens.
    """
    kept = (
        {k: v for k, v in net.timm_args.items() if k not in FREE_ARGS} for net in (backbone, stated)
    )
    is_same = stated.timm_name == backbone.timm_name and next(kept) == next(kept)
    if stated.timm_name is None or (stated.pixel_norm and is_same):
        return (f"as {stated.by} states" if stated.num_heads else ""), []
    patch_px = tuple(weights[PATCHES].shape[-2:])
    img_hw = [min(side, MAX_GRID) * px for side, px in zip(grid, patch_px, strict=True)]
    size = {"img_size": img_hw, "patch_size": patch_px, "num_classes": 0}
    with_token = {"cls_token": torch.zeros(1, 1, backbone.embed_dim), **_corner(weights, grid)}
    image = torch.randn(1, 3, *img_hw, generator=torch.Generator().manual_seed(0))
    try:
        theirs = filled_network(stated.timm_name, stated.timm_args | size, _corner(raw, grid))
        ours = filled_network(backbone.timm_name, backbone.timm_args | size, with_token)
    except ValueError as error:
        return "", [f"{stated.by} states {stated.timm_name}, which was not compared: {error}"]
    with torch.inference_mode():
        expected, found = (
            net.forward_features(image)[0, net.num_prefix_tokens :] for net in (theirs, ours)
        )
    difference = float((found - expected).norm() / expected.norm())
    share = f"{difference:.2g} (norm of the difference, relative)"
    text = f"patch tokens of one image differ from timm's {stated.timm_name} by {share}"
    if difference <= ROUNDING:
        return text, []
    mine, unlike = _properties(ours), []
    for name, value in _properties(theirs).items():
        if value != mine[name]:
            override = f" ({OVERRIDES[name]}={value})" if name in OVERRIDES else ""
            unlike.append(f"{name} {value} against {mine[name]}{override}")
    text = "; ".join([text, *unlike])
    if not unlike or not all(part.startswith(TOLERATED) for part in unlike):
        raise ValueError(f"{source} is another network ({stated.by}): {text}")
    return "", [text]


def _corner(weights: Weights, grid: Grid) -> Weights:
    """Weights with positions of the grid's first rows and columns alone."""
    if "pos_embed" not in weights:
        return weights
    position = weights["pos_embed"]
    first, patches = position.tensor_split([position.shape[1] - math.prod(grid)], dim=1)
    patches = patches.unflatten(1, grid)[:, :MAX_GRID, :MAX_GRID].flatten(1, 2)
    return {**weights, "pos_embed": torch.cat([first, patches], dim=1)}


def filled_network(name: str, args: dict[str, Any], weights: Weights) -> Any:
    """timm's network with given weights, which are not copied. ValueError where its architecture is
    not that of the tensors."""
    bound = max(MAX_SETTING, *(max(w.shape, default=0) for w in weights.values()))
    for key, value in args.items():
        if key in LOADING or (isinstance(value, (int, float)) and abs(value) > bound):
            raise ValueError(f"its argument {key}={value} is not taken")
    net: Any
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device("meta"):  # nothing is drawn or stored
                net = timm.create_model(name, pretrained=False, **args)
            has_values = {*weights, *dict(net.named_parameters())}
            if any(k not in has_values for k, _ in net.named_buffers()):
                net = timm.create_model(name, pretrained=False, **args)
        except (RuntimeError, TypeError, ValueError, AssertionError) as error:
            raise ValueError(f"timm cannot build {name} of this size: {error}") from error
    if "norm.weight" not in weights:
        net.norm = nn.Identity()
    state = net.state_dict()
    given = {k: w for k, w in weights.items() if k in state or not k.startswith("norm.")}
    shapes = [{(k, tuple(w.shape)) for k, w in tensors.items()} for tensors in (state, given)]
    if unlike := sorted({k for k, _ in shapes[0] ^ shapes[1]}):
        raise ValueError(f"timm's {name} has other tensors than the file: {', '.join(unlike[:3])}")
    net.load_state_dict({k: w.float() for k, w in given.items()}, assign=True)
    return net.eval()


def _properties(net: Any) -> dict[str, Any]:
    block = net.blocks[0]
    norm, attn, mlp = (getattr(block, name, None) for name in ("norm1", "attn", "mlp"))
    is_usual = isinstance(norm, (LayerNorm, nn.LayerNorm))
    return {
        "num_heads": getattr(attn, "num_heads", None),
        "positions": "rotary" if getattr(net, "rope", None) is not None else "learned",
        "activation": activation_name(getattr(mlp, "act", None)),
        "norm": "LayerNorm" if is_usual else type(norm).__name__,
        "epsilon of norms": getattr(norm, "eps", None),
        "class token": "present" if getattr(net, "cls_token", None) is not None else "absent",
    }


def _warnings(backbone: ViT, stated: Stated, weights: Weights, grid: Grid) -> list[str]:
    """Differences that are not refused, and properties that nothing states."""
    found: list[str] = []
    if stated.pixel_norm is None:  # public weights
        if backbone.pixel_norm != "imagenet":
            found.append(
                "public weights expect pixels normalised by constants, this backbone has "
                f"pixel_norm={backbone.pixel_norm} (task.backbone.pixel_norm=imagenet)"
            )
        if stated.norm_eps not in (None, backbone.norm_eps):
            epsilons = f"{stated.norm_eps}, this backbone has {backbone.norm_eps}"
            found.append(f"norms had epsilon {epsilons}")
        found += [f"{text}: features may differ from the source's" for text in stated.unknown]
        found += _assumed(backbone, stated)
    if "cls_token" not in weights:
        found.append(
            "the source has no class token, ours starts random and takes part in attention: patch "
            "features differ from the source's"
        )
    if "norm.weight" not in weights:
        found.append("the source has no final norm, ours starts as 1 and 0")
    if grid[0] != grid[1]:
        found.append(
            f"positions of {grid[0]} x {grid[1]} patches are stretched to a square grid; ViTPose "
            "also pads images by 2 px, which shifts its patches"
        )
    return found


def _assumed(backbone: ViT, stated: Stated) -> list[str]:
    """What is assumed for properties that nothing states."""
    assumed, mine = dict[str, str](), backbone.num_heads
    if is_bare := stated.timm_name is None:
        for name, value, text in (
            ("heads", stated.num_heads, f"{mine} heads"),
            ("activation", stated.activation, backbone.activation),
            ("norms", stated.norm_eps, f"epsilon {backbone.norm_eps:g}"),
        ):
            assumed |= {name: text} if value is None else {}
    if backbone.pixel_norm == "imagenet" and stated.mean is None:
        assumed["pixel constants"] = "ImageNet's constants"
    if not assumed:
        return []
    read = ", ".join(assumed.values())
    text = f"the file does not state its {', '.join(assumed)}: read with {read}"
    width = backbone.embed_dim
    usual, who = stated.likely_heads or (public_heads(width), f"public ViTs of width {width} have")
    if "heads" in assumed and usual not in (None, mine):
        text += f"; {who} {usual}, this backbone has {mine} ({OVERRIDES['num_heads']}={usual})"
    if is_bare:
        text += '. A config.json beside the file, {"architecture": "NAME IN TIMM"}, states them, '
        text += "and they are then compared"
    return [text]
