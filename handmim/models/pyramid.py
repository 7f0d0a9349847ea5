"""The feature pyramid between a ViT and a head, and the file in which pretraining exports it."""

import json
import logging
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from handmim.models.layers import BatchNorm2d
from handmim.models.weights.files import read_weights
from handmim.types import Tokens
from handmim.utils.arguments import at_least, one_of
from handmim.utils.tensor_files import DIGEST, save_weights

log = logging.getLogger(__name__)

BACKBONE, NECK = "backbone.safetensors", "neck.safetensors"  # which lie side by side
STATED, OF = "pyramid", "backbone_sha256"  # in the metadata of the latter
OPTIONS = {"num_levels": "num_steps"}  # of heads, where their names differ
UNREAD = "leave it unread (init_neck=never)"
NORMS = ("group", "batch")
PYRAMIDS = ("light", "deconv")


class Pyramid(nn.Module):
    """Maps [B, C, h 2^l, w 2^l] for l = 0, 1, ..., each by `up` and `refine` from the last.

    pyramid: "light", a 1x1 convolution, then bilinear and separable 3x3; or "deconv", PyMAF's, a
    1x1 and a 3x3 convolution, then 4x4 deconvolutions of stride 2, which cost far more. norm:
    "group" (the same in small batches and in evaluation) or "batch". taps: blocks, from 1, whose
    patch tokens of width `dim` are read beside the last ones. channels: None takes those of
    head=pymaf_small for narrow tokens, else of head=pymaf."""

    def __init__(
        self,
        pyramid: str,
        dim: int,
        channels: int | None,
        num_levels: int,
        norm: str,
        taps: Sequence[int] = (),
    ) -> None:
        super().__init__()
        one_of("pyramid", pyramid, PYRAMIDS)
        one_of("norm", norm, NORMS)
        if channels is None:
            channels = 64 if dim < 192 else 128
        at_least(1, channels=channels, num_levels=num_levels)
        self.channels, self.taps = channels, tuple(taps)
        self.settings: dict[str, Any] = {"pyramid": pyramid, "dim": dim, "channels": channels}
        self.settings |= {"num_levels": num_levels, "norm": norm, "taps": list(taps)}
        is_light = pyramid == "light"

        def unit(*convs: nn.Module) -> tuple[nn.Module, ...]:
            each = nn.GroupNorm(1, channels) if norm == "group" else BatchNorm2d(channels)
            return *convs, each, nn.GELU() if is_light else nn.ReLU()

        width = dim * (1 + len(self.taps))
        layers = unit(nn.Conv2d(width, channels, 1, bias=is_light))
        conv3x3 = partial(nn.Conv2d, channels, channels, 3, padding=1, bias=False)
        deconv = partial(nn.ConvTranspose2d, channels, channels, 4, stride=2, padding=1, bias=False)
        self.reduce = nn.Sequential(*layers, *(() if is_light else unit(conv3x3())))
        up = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.up = up if is_light else nn.Identity()
        self.refine = nn.ModuleList()
        for _ in range(num_levels - 1):
            if is_light:
                layers = unit(conv3x3(groups=channels), nn.Conv2d(channels, channels, 1))
            else:
                layers = unit(deconv())
            self.refine.append(nn.Sequential(*layers))

    def of_tokens(self, tokens: Tokens) -> list[Tensor]:
        """One map per level from whole grids of patch tokens and those of `taps`."""
        patches = torch.cat([*tokens.taps, tokens.patches], dim=-1)
        maps: list[Tensor] = self(patches.transpose(1, 2).unflatten(2, tokens.grid_hw))
        return maps

    def forward(self, x: Tensor) -> list[Tensor]:
        """[B, D (1 + taps), h, w] to one map per level."""
        maps = [self.reduce(x)]
        for refine in self.refine:
            maps.append(refine(self.up(maps[-1])))
        return maps


def export_neck(pyramid: Pyramid, backbone: Path, extra: Mapping[str, str]) -> Path:
    """Write a pyramid beside the exported backbone that it was trained with, whose file timm loads
    only without further tensors; returns the path."""
    meta = {STATED: json.dumps(pyramid.settings), **extra}
    meta[OF] = read_weights(str(backbone)).meta[DIGEST]
    path = backbone.with_name(NECK)
    save_weights({k: v.cpu().contiguous() for k, v in pyramid.state_dict().items()}, path, meta)
    return path


def neck_beside(weights: str | Path | None) -> Path | None:
    """The neck beside initial weights, which are an exported backbone; None without one."""
    if weights is None or (backbone := Path(weights)).name != BACKBONE:
        return None
    path = backbone.with_name(NECK)
    return path if path.is_file() else None


def load_neck(head: nn.Module, weights: str | None, init_neck: str) -> dict[str, str]:
    """Fill a head's pyramid, if it has one, from the neck beside initial weights ("auto"), or
    "never"; returns facts for a checkpoint. Raises: as `fill_pyramid`."""
    pyramid, path = getattr(head, "pyramid", None), neck_beside(weights)
    if pyramid is None:
        if path is not None:
            log.info("neck: %s is not read, %s has no pyramid", path, type(head).__name__)
        return {}
    if path is None or init_neck == "never":
        why = "init_neck=never" if path else f"no {NECK} beside init_from={weights}"
        log.info("neck: random weights (%s)", why)
        return {}
    digest = fill_pyramid(pyramid, path)
    log.info("neck: %s, %d tensors into the head's pyramid", path, len(pyramid.state_dict()))
    return {"neck_sha256": digest}


def fill_pyramid(pyramid: Pyramid, path: Path) -> str:
    """Fill a pyramid in place; returns the digest of the neck's file. Raises: ValueError for a
    damaged or foreign file, for a neck that was trained with another backbone than lies beside it,
    and for one of other settings, naming them."""
    file, backbone = read_weights(str(path)), path.with_name(BACKBONE)
    try:
        theirs = dict(json.loads(file.meta[STATED]))
        digest, trained_with = file.meta[DIGEST], file.meta[OF]
    except (KeyError, ValueError, TypeError) as error:
        raise ValueError(f"{path} is no exported neck: {UNREAD}") from error
    if trained_with != read_weights(str(backbone)).meta.get(DIGEST):
        raise ValueError(f"{path} was trained with another backbone than {backbone}: {UNREAD}")
    if wrong := [key for key, value in pyramid.settings.items() if theirs.get(key) != value]:
        own = ", ".join(f"{key} {theirs.get(key)} (here {pyramid.settings[key]})" for key in wrong)
        ways = (f"task.head.{OPTIONS.get(key, key)}={theirs.get(key)}" for key in wrong)
        give = " ".join(way.replace(", ", ",") for way in ways)
        raise ValueError(f"{path} holds a pyramid of {own}: give {give}, or {UNREAD}")
    try:
        pyramid.load_state_dict(dict(file.tensors))
    except RuntimeError as error:
        raise ValueError(f"{path} has other tensors than it states: {UNREAD}") from error
    return digest
