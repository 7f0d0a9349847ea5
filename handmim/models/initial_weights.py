"""A backbone's first weights: our own exports and checkpoints, or those of public ViTs.

What can be carried over exactly is (layer scale and pixel constants become part of the weights
beside them), position and patch embeddings are resampled where sizes differ, and the report says
which of it happened. A transformer of another size is refused.
"""

import logging
import math
import re
from dataclasses import dataclass, field
from typing import Any

import torch
from timm.layers import resample_abs_pos_embed, resample_patch_embed
from torch import Tensor

from handmim.models.vit import IMAGENET_MEAN, IMAGENET_STD, ViT
from handmim.models.weight_files import ViTFile, read_vit

log = logging.getLogger(__name__)

# (width, depth) of what configs/backbone holds.
BACKBONES = {
    (384, 12): "vit_small_p16",
    (768, 12): "vit_base_p16",
    (1024, 24): "vit_large_p16",
    (96, 3): "vit_nano_p8",
}
SCALED_BY = {  # layer scale and the map whose output it multiplies
    "ls1.gamma": "attn.proj",
    "gamma_1": "attn.proj",
    "ls2.gamma": "mlp.fc2",
    "gamma_2": "mlp.fc2",
}


@dataclass(frozen=True)
class InitialWeights:
    """What became of a source's weights.

    Args:
        source: where they came from.
        prefix: what the ViT's names begin with there.
        matched: tensors of the backbone that were filled.
        resampled, folded: what was changed on the way, and from what to what.
        missing: tensors of the backbone that keep their random start.
        unused: tensors of the source that were left, counted by the first part of their names.
        warnings: what a reader should know.
        meta: metadata of an export of ours.
    """

    source: str
    prefix: str = ""
    matched: tuple[str, ...] = ()
    resampled: tuple[str, ...] = ()
    folded: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    unused: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    meta: dict[str, str] = field(default_factory=dict)

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
            "warning": "; ".join(self.warnings),
        }
        return "\n".join(f"{key:<12} {value}" for key, value in rows.items() if value)


def load_initial(backbone: ViT, source: str | None) -> InitialWeights:
    """Fill a backbone.

    Args:
        backbone: changed in place.
        source: None keeps the random start; "timm:NAME" takes timm's weights from the local cache;
            else a .safetensors, .pth, .pt or .bin file: our export, our last.pt, or a checkpoint of
            MAE, DINO, iBOT, DINOv2, timm.
    Returns: a report, also logged.
    Raises: FileNotFoundError; ValueError when the transformers differ in size, or for a file that
        holds no plain ViT or more than tensors.
    """
    mine = backbone.net.state_dict()
    if source is None:
        return InitialWeights("random", missing=(*mine, "mask_token"))
    file = read_vit(source)
    weights = dict(file.weights)
    folded = _fold_layer_scale(weights, mine)
    if backbone.pixel_norm == "imagenet":
        folded += _fold_pixel_constants(weights, file)
    _check_size(backbone, weights, file)
    _check_pixels(backbone, file)
    resampled = _resample(backbone, weights, file.source)
    _check_shapes(mine, weights, file.source)
    matched = [name for name in mine if name in weights]
    backbone.net.load_state_dict({**mine, **{name: weights[name] for name in matched}})
    if file.mask_token is not None and file.mask_token.shape == backbone.mask_token.shape:
        with torch.no_grad():
            backbone.mask_token.copy_(file.mask_token)
        matched.append("mask_token")
    report = InitialWeights(
        source=source,
        prefix=file.prefix,
        matched=tuple(matched),
        resampled=tuple(resampled),
        folded=tuple(folded),
        missing=tuple(name for name in (*mine, "mask_token") if name not in matched),
        unused=file.unused,
        warnings=_warnings(backbone, file),
        meta=file.meta,
    )
    log.log(
        logging.WARNING if report.warnings else logging.INFO, "initial weights\n%s", report.table()
    )
    return report


def _check_pixels(backbone: ViT, file: ViTFile) -> None:
    """Weights of ours say how their pixels were normalised; another way is a mistake."""
    if file.pixel_norm not in (None, backbone.pixel_norm):
        raise ValueError(
            f"{file.source} was trained with pixel_norm={file.pixel_norm}, this backbone has "
            f"{backbone.pixel_norm} (task.backbone.pixel_norm)"
        )


def _public_heads(width: int) -> int | None:
    """Heads of timm's plain ViTs of a width: 64 channels each up to ViT-L, 16 heads in ViT-H, g, G.

    None where widths do not tell.
    """
    if width in (1280, 1408, 1664):
        return 16
    return width // 64 if width <= 1024 and width % 64 == 0 else None


def _warnings(backbone: ViT, file: ViTFile) -> tuple[str, ...]:
    found = []
    if file.pixel_norm is None and backbone.pixel_norm != "imagenet":
        found.append(
            f"public weights expect pixels normalised by constants, this backbone has pixel_norm="
            f"{backbone.pixel_norm} (task.backbone.pixel_norm=imagenet)"
        )
    usual = _public_heads(backbone.embed_dim)
    is_ours = file.pixel_norm is not None
    if not is_ours and file.num_heads is None and usual not in (None, backbone.num_heads):
        found.append(
            f"the file does not say how many heads its attention has; public ViTs of width "
            f"{backbone.embed_dim} have {usual}, this backbone has {backbone.num_heads} "
            f"(++task.backbone.size.num_heads={usual})"
        )
    return tuple(found)


def _fold_layer_scale(weights: dict[str, Tensor], mine: dict[str, Any]) -> list[str]:
    """Multiply each branch's scale into the map before it, which is exact."""
    scales = [
        (found[1], found[2], name)
        for name in weights
        if (found := re.match(r"(blocks\.\d+\.)(.+)", name))
        and found[2] in SCALED_BY
        and name not in mine
    ]
    for block, scale, name in scales:
        gamma = weights.pop(name)
        for part, factor in (("weight", gamma[:, None]), ("bias", gamma)):
            key = f"{block}{SCALED_BY[scale]}.{part}"
            if key in weights:
                weights[key] = weights[key] * factor
    return [f"layer scale of {len(scales)} branches"] if scales else []


def _fold_pixel_constants(weights: dict[str, Tensor], file: ViTFile) -> list[str]:
    """Let the patch embedding take pixels normalised by ImageNet's constants, which is exact."""
    known = file.mean is not None and file.std is not None
    if not known or (file.mean, file.std) == (IMAGENET_MEAN, IMAGENET_STD):
        return []
    mean, std = torch.tensor(file.mean), torch.tensor(file.std)
    kernel = weights["patch_embed.proj.weight"] / std.view(1, 3, 1, 1)  # of pixels less `mean`
    shift = (kernel.sum(dim=(2, 3)) * (torch.tensor(IMAGENET_MEAN) - mean)).sum(dim=1)
    weights["patch_embed.proj.weight"] = kernel * torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    weights["patch_embed.proj.bias"] = weights.get("patch_embed.proj.bias", 0.0) + shift
    return [f"pixel constants {file.mean}, {file.std}"]


def _resample(backbone: ViT, weights: dict[str, Tensor], source: str) -> list[str]:
    """Patch and position embeddings to this backbone's patch side and grid."""
    done: list[str] = []
    kernel, side = weights["patch_embed.proj.weight"], backbone.patch_px
    if kernel.shape[-1] != side:
        weights["patch_embed.proj.weight"] = resample_patch_embed(kernel, [side, side])
        done.append(f"patch_embed {kernel.shape[-1]} px -> {side} px")
    position = weights.get("pos_embed")
    if position is None:
        return done
    count = position.shape[1]
    if math.isqrt(count) ** 2 == count and count > 1:  # positions of patches alone
        position = torch.cat([torch.zeros_like(position[:, :1]), position], dim=1)
        done.append("pos_embed: class token gets 0")
    grid = math.isqrt(position.shape[1] - 1)
    if grid**2 + 1 != position.shape[1]:
        raise ValueError(
            f"{source} has {count} positions, which is no square grid with or without one class "
            "token (init=)"
        )
    if (grid, grid) != backbone.grid_hw:
        position = resample_abs_pos_embed(position, list(backbone.grid_hw), [grid, grid])
        done.append(f"pos_embed {grid} x {grid} -> {'{} x {}'.format(*backbone.grid_hw)}")
    weights["pos_embed"] = position
    return done


def _depth(weights: dict[str, Tensor]) -> int:
    return 1 + max((int(k.split(".")[1]) for k in weights if k.startswith("blocks.")), default=-1)


def _check_size(backbone: ViT, weights: dict[str, Tensor], file: ViTFile) -> None:
    """Refuse another width, depth, number of heads, or any block tensor that does not fit."""
    mine: dict[str, Tensor] = backbone.net.state_dict()
    width, depth = len(weights["patch_embed.proj.weight"]), _depth(weights)
    blocks = {k for k in (*mine, *weights) if k.startswith("blocks.")}
    wrong = [_differs(k, mine, weights) for k in sorted(blocks)]
    if file.num_heads not in (None, backbone.num_heads):
        wrong.insert(0, f"{file.num_heads} heads (wanted {backbone.num_heads})")
    if width != backbone.embed_dim:
        wrong.insert(0, f"width {width} (wanted {backbone.embed_dim})")
    wrong = [w for w in wrong if w]
    if not wrong:
        return
    words = _size_words(backbone, weights, file)
    raise ValueError(
        f"{file.source} holds a ViT of width {width} and depth {depth}, this backbone has width "
        f"{backbone.embed_dim} and depth {backbone.depth}{f'; give {words}' if words else ''}; "
        "what differs: "
        f"{', '.join(wrong[:4])}{f' and {len(wrong) - 4} more' if len(wrong) > 4 else ''}"
    )


def _size_words(backbone: ViT, weights: dict[str, Tensor], file: ViTFile) -> str:
    """Overrides that give a backbone the size of a file, as far as it tells; empty where they would
    change nothing."""
    width, depth = len(weights["patch_embed.proj.weight"]), _depth(weights)
    mine = (backbone.embed_dim, backbone.depth)
    fitting = BACKBONES.get((width, depth))
    if fitting is not None and mine != (width, depth):
        return f"backbone={fitting}"
    size: dict[str, Any] = {}
    if mine != (width, depth):
        size = {"embed_dim": width, "depth": depth, "num_heads": _public_heads(width)}
    if file.num_heads not in (None, backbone.num_heads):
        size["num_heads"] = file.num_heads
    fc1 = "blocks.0.mlp.fc1.weight"
    hidden = len(weights[fc1]) if fc1 in weights else None
    if hidden is not None and (mine[0], len(backbone.net.state_dict()[fc1])) != (width, hidden):
        ratio = hidden / width
        # timm cuts width times ratio down to a whole number.
        size["mlp_ratio"] = ratio if int(width * ratio) == hidden else math.nextafter(ratio, hidden)
    return " ".join(f"++task.backbone.size.{k}={v}" for k, v in size.items() if v is not None)


def _differs(name: str, mine: dict[str, Any], theirs: dict[str, Tensor]) -> str:
    """What is wrong with one tensor; empty when it fits."""
    if name not in theirs:
        return f"{name} is missing"
    if name not in mine:
        return f"{name} is too much"
    if theirs[name].shape != mine[name].shape:
        return f"{name} {tuple(theirs[name].shape)} (wanted {tuple(mine[name].shape)})"
    return ""


def _check_shapes(mine: dict[str, Any], weights: dict[str, Tensor], source: str) -> None:
    """Refuse what is left of misfits, layers that this ViT lacks, and weights that are not
    numbers."""
    wrong = [text for name in weights if (text := _differs(name, mine, weights))]
    wrong += [f"{name} is not finite" for name, w in weights.items() if not w.isfinite().all()]
    if wrong:
        raise ValueError(f"{source} does not fit this backbone: {', '.join(wrong[:6])} (init=)")
