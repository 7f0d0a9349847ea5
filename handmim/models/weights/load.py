"""A backbone's first weights: our own exports and checkpoints, or those of public ViTs.

A transformer of another size is refused, and one that computes otherwise with tensors of the same
shapes. Properties that the file does not state are a warning."""

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from handmim.models.vit import ViT
from handmim.models.weights.compare import is_same_network, token_difference
from handmim.models.weights.files import read_weights
from handmim.models.weights.names import (
    PATCHES,
    Weights,
    complete_positions,
    find_vit,
    fold_biases,
    fold_layer_scale,
    fold_pixel_constants,
    foreign_parts,
    resample,
)
from handmim.models.weights.network import Stated, public_heads, stated_network

log = logging.getLogger(__name__)

# (width, depth) of the files in configs/backbone.
BACKBONES = {
    (384, 12): "vit_small_p16",
    (768, 12): "vit_base_p16",
    (1024, 24): "vit_base_p16 task.backbone.arch=vit_large_patch16_224",
    (96, 3): "vit_nano_p8",
}
ROUNDING = 1e-4  # relative difference of tokens of one network, computed twice
TOLERATED = ("class token", "epsilon")  # differences of networks that are warnings alone
SIZE = "++task.backbone.size"
ACT_LAYER = f"{SIZE}.act_layer"


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
    meta: dict[str, str] = field(default_factory=dict)  # of an export of ours

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
    found = find_vit(file)
    raw = {name: _checked(name, value, source) for name, value in found.weights.items()}
    stated, weights = stated_network(file, raw), dict(raw)
    folded = fold_layer_scale(weights, mine) + fold_biases(weights, mine)
    if parts := foreign_parts(weights, mine):
        raise ValueError(
            f"{source} is no plain ViT but has {'; '.join(parts)}: its features would differ, take "
            "weights without"
        )
    _check_size(backbone, weights, source, stated)
    _check_stated(backbone, source, stated)
    grid, resampled = complete_positions(weights, source)
    network, doubts = _compared(backbone, source, stated, raw, weights, grid)
    if backbone.pixel_norm == "imagenet":
        folded += fold_pixel_constants(weights, stated.mean, stated.std)
    resampled += resample(backbone, weights, grid)
    if wrong := [text for name in weights if (text := _misfit(name, mine, weights))]:
        raise ValueError(f"{source} does not fit this backbone: {', '.join(wrong[:6])}")
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
        meta=dict(file.meta),
    )
    level = logging.WARNING if report.warnings else logging.INFO
    log.log(level, "initial weights\n%s", report.table())
    return report


def _checked(name: str, value: Tensor, source: str) -> Tensor:
    if not value.is_floating_point() or value.layout != torch.strided:
        raise ValueError(f"{source}: {name} is of {value.dtype}, floats are required")
    if not value.isfinite().all():
        raise ValueError(f"{source} does not fit this backbone: {name} is not finite")
    return value.float()


def _check_stated(backbone: ViT, source: str, stated: Stated) -> None:
    for name, override in (("pixel_norm", "task.backbone.pixel_norm"), ("activation", ACT_LAYER)):
        theirs, mine = getattr(stated, name), getattr(backbone, name)
        if theirs not in (None, mine):
            raise ValueError(
                f"{source} was trained with {name}={theirs} ({stated.by}), this backbone has "
                f"{mine} ({override}={theirs})"
            )


def _compared(
    backbone: ViT,
    source: str,
    stated: Stated,
    raw: Weights,
    weights: Weights,
    grid: tuple[int, int],
) -> tuple[str, list[str]]:
    """How a source's network was found to be ours, and doubts about it.

    Raises: ValueError where timm's network gives other tokens.
    """
    if stated.timm_name is None or (stated.pixel_norm and is_same_network(backbone, stated)):
        return (f"as {stated.by} states" if stated.num_heads else ""), []
    try:
        difference, unlike = token_difference(backbone, stated, raw, weights, grid)
    except ValueError as error:
        if stated.num_heads not in (None, backbone.num_heads):
            raise ValueError(
                f"{source} has {stated.num_heads} heads ({stated.by}), this backbone has "
                f"{backbone.num_heads} ({SIZE}.num_heads={stated.num_heads})"
            ) from None
        return "", [f"{stated.by} states {stated.timm_name}, which was not compared: {error}"]
    text = (
        f"patch tokens of one image differ from timm's {stated.timm_name} by {difference:.2g} "
        "(norm of the difference, relative)"
    )
    if difference <= ROUNDING:
        return text, []
    text = "; ".join([text, *unlike])
    if not unlike or not all(part.startswith(TOLERATED) for part in unlike):
        raise ValueError(f"{source} is another network ({stated.by}): {text}")
    return "", [text]


def _warnings(backbone: ViT, stated: Stated, weights: Weights, grid: tuple[int, int]) -> list[str]:
    """Differences that are not refused, and properties that nothing states."""
    is_public, norm_eps = stated.pixel_norm is None, backbone.norm_eps
    cases = (
        (
            is_public and backbone.pixel_norm != "imagenet",
            "public weights expect pixels normalised by constants, this backbone has pixel_norm="
            f"{backbone.pixel_norm} (task.backbone.pixel_norm=imagenet)",
        ),
        (
            is_public and stated.norm_eps not in (None, norm_eps),
            f"norms had epsilon {stated.norm_eps or 0:g}, this backbone has {norm_eps:g}",
        ),
        *((is_public, f"{t}: features may differ from the source's") for t in stated.unknown),
        (is_public, _assumed(backbone, stated)),
        (
            "cls_token" not in weights,
            "the source has no class token, ours starts random and takes part in attention: patch "
            "features differ from the source's",
        ),
        ("norm.weight" not in weights, "the source has no final norm, ours starts as 1 and 0"),
        (
            grid[0] != grid[1],
            f"positions of {grid[0]} x {grid[1]} patches are stretched to a square grid; ViTPose "
            "also pads images by 2 px, which shifts its patches",
        ),
    )
    return [text for is_so, text in cases if is_so and text]


def _assumed(backbone: ViT, stated: Stated) -> str:
    """What is assumed for properties that nothing states; empty where all are stated."""
    is_bare, width, mine = stated.timm_name is None, backbone.embed_dim, backbone.num_heads
    is_imagenet = backbone.pixel_norm == "imagenet"
    properties = {
        "heads": (is_bare and stated.num_heads is None, f"{mine} heads"),
        "activation": (is_bare and stated.activation is None, backbone.activation),
        "norms": (is_bare and stated.norm_eps is None, f"epsilon {backbone.norm_eps:g}"),
        "pixel constants": (is_imagenet and stated.mean is None, "ImageNet's constants"),
    }
    assumed = {name: value for name, (is_unstated, value) in properties.items() if is_unstated}
    if not assumed:
        return ""
    text = f"the file does not state its {', '.join(assumed)}: read with "
    text += ", ".join(assumed.values())
    usual, who = stated.likely_heads or (public_heads(width), f"public ViTs of width {width} have")
    if "heads" in assumed and usual not in (None, mine):
        text += f"; {who} {usual}, this backbone has {mine} ({SIZE}.num_heads={usual})"
    if is_bare:
        text += '. A config.json beside the file, {"architecture": "NAME IN TIMM"}, states them, '
        text += "and they are then compared"
    return text


def _check_size(backbone: ViT, weights: Weights, source: str, stated: Stated) -> None:
    mine: Weights = backbone.net.state_dict()
    numbers = [int(k.split(".")[1]) for k in weights if k.startswith("blocks.")]
    width, depth = len(weights[PATCHES]), 1 + max(numbers, default=-1)
    blocks = {k for k in (*mine, *weights) if k.startswith("blocks.")}
    wrong = [text for k in sorted(blocks) if (text := _misfit(k, mine, weights))]
    is_compared = stated.timm_name and stated.pixel_norm is None  # with timm's network, as a whole
    if not is_compared and stated.num_heads not in (None, backbone.num_heads):
        wrong.insert(0, f"{stated.num_heads} heads (required {backbone.num_heads}) by {stated.by}")
    if width != backbone.embed_dim:
        wrong.insert(0, f"width {width} (required {backbone.embed_dim})")
    if not wrong:
        return
    overrides = _size_overrides(backbone, weights, stated, (width, depth))
    raise ValueError(
        f"{source} holds a ViT of width {width} and depth {depth}, this backbone has width "
        f"{backbone.embed_dim} and depth {backbone.depth}"
        f"{f'; give {overrides}' if overrides else ''}; what differs: "
        f"{', '.join(wrong[:4])}{f' and {len(wrong) - 4} more' if len(wrong) > 4 else ''}"
    )


def _size_overrides(
    backbone: ViT, weights: Weights, stated: Stated, width_depth: tuple[int, int]
) -> str:
    """Overrides that give a backbone the size of a file; empty where they would change nothing."""
    width, depth = width_depth
    size: dict[str, Any] = {}
    if width_depth != (backbone.embed_dim, backbone.depth):
        if width_depth in BACKBONES:
            return f"backbone={BACKBONES[width_depth]}"
        size = {"embed_dim": width, "depth": depth, "num_heads": public_heads(width)}
    if stated.num_heads not in (None, backbone.num_heads):
        size["num_heads"] = stated.num_heads
    fc1 = "blocks.0.mlp.fc1.weight"
    if fc1 in weights and weights[fc1].shape != backbone.net.state_dict()[fc1].shape:
        units = len(weights[fc1])
        ratio = units / width
        # timm cuts width times ratio down to a whole number.
        size["mlp_ratio"] = ratio if int(width * ratio) == units else math.nextafter(ratio, units)
    return " ".join(f"{SIZE}.{k}={v}" for k, v in size.items() if v is not None)


def _misfit(name: str, mine: Mapping[str, Any], theirs: Weights) -> str:
    """Fault of one tensor; empty when it fits."""
    if name not in theirs:
        return f"{name} is missing"
    if name not in mine:
        return f"{name} is too much"
    if theirs[name].shape != mine[name].shape:
        return f"{name} {tuple(theirs[name].shape)} (required {tuple(mine[name].shape)})"
    return ""
