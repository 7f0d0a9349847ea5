"""Pixel reconstruction of masked patches (He et al. 2022, MAE; Xie et al. 2022, SimMIM)."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from timm.layers import build_sincos2d_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from handmim.engine.optim import Schedule
from handmim.objectives.base import Objective, Setup, StepContext, view_weights
from handmim.utils.arguments import above, at_least, one_of, shares

MIN_VAR = 1e-4  # of a target patch: flat patches are divided by no less than its root


def normalise_patches(patches: Tensor, min_var: float = MIN_VAR) -> Tensor:
    """Each patch [M, p*p*3] to mean 0 and variance 1 over all its values, floored: the noise of a
    uniform background is no target."""
    centred = patches - patches.mean(dim=-1, keepdim=True)
    var = centred.square().mean(dim=-1, keepdim=True)
    return centred * var.clamp(min=min_var).rsqrt()


def patchify(image: Tensor, patch_px: int) -> Tensor:
    """[B, 3, H, W] to [B, N, p*p*3]: patches row by row; inside row, column, then channel."""
    b, c, height, width = image.shape
    h, w = height // patch_px, width // patch_px
    x = image.reshape(b, c, h, patch_px, w, patch_px)
    return x.permute(0, 2, 4, 3, 5, 1).reshape(b, h * w, patch_px * patch_px * c)


def unpatchify(patches: Tensor, patch_px: int, grid_hw: tuple[int, int]) -> Tensor:
    """Inverse of `patchify`: [B, N, p*p*3] to [B, 3, H, W]."""
    h, w = grid_hw
    x = patches.reshape(len(patches), h, w, patch_px, patch_px, 3)
    return x.permute(0, 5, 1, 3, 2, 4).reshape(len(patches), 3, h * patch_px, w * patch_px)


def tap_blocks(tap_layers: Sequence[float], depth: int) -> tuple[int, ...]:
    """Shares of the depth to block numbers from 1 to depth; shares of one block count once.

    Raises: ValueError for no share, and for one outside (0, 1].
    """
    taps = [float(share) for share in tap_layers]
    if not taps or not all(0.0 < share <= 1.0 for share in taps):
        raise ValueError(f"tap_layers must be shares of the depth in (0, 1], got {taps}")
    return tuple(dict.fromkeys(max(round(share * depth), 1) for share in taps))


class PixelHead(nn.Module):
    """LayerNorm and one linear map from a token to its patch's pixels."""

    def __init__(self, dim: int, patch_px: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.out = nn.Linear(dim, patch_px * patch_px * 3)
        nn.init.xavier_uniform_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, patches: Tensor, idx: Tensor, is_dropped: Tensor | None = None) -> Tensor:
        """[V, N, D] tokens and [M] indices in V * N to [M, p*p*3]; no patch may be dropped."""
        return torch.as_tensor(self.out(self.norm(patches.flatten(0, 1)[idx])))


class PixelDecoder(nn.Module):
    """A light transformer over the tokens of all patches, after which pixels are a linear map.

    Patches that were dropped from the encoder come back as its own mask token. A width of None is
    that of the tokens, a num_heads of None a head per 32 channels.
    """

    positions: Tensor

    def __init__(
        self,
        dim: int,
        patch_px: int,
        grid_hw: tuple[int, int],
        *,
        depth: int = 2,
        width: int | None = None,
        num_heads: int | None = None,
    ) -> None:
        super().__init__()
        at_least(1, depth=depth)
        width = dim if width is None else width
        num_heads = max(1, width // 32) if num_heads is None else num_heads
        if width < 8 or width % 4 or num_heads < 1 or width % num_heads:
            raise ValueError(
                f"width must be a multiple of 4 (at least 8) and of num_heads, got {width} and "
                f"{num_heads}"
            )
        self.embed = nn.Linear(dim, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.blocks = nn.Sequential(*(Block(width, num_heads, qkv_bias=True) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, patch_px * patch_px * 3)
        positions = build_sincos2d_pos_embed(list(grid_hw), dim=width)
        self.register_buffer("positions", positions, persistent=False)  # [N, width]
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.mask_token, std=0.02)

    def forward(self, patches: Tensor, idx: Tensor, is_dropped: Tensor | None = None) -> Tensor:
        """[V, N, D] tokens, or those that are not dropped, and [M] indices in V * N to
        [M, p*p*3]; is_dropped [V, N] bool."""
        x = self.embed(patches)
        if is_dropped is not None:
            whole = self.mask_token.to(x.dtype).repeat(*is_dropped.shape, 1)
            whole[~is_dropped] = x.flatten(0, 1)
            x = whole
        x = self.blocks(x + self.positions)
        return self.out(self.norm(x.flatten(0, 1)[idx]))


class PixelTargets(NamedTuple):
    """Reconstructed patches only."""

    pred: Tensor  # [M, p*p*3]
    target: Tensor  # [M, p*p*3] in [0, 1]
    weight: Tensor  # [M], 1 / (reconstructed patches of that view)
    num_views: int  # also those without a reconstructed patch


class PixelRecon(Objective):
    """Mean error of masked patches of the augmented view, in each view first, then over views.

    Args:
        head: "linear" or "decoder", the one head for dropped patches (task.mask_mode=drop).
        depth, width, num_heads: of the decoder.
        tap_layers: blocks whose mean tokens are read, in shares of the backbone's depth.
        kind: "mse" (MAE) or "l1" (SimMIM).
        per_patch_norm: normalise every target patch (MAE) or regress raw [0, 1] values (SimMIM).
        min_var: floor of a patch's variance.
        clean_target: pixels before colour augmentation; requires views.keep_clean=true.
        visible_share: this share of the visible patches is reconstructed too.
    """

    reads = frozenset({"visible_patches"})

    def __init__(
        self,
        *,
        weight: float | Schedule = 1.0,
        head: str = "linear",
        depth: int = 2,
        width: int | None = None,
        num_heads: int | None = None,
        tap_layers: Sequence[float] = (1.0,),
        kind: str = "mse",
        per_patch_norm: bool = True,
        min_var: float = MIN_VAR,
        clean_target: bool = False,
        visible_share: float = 0.0,
    ) -> None:
        super().__init__(weight)
        one_of("head", head, ("linear", "decoder"))
        one_of("kind", kind, ("mse", "l1"))
        above(0.0, min_var=min_var)
        shares(visible_share=visible_share)
        tap_blocks(tap_layers, 1)  # refuses shares out of range
        self.tap_layers, self.head_kind = tuple(tap_layers), head
        self.decoder: dict[str, Any] = {"depth": depth, "width": width, "num_heads": num_heads}
        self.kind, self.per_patch_norm, self.min_var = kind, per_patch_norm, min_var
        self.clean_target, self.visible_share = clean_target, visible_share
        if head == "linear":
            self.reads = self.reads | {"masked_patches"}

    def build(self, setup: Setup) -> None:
        self.taps = tap_blocks(self.tap_layers, setup.depth)
        self.patch_px = setup.patch_px
        self.head: PixelHead | PixelDecoder
        if self.head_kind == "linear":
            self.head = PixelHead(setup.dim, setup.patch_px)
        else:
            self.head = PixelDecoder(setup.dim, setup.patch_px, setup.grid_hw, **self.decoder)
            self.head.mask_token.requires_grad_(setup.drops_masked)

    def predict(self, ctx: StepContext) -> PixelTargets:
        batch, is_masked = ctx.batch, ctx.is_masked
        source = batch.clean_views if self.clean_target else batch.views
        if source is None:
            raise ValueError(
                "clean_target=true requires the views before colour jitter (views.keep_clean=true)"
            )
        is_target, idx = is_masked, batch.masked_idx
        if self.visible_share > 0 and self.training:
            chance = torch.rand(is_masked.shape, device=is_masked.device)
            is_target = is_masked | (chance < self.visible_share)
            idx = is_target.flatten().nonzero().squeeze(1)  # waits for the device
        tokens = torch.stack([ctx.tapped[block] for block in self.taps]).mean(dim=0)
        pred = self.head(tokens, idx, is_masked if ctx.drops_masked else None)
        target = patchify(source.flatten(0, 1), self.patch_px).flatten(0, 1)[idx]
        return PixelTargets(pred, target, view_weights(is_target, idx), len(is_target))

    def loss(self, ctx: StepContext, prediction: PixelTargets) -> Tensor:
        pred, target, weight, num_views = prediction
        if self.per_patch_norm:
            target = normalise_patches(target, self.min_var)
        difference = pred.float() - target.float()
        error = difference.square() if self.kind == "mse" else difference.abs()
        return (error.mean(dim=-1) * weight).sum() / num_views
