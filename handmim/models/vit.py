"""Vision transformer with mask tokens: a thin coat over timm's, whose weights timm loads back.

Pictures come in as [0, 1]; the backbone normalises them itself, so that pretraining, fine-tuning,
probing and inference cannot disagree about it. Masking and export live here; heads and losses do
not.
"""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from handmim.contracts import Tokens

log = logging.getLogger(__name__)

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
PIXEL_NORMS = ("imagenet", "per_image")


def standardise_per_image(image: Tensor, floor: float = 0.03) -> Tensor:
    """Remove each picture's own colour cast and contrast.

    Args:
        image: [B, 3, H, W] in [0, 1].
        floor: added to the RMS so that a flat picture stays flat.
    Returns: [B, 3, H, W], channel means 0, divided by the RMS over all channels + floor.
    """
    centred = image - image.mean(dim=(-2, -1), keepdim=True)
    return centred / (centred.square().mean(dim=(-3, -2, -1), keepdim=True).sqrt() + floor)


class ViT(nn.Module):
    """timm's plain ViT with one class token, learned positions and a learned mask token.

    Args:
        arch: any timm name of a plain `vit_*` with a class token.
        img_px, patch_px: input side and patch side in pixels.
        drop_path_rate: stochastic depth.
        pixel_norm: "imagenet" constants or "per_image" standardisation; travels with exported
            weights.
        size: further timm arguments that set the architecture (embed_dim, depth, num_heads,
            mlp_ratio).
    """

    net: Any  # timm's VisionTransformer, whose attributes are untyped
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        arch: str = "vit_small_patch16_224",
        *,
        img_px: int = 224,
        patch_px: int = 16,
        drop_path_rate: float = 0.0,
        pixel_norm: str = "imagenet",
        size: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        if img_px % patch_px:
            raise ValueError(
                f"img_px must be a multiple of patch_px, got {img_px} and {patch_px} "
                "(configs/backbone)"
            )
        if pixel_norm not in PIXEL_NORMS:
            raise ValueError(
                f"pixel_norm must be one of {PIXEL_NORMS}, got {pixel_norm!r} (configs/backbone)"
            )
        self.timm_name = arch
        self.timm_args: dict[str, Any] = {
            "img_size": img_px,
            "patch_size": patch_px,
            "num_classes": 0,
            **(size or {}),
        }
        self.img_px, self.patch_px, self.pixel_norm = img_px, patch_px, pixel_norm
        self.net = timm.create_model(
            arch, pretrained=False, drop_path_rate=drop_path_rate, **self.timm_args
        )
        if (
            self.net.cls_token is None
            or self.net.pos_embed is None
            or self.net.num_prefix_tokens != 1
        ):
            raise ValueError(
                f"{arch} is not a plain ViT with one class token (configs/backbone: arch)"
            )
        self.embed_dim: int = self.net.embed_dim
        self.grid_hw: tuple[int, int] = tuple(self.net.patch_embed.grid_size)
        self.num_patches = self.grid_hw[0] * self.grid_hw[1]
        self.depth = len(self.net.blocks)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, self.embed_dim))
        nn.init.normal_(self.mask_token, std=0.02)
        self.register_buffer(
            "pixel_mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False
        )
        self.register_buffer(
            "pixel_std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False
        )

    def normalise(self, image: Tensor) -> Tensor:
        """[B, 3, H, W] in [0, 1] to what the transformer expects."""
        if self.pixel_norm == "per_image":
            return standardise_per_image(image)
        return (image - self.pixel_mean) / self.pixel_std

    def forward(self, image: Tensor, is_masked: Tensor | None = None) -> Tokens:
        """Encode pictures, some patches hidden.

        Args:
            image: [B, 3, H, W] in [0, 1], H = W = img_px.
            is_masked: [B, N] bool, True patches are replaced by the mask token before positions are
                added.
        Returns: Tokens after the final norm: cls [B, D], patches [B, N, D].
        """
        net = self.net
        if image.shape[-2:] != (self.img_px, self.img_px):
            raise ValueError(
                f"backbone was built for {self.img_px} px, got {tuple(image.shape)} "
                "(backbone.img_px)"
            )
        x = net.patch_embed(self.normalise(image))  # [B, N, D]
        if is_masked is not None:
            x = torch.where(is_masked.unsqueeze(-1), self.mask_token.to(x.dtype), x)
        x = torch.cat([net.cls_token.expand(len(x), -1, -1), x], dim=1) + net.pos_embed
        x = net.norm_pre(net.pos_drop(x))
        for block in net.blocks:
            x = block(x)
        x = net.norm(x)
        return Tokens(cls=x[:, 0], patches=x[:, 1:], grid_hw=self.grid_hw)

    def layer_of(self, name: str) -> int:
        """Depth of a parameter for layer-wise learning rates: 0 for the embedding, depth + 1 for
        the final norm."""
        if name.startswith("net.blocks."):
            return int(name.split(".")[2]) + 1
        return self.depth + 1 if name.startswith("net.norm.") else 0

    def export(self, path: Path, extra: Mapping[str, str] | None = None) -> None:
        """Write the weights under timm's own names as safetensors.

        `timm.create_model(meta["timm_name"], **json.loads(meta["timm_args"]),
        checkpoint_path=path)` loads them; the mask token, which timm does not know, is left out.
        The metadata also says how pixels are normalised.
        """
        meta = {
            "timm_name": self.timm_name,
            "timm_args": json.dumps(self.timm_args),
            "pixel_norm": self.pixel_norm,
            **(extra or {}),
        }
        weights = {k: v.detach().cpu().contiguous() for k, v in self.net.state_dict().items()}
        partial = path.with_suffix(".partial")
        save_file(weights, partial, metadata=meta)
        partial.replace(path)

    def load_exported(self, path: str | Path) -> dict[str, str]:
        """Load weights written by `export`; positions are resampled to another grid.

        Returns: the file's metadata.
        Raises: FileNotFoundError; ValueError naming every key or shape that does not fit.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no backbone weights at {path} (init_from=FILE.safetensors)")
        with safe_open(path, framework="pt") as file:
            meta = dict(file.metadata() or {})
            weights = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
        norm = meta.get("pixel_norm", self.pixel_norm)
        if norm != self.pixel_norm:
            raise ValueError(
                f"{path.name} was trained with pixel_norm={norm}, this backbone has "
                f"{self.pixel_norm}"
                " (backbone.pixel_norm)"
            )
        mine = self.net.state_dict()
        position = weights.get("pos_embed")
        if (
            position is not None
            and position.shape != mine["pos_embed"].shape
            and position.shape[-1] == self.embed_dim
        ):
            weights["pos_embed"] = resample_abs_pos_embed(position, list(self.grid_hw))
            log.info("position embedding resampled to %d x %d patches", *self.grid_hw)
        wrong = sorted(set(mine) ^ set(weights)) + [
            f"{k} {tuple(weights[k].shape)} (wanted {tuple(mine[k].shape)})"
            for k in sorted(set(mine) & set(weights))
            if weights[k].shape != mine[k].shape
        ]
        if wrong:
            raise ValueError(
                f"{path.name} ({meta.get('timm_name', 'no metadata')} "
                f"{meta.get('timm_args', '')}) does not fit"
                f" backbone {self.timm_name} {json.dumps(self.timm_args)}: {', '.join(wrong[:6])}"
                f"{' ...' if len(wrong) > 6 else ''} (choose the same backbone=...)"
            )
        self.net.load_state_dict(weights)
        log.info("loaded %d backbone tensors from %s", len(weights), path)
        return meta
